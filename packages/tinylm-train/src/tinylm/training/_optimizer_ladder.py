"""The ladders of the component "optimizer": each update rule by hand, at once, fused.

Work is the matrices and gains of a small transformer with gradients; a rung takes ten updates from the same start.
Plain data, no import of torch before work is made. Not here: timing (tinylm.observability), the rules
(optimizers/loop.py).
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

UPDATES = 10
_WIDTH = 64
_RULES: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
    "Adam": {"lr": 1e-3, "weight_decay": 0.01},
    "AdamW": {"lr": 1e-3, "weight_decay": 0.1},
    "Lion": {"lr": 1e-4, "weight_decay": 0.1},
    "Muon": {"lr": 0.02, "weight_decay": 0.1},
}
_FOREACH = "a call of each operation for each parameter took the time: one call for all of them"
_FUSED = "every operation went through memory: one kernel reads and writes each number once"
_PRODUCTS = "adding and scaling between the products took the time: baddbmm does both inside the product"


class Work(NamedTuple):
    """Parameters and gradients, of blocks of width 64; `size` blocks."""

    parameters: list[Tensor]
    gradients: list[Tensor]


def rungs() -> list[dict[str, Any]]:
    """Lowest rung first within each rule; see tinylm.observability for the meaning of the keys."""
    return [rung for rule in _RULES for rung in _ladder(rule)]


def _ladder(rule: str) -> list[dict[str, Any]]:
    common = {
        "component": "optimizer",
        "ladder": f"{rule}, {UPDATES} updates of blocks of width {_WIDTH}",
        "make": _make_matrices if rule == "Muon" else _make,
        "amount": lambda work: UPDATES * sum(p.numel() for p in work.parameters),
        "compare": _difference,
        "cost": lambda work: _cost(rule, work),
        "exact": lambda work: _run(rule, "loop", Work(*([t.double() for t in part] for part in work))),
        "unit": "numbers",
        "size": 12,
    }
    steps = [("loop", "the paper's lines, one parameter after the other"), ("foreach", _FOREACH)]
    if rule != "Lion":  # torch has no kernel for it
        steps.append(("fused", _PRODUCTS if rule == "Muon" else _FUSED))
    return [
        common
        | {
            "rung": name,
            "module": f"tinylm.training.optimizers.{name}",
            "change": change,
            "equals": None if name == "loop" else "loop",
            "run": lambda work, name=name: _run(rule, name, work),
        }
        for name, change in steps
    ]


def _cost(rule: str, work: Work) -> tuple[float, float, str]:
    """The least: each update reads weight, gradient and state and writes weight and state once; Muon's products."""
    numbers = sum(p.numel() for p in work.parameters)
    moved = {"SGD": 5, "Lion": 5, "Muon": 5}.get(rule, 7) * 4.0 * numbers
    flops = 10.0 * numbers
    if rule == "Muon":  # five steps of X Xᵀ, its square, and one more product, on the shorter side
        sides = [sorted(p.shape) for p in work.parameters]
        flops = sum(5 * (4.0 * short * short * long + 2.0 * short**3) for short, long in sides)
    return UPDATES * flops, UPDATES * moved, "float32"


def _make(size: int) -> Work:
    shapes = [(_WIDTH, _WIDTH)] * 4 + [(3 * _WIDTH, _WIDTH)] * 2 + [(_WIDTH, 3 * _WIDTH)] + [(_WIDTH,)] * 2
    return _draw(shapes * size)


def _make_matrices(size: int) -> Work:
    shapes = [(_WIDTH, _WIDTH)] * 4 + [(3 * _WIDTH, _WIDTH)] * 2 + [(_WIDTH, 3 * _WIDTH)]
    return _draw(shapes * size)


def _draw(shapes: Sequence[tuple[int, ...]]) -> Work:
    import torch

    generator = torch.Generator().manual_seed(0)
    drawn = [[torch.randn(shape, generator=generator) for shape in shapes] for _ in range(2)]
    return Work(*drawn)


def _run(rule: str, rung: str, work: Work) -> list[Tensor]:
    """The parameters after some updates; the work's own stay as they are."""
    import torch

    kind = getattr(importlib.import_module(f"tinylm.training.optimizers.{rung}"), rule)
    parameters = [torch.nn.Parameter(p.clone()) for p in work.parameters]
    optimizer = kind(parameters, **_RULES[rule])
    for parameter, gradient in zip(parameters, work.gradients, strict=True):
        parameter.grad = gradient
    for _ in range(UPDATES):
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


def _difference(result: list[Tensor], reference: list[Tensor]) -> float:
    """The largest difference of a number."""
    return max(float((a - b).abs().max()) for a, b in zip(result, reference, strict=True))
