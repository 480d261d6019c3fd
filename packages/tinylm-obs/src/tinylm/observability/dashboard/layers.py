"""tinylm-obs · per-layer figures → heat maps: one row a layer, one column a look, colour the figure.

`obs.watch` logs "STATISTIC/LAYER"; whatever else has such names is shown as well. It does NOT draw (`charts.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from .._values import is_finite
from .metrics import Curve
from .reduce import thinned

STATISTICS = {  # in the order in which they are offered
    "gradient_norm": "Gradient norm",
    "update_ratio": "Update / weight",
    "activation_rms": "Activation, root mean square",
    "activation_max": "Activation, largest",
    "weight_norm": "Weight norm",
    "dead_units": "Dead units, share",
    "attention_entropy": "Entropy of attention (nats)",
}
_COLUMNS = 240


@dataclass(frozen=True)
class Heat:
    """steps: of the columns, the last step of each. layers: of the rows. cells: (column, row, figure); nan or inf where
    the figure was not finite."""

    steps: list[int]
    layers: list[str]
    cells: list[tuple[int, int, float]]


def per_layer(curves: Mapping[str, Curve]) -> dict[str, list[str]]:
    """statistic → its layers; known statistics first, layers in the order in which the model runs through them."""
    found: dict[str, list[str]] = {}
    for name in curves:
        statistic, slash, layer = name.partition("/")
        if slash:
            found.setdefault(statistic, []).append(layer)
    forward = {layer: place for place, layer in enumerate(found.get("activation_rms", ()))}
    for layers in found.values():
        layers.sort(key=lambda layer: forward.get(layer, len(forward)))
    order = [*STATISTICS, *found]
    return {name: found[name] for name in sorted(found, key=order.index)}


def heat(curves: Mapping[str, Curve], statistic: str, columns: int = _COLUMNS) -> Heat:
    """The figures of one statistic. Where there are more looks than `columns`, a cell is the largest of its looks: a
    spike stays to be seen."""
    layers = per_layer(curves).get(statistic, [])
    lines = [curves[f"{statistic}/{layer}"] for layer in layers]
    steps = sorted({step for line in lines for step in line.steps})
    stretches = thinned(steps, columns)
    column_of = {step: column for column, (start, end) in enumerate(stretches) for step in steps[start:end]}
    cells: dict[tuple[int, int], float] = {}
    for row, line in enumerate(lines):
        for step, value in zip(line.steps, line.values, strict=True):
            key = (column_of[step], row)
            cells[key] = _worse(cells[key], value) if key in cells else value
    return Heat(
        [steps[end - 1] for _, end in stretches], layers, [(*place, value) for place, value in sorted(cells.items())]
    )


def _worse(first: float, second: float) -> float:
    if not is_finite(first):
        return first
    return second if not is_finite(second) else max(first, second)
