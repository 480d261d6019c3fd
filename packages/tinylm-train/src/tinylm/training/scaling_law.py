"""Laws of scaling, from the losses of runs: which size is best for a budget, and what more of everything would give.

    IsoFLOP     L = a (ln N)² + b ln N + c     over the runs of one budget C; its minimum is the best N(C)
    optimum     N(C) = k Cᵖ                    a line through those minima, in logarithms
    law         L(N, D) = E + A / N^α + B / D^β

(Hoffmann et al. 2022, https://arxiv.org/abs/2203.15556, sections 3.2 and 3.3.) L: validation loss, nats a token; N:
parameters, all of them; D: tokens trained on; C: FLOPs. E is what no model of the kind gets below. Not here: the runs
(sweep.py), the picture (sweep_plot.py).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
ENOUGH = 6  # runs for the law: it has five numbers


@dataclasses.dataclass(frozen=True)
class Point:
    """One run."""

    flops: float  # its budget
    parameters: int
    tokens: int
    loss: float


@dataclasses.dataclass(frozen=True)
class IsoFlop:
    """The parabola of one budget. `inside`: its minimum is one, and lies among the sizes that were run."""

    flops: float
    curve: tuple[float, float, float]  # a, b, c
    parameters: float
    loss: float
    inside: bool


@dataclasses.dataclass(frozen=True)
class Optimum:
    """N(C) = coefficient · C^exponent."""

    coefficient: float
    exponent: float

    def parameters(self, flops: float) -> float:
        """The best size for a budget."""
        return float(self.coefficient * flops**self.exponent)


@dataclasses.dataclass(frozen=True)
class Law:
    """L(N, D) = e + a / N^alpha + b / D^beta; `error`: root mean square of the runs' distance from it, nats."""

    e: float
    a: float
    alpha: float
    b: float
    beta: float
    error: float

    def loss(self, parameters: float, tokens: float) -> float:
        """Nats a token."""
        return float(self.e + self.a / parameters**self.alpha + self.b / tokens**self.beta)


def isoflops(points: Sequence[Point]) -> list[IsoFlop]:
    """The parabola of every budget with at least three sizes, by least squares; smallest budget first."""
    found = []
    for flops in sorted({point.flops for point in points}):
        mine = [point for point in points if point.flops == flops]
        sizes = np.log([point.parameters for point in mine])
        if len(set(sizes.tolist())) < 3:
            continue
        a, b, c = (float(x) for x in np.polyfit(sizes, [point.loss for point in mine], 2))
        best = -b / (2 * a) if a else math.inf
        inside = a > 0 and float(sizes.min()) <= best <= float(sizes.max())
        if not inside:  # the curve has no minimum here: the best of the runs stands, and says that it is at the edge
            best = math.log(min(mine, key=lambda point: point.loss).parameters)
        found.append(IsoFlop(flops, (a, b, c), math.exp(best), a * best**2 + b * best + c, inside))
    return found


def optimum(curves: Sequence[IsoFlop]) -> Optimum | None:
    """The line through the minima; None with fewer than two that lie inside."""
    inside = [curve for curve in curves if curve.inside]
    if len(inside) < 2:
        return None
    flops, sizes = np.log([curve.flops for curve in inside]), np.log([curve.parameters for curve in inside])
    exponent, start = (float(x) for x in np.polyfit(flops, sizes, 1))
    return Optimum(math.exp(start), exponent)


def law(points: Sequence[Point]) -> Law | None:
    """The law by least squares of relative errors; None with fewer runs than `ENOUGH`, or all of one size or length.

    For given exponents it is linear in E, A and B, so only α and β are searched (variable projection: Golub and Pereyra
    1973), on a grid that is made finer around its best place. E, A and B are kept at 0 or above. Hoffmann et al. use
    Huber's loss of logarithms instead, against runs that went wrong.
    """
    sizes, tokens = ({getattr(point, name) for point in points} for name in ("parameters", "tokens"))
    if len(points) < ENOUGH or len(sizes) < 2 or len(tokens) < 2:
        return None
    n, d = np.log([point.parameters for point in points]), np.log([point.tokens for point in points])
    losses = np.array([point.loss for point in points])
    low, high = np.array([0.02, 0.02]), np.array([2.0, 2.0])
    least, place, linear = math.inf, (0.0, 0.0), np.zeros(3)
    for _ in range(6):
        axes = [np.linspace(low[i], high[i], 25) for i in (0, 1)]
        for alpha, beta in itertools.product(*axes):
            residual, found = _linear(np.exp(-alpha * (n - n.mean())), np.exp(-beta * (d - d.mean())), losses)
            if residual < least:
                least, place, linear = residual, (float(alpha), float(beta)), found
        step = (high - low) / 24
        low, high = np.maximum(1e-3, place - 2 * step), place + 2 * step
    (alpha, beta), (e, a, b) = place, linear.tolist()
    fitted = Law(e, a * math.exp(alpha * n.mean()), alpha, b * math.exp(beta * d.mean()), beta, 0.0)
    errors = [fitted.loss(point.parameters, point.tokens) - point.loss for point in points]
    return dataclasses.replace(fitted, error=math.sqrt(sum(x * x for x in errors) / len(errors)))


def _linear(size: Vector, length: Vector, losses: Vector) -> tuple[float, Vector]:
    """The best E, A, B of at least 0, and the sum of squares: of three unknowns every subset is tried."""
    columns = np.stack([np.ones_like(losses), size, length], axis=1) / losses[:, None]
    best, where = math.inf, np.zeros(3)
    for used in ([0, 1, 2], [0, 1], [0, 2], [1, 2], [0], [1], [2]):
        found = np.linalg.lstsq(columns[:, used], np.ones_like(losses), rcond=None)[0]
        if (found < 0).any():
            continue
        residual = float(((columns[:, used] @ found - 1) ** 2).sum())
        if residual < best:
            best, where = residual, np.zeros(3)
            where[used] = found
        if used == [0, 1, 2]:
            break  # nothing smaller fits better
    return best, where
