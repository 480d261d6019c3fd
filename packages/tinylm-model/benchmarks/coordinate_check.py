"""Do activations keep their size when the dial is turned? A coordinate check (Yang et al. 2022, appendix D.1).

    python packages/tinylm-model/benchmarks/coordinate_check.py [--json FILE] [--plot FILE.svg] [--quick]

Models of several widths (depth 4) and of several depths (width 128) are trained for a few steps on one made text, with
the initialisation and the learning rates that the dial gives them. Recorded is the mean size of each kind of value on a
fixed batch, before the first step and after the last. If size ~ width^s, s is the slope of a line through the points in
logarithms: 0 means that the rule is right, and a learning rate found on a small model stands for a large one. The
figure is the mean of three seeds. It does NOT say which learning rate is best. matplotlib is needed for --plot only.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from tinylm.model import Transformer
from tinylm.observability.tables import cells, new_table, write_table
from tinylm.training import TrainConfig
from tinylm.training.optimizers import optimizers_for

WIDTHS, DEPTHS = (64, 128, 256, 512), (2, 4, 8, 16)
VOCABULARY, BATCH, TIME = 512, 8, 64
KINDS = {  # what is shown, and the tap of the last block (or of the model) that holds it
    "attention's output": "attention.output",
    "MLP's output": "mlp",
    "residual stream": "output",
    "logits": "logits",
}


def made_text(steps: int, seed: int) -> torch.Tensor:
    """(steps, BATCH, TIME + 1) ids of a made language: each word has eight followers, the first the likeliest."""
    generator = torch.Generator().manual_seed(seed)
    followers = torch.randint(VOCABULARY, (VOCABULARY, 8), generator=generator)
    likely = 1 / torch.arange(1.0, 9.0)
    ids = torch.empty(steps, BATCH, TIME + 1, dtype=torch.long)
    ids[..., 0] = torch.randint(VOCABULARY, (steps, BATCH), generator=generator)
    for place in range(TIME):
        choice = likely.expand(steps * BATCH, 8).multinomial(1, generator=generator).view(steps, BATCH, 1)
        ids[..., place + 1] = followers[ids[..., place]].gather(2, choice)[..., 0]
    return ids


def sizes(model: Transformer, ids: torch.Tensor) -> dict[str, float]:
    """The mean size of each kind of value."""
    taps: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        model(ids, taps=taps)
    last = f"blocks.{model.config.depth - 1}."
    return {kind: taps[tap if tap in taps else last + tap].abs().mean().item() for kind, tap in KINDS.items()}


def trained(optimizer: str, width: int, depth: int, steps: int, seed: int) -> list[dict[str, float]]:
    """The sizes before the first step and after the last, on the batch that comes after the last."""
    config, shape = TrainConfig(
        preset="qwen3", optimizer=optimizer, width=width, depth=depth, context=TIME, steps=steps
    ).resolve(VOCABULARY)
    torch.manual_seed(seed)
    model, text = Transformer(shape), made_text(steps + 1, seed)
    found = [sizes(model, text[-1, :, :-1])]
    optimizers = optimizers_for(model, config).values()
    for batch in text[:-1]:
        model.loss(batch[:, :-1], batch[:, 1:]).backward()
        for each in optimizers:
            each.step()
            each.zero_grad()
    return [*found, sizes(model, text[-1, :, :-1])]


def slope(places: tuple[int, ...], values: list[float]) -> float:
    """s of size ~ place^s, by least squares in logarithms."""
    x, y = [math.log(place) for place in places], [math.log(value) for value in values]
    middle, height = mean(x), mean(y)
    top = sum((a - middle) * (b - height) for a, b in zip(x, y, strict=True))
    return top / sum((a - middle) ** 2 for a in x)


def measured(quick: bool) -> list[dict[str, Any]]:
    """A row for each optimiser, dial and kind of value, with the sizes themselves beside the slopes."""
    steps, seeds = (2, 1) if quick else (10, 3)
    rows = []
    for optimizer in ("muon", "adamw"):
        for dial, places in (("width", WIDTHS), ("depth", DEPTHS)):
            places = places[:2] if quick else places
            runs = [
                [trained(optimizer, p, 4, steps, s) if dial == "width" else trained(optimizer, 128, p, steps, s)
                 for s in range(seeds)]
                for p in places
            ]  # fmt: skip
            for kind in KINDS:
                first, last = ([mean(run[at][kind] for run in group) for group in runs] for at in (0, 1))
                rows.append(
                    {
                        "optimiser": optimizer,
                        "dial": dial,
                        "value": kind,
                        "slope at the start": round(slope(places, first), 3),
                        f"after {steps} steps": round(slope(places, last), 3),
                        "places": list(places),
                        "sizes": {"start": first, "end": last},
                    }
                )
    return rows


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """A panel for each optimiser and dial: size against place, dashed at the start, whole after the steps."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "tinylm"  # the same picture is the same file
    from matplotlib import pyplot

    panels = sorted({(row["optimiser"], row["dial"]) for row in rows}, reverse=True)
    figure, axes = pyplot.subplots(1, len(panels), figsize=(3.2 * len(panels), 3.2), sharey=True)
    for axis, (optimizer, dial) in zip(axes, panels, strict=True):
        for row in rows:
            if (row["optimiser"], row["dial"]) == (optimizer, dial):
                (line,) = axis.plot(row["places"], row["sizes"]["end"], marker="o", markersize=3, label=row["value"])
                axis.plot(row["places"], row["sizes"]["start"], "--", color=line.get_color(), linewidth=1)
        axis.set(xscale="log", yscale="log", xlabel=dial, title=optimizer, xticks=row_places(rows, dial))
        axis.set_xticklabels(row_places(rows, dial))
        axis.minorticks_off()
    axes[0].set_ylabel("mean size (dashed: at the start)")
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def row_places(rows: list[dict[str, Any]], dial: str) -> list[int]:
    """The widths, or the depths."""
    return next(row["places"] for row in rows if row["dial"] == dial)


def main() -> None:
    parser = argparse.ArgumentParser(description="Do activations keep their size when the dial is turned?")
    parser.add_argument("--json", type=Path, help="write the table here as well")
    parser.add_argument("--plot", type=Path, help="draw it here: .svg or .png")
    parser.add_argument("--quick", action="store_true", help="two steps, two sizes: does it run?")
    options = parser.parse_args()
    rows = measured(options.quick)
    columns = list(rows[0])[:5]
    command = "python packages/tinylm-model/benchmarks/coordinate_check.py"
    table = new_table("Coordinate check: size ~ width^slope", command, columns, rows)
    for line in [columns, *cells(table)]:
        print("  ".join(text.ljust(20) for text in line))
    if options.json is not None:
        write_table(table, options.json)
    if options.plot is not None:
        draw(rows, options.plot)


if __name__ == "__main__":
    main()
