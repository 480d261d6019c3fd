"""The picture of a sweep: loss over size, a curve for each budget, its best size marked, and the line of best sizes.

Not here: the fits (scaling_law.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tinylm.training._errors import TrainingError


def plot(found: dict[str, Any], file: Path) -> None:
    """Draw what sweep.json holds; the file's ending says how (.svg, .png, .pdf). TrainingError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise TrainingError(
            'wanted matplotlib to draw the sweep, got no such package: pip install "tinylm-train[plot]"'
        ) from None
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    losses, sizes = figure.subplots(1, 2)
    for flops in sorted({run["flops"] for run in found["runs"]}):
        mine = sorted((run["parameters"], run["loss"]) for run in found["runs"] if run["flops"] == flops)
        (dots,) = losses.plot(*zip(*mine, strict=True), "o", label=f"{flops:.3g} FLOPs")
        for curve in (one for one in found["isoflop"] if one["flops"] == flops):
            range_ = np.geomspace(mine[0][0], mine[-1][0], 100)
            losses.plot(range_, np.polyval(curve["curve"], np.log(range_)), color=dots.get_color())
            mark = "*" if curve["inside"] else "x"
            losses.plot(curve["parameters"], curve["loss"], mark, color=dots.get_color(), markersize=14)
            sizes.loglog(flops, curve["parameters"], mark, color=dots.get_color(), markersize=14)
    losses.set(xscale="log", xlabel="parameters", ylabel="validation loss, nats a token", title="equal FLOPs")
    losses.legend()
    sizes.set(xlabel="FLOPs", ylabel="best parameters", title="best size")
    if found["optimum"] is not None:
        k, exponent = found["optimum"]["coefficient"], found["optimum"]["exponent"]
        budgets = np.array(sorted({run["flops"] for run in found["runs"]}))
        sizes.loglog(budgets, k * budgets**exponent, "--", label=f"{k:.2g} · C^{exponent:.2f}")
        sizes.legend()
    new = file.with_name(f".new-{file.name}")
    figure.savefig(new)
    new.replace(file)
