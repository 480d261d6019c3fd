"""tinylm.inference: panel 5 of the explorer: the same text through every saved step, beside the run's own figures.

Loss and gradients of the run are read with tinylm.observability's readers; nothing is trained here. Next:
`arithmetic.py`.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from tinylm import observability as obs
from tinylm.inference.explorer.layers import GUESSES, Guess
from tinylm.inference.explorer.library import Point
from tinylm.inference.explorer.reading import Readings, token_text

POINTS = 40  # saved steps that are looked at; of more, evenly chosen ones
ROWS = 400  # of a curve


@dataclass(frozen=True)
class Moment:
    """A saved step and this text: its loss in nats a token (None for one token), and the likeliest next tokens.

    `problem`: why it could not be opened; then the others are empty.
    """

    point: int
    step: int | None
    loss: float | None
    guesses: list[Guess]
    problem: str | None


@dataclass(frozen=True)
class Flow:
    """The root mean square of a parameter's gradient at each of the steps of its run."""

    name: str
    values: list[float]


@dataclass(frozen=True)
class History:
    """`curve`: (step, training loss). `flow_steps`: the steps of every flow.

    `problem`: why the run's own figures cannot be read; they are empty then, and the saved steps are shown all the
    same.
    """

    moments: list[Moment]
    curve: list[tuple[int, float]]
    flow_steps: list[int]
    flows: list[Flow]
    problem: str | None = None


def history(readings: Readings, point: int, text: str, position: int) -> History:
    """Every saved step of the run that `point` belongs to."""
    library = readings.library
    chosen = library.point(point)
    mine = library.of(chosen.model)
    if len(mine) > POINTS:
        mine = sorted({mine[round(i * (len(mine) - 1) / (POINTS - 1))] for i in range(POINTS)})
    moments = [_moment(readings, i, text, position) for i in mine]
    try:
        return History(moments, _curve(chosen), *_flows(chosen))
    except ValueError as error:  # the base of every package's own error
        return History(moments, [], [], [], str(error))


@torch.inference_mode()
def _moment(readings: Readings, index: int, text: str, position: int) -> Moment:
    step = readings.library.point(index).step
    try:
        seen = readings.see(index, text)
    except ValueError as error:  # the base of every package's own error
        return Moment(index, step, None, [], str(error))
    logits, ids = seen.taps["logits"][0], torch.tensor(seen.read.ids)
    loss = float(torch.nn.functional.cross_entropy(logits[:-1], ids[1:])) if len(ids) > 1 else None
    at = min(position, len(ids) - 1)
    values, found = logits[at].softmax(dim=0).topk(min(GUESSES, logits.shape[1]))
    pairs = zip(found.tolist(), values.tolist(), strict=True)
    return Moment(index, step, loss, [Guess(i, token_text(seen.checkpoint, i), p) for i, p in pairs], None)


def _curve(point: Point) -> list[tuple[int, float]]:
    if point.run is None:
        return []
    rows = [(row["step"], row["loss"]) for row in obs.read_metrics(point.run) if _finite(row.get("loss"))]
    return rows[:: max(1, len(rows) // ROWS)]


def _flows(point: Point) -> tuple[list[int], list[Flow]]:
    """Of the gradients' histograms; a step that lacks a parameter counts 0 for it."""
    if point.run is None:
        return [], []
    found: dict[str, dict[int, float]] = {}
    for row in obs.read_histograms(point.run):
        if str(row["name"]).startswith("gradient/"):
            found.setdefault(str(row["name"]).removeprefix("gradient/"), {})[row["step"]] = _size(row)
    steps = sorted({step for values in found.values() for step in values})
    steps = steps[:: max(1, len(steps) // 60)]
    return steps, [Flow(name, [values.get(step, 0.0) for step in steps]) for name, values in found.items()]


def _size(row: dict[str, Any]) -> float:
    """The root mean square, each number taken as the middle of its bin."""
    counts, edges = row["counts"], row["edges"]
    middles = [(a + b) / 2 for a, b in pairwise(edges)]
    total = sum(counts)
    return math.sqrt(sum(c * m * m for c, m in zip(counts, middles, strict=True)) / total) if total else 0.0


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
