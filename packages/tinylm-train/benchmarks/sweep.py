"""A sweep of real size: which model is best for a budget, on the quickstart's text, with the fits and their picture.

    python packages/tinylm-train/benchmarks/sweep.py TEXT --folder DIR --json OUT --plot OUT.svg

Four sizes for each of three budgets (1.7e13 FLOPs in all: half an hour on one thread) over a vocabulary of 512 tokens,
so that the best size lies inside. `tinylm-train sweep` does the work; what stands in --folder is not trained again. The
numbers of the law hold for this text, this vocabulary and these lengths only. Not here: the fits (scaling_law.py).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tinylm.observability import tables
from tinylm.tokenizer import Tokenizer
from tinylm.training import prepare

DEPTHS, FLOPS = (1, 2, 3, 4), (6e11, 1.2e12, 2.4e12)


def rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each budget: the loss of each depth, and where the parabola through them is lowest."""
    made = []
    for fit in found["isoflop"]:
        losses = [run["loss"] for run in found["runs"] if run["flops"] == fit["flops"]]  # in the order of depths
        row: dict[str, Any] = {"FLOPs": f"{fit['flops']:.2g}"}
        row |= {f"depth {depth}": round(loss, 3) for depth, loss in zip(DEPTHS, losses, strict=True)}
        made.append(
            row | {"best size, parameters": int(round(fit["parameters"], -3)), "loss there": round(fit["loss"], 3)}
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path, help="the quickstart's: data/raw/shakespeare/shakespeare.txt")
    parser.add_argument("--folder", type=Path, required=True, help="for the runs; the same again goes on")
    parser.add_argument("--json", type=Path, required=True, metavar="OUT")
    parser.add_argument("--plot", type=Path, required=True, metavar="OUT.svg")
    options = parser.parse_args()

    text = options.text.read_text("utf-8")
    tokenizer, data, out = options.folder / "tokenizer", options.folder / "tokens", options.folder / "sweep"
    if not data.exists():
        Tokenizer.train([text[: len(text) * 9 // 10]], vocab_size=512).save(tokenizer)
        prepare([options.text], tokenizer, data, validation="tail:0.1")
    shared = options.folder / "sweep.toml"
    shared.write_text('batch_size = 8\ncontext = 128\nthreads = 1\ncompile = "never"\nweight_decay = 0.0\n', "utf-8")
    command = [sys.executable, "-m", "tinylm.training", "sweep", "--config", shared, "--data", data, "--out", out]
    command += ["--depths", ",".join(map(str, DEPTHS)), "--flops", ",".join(map(str, FLOPS))]
    if code := subprocess.run(command).returncode:
        raise SystemExit(code)
    found = json.loads((out / "sweep.json").read_text("utf-8"))
    law, best = found["law"], found["optimum"]
    title = (
        f"Validation loss, nats a token, for equal FLOPs; best size "
        f"{best['coefficient']:.2g} · C^{best['exponent']:.2f}; "
        f"L = {law['e']:.2f} + {law['a']:.3g} / N^{law['alpha']:.2f} + {law['b']:.3g} / D^{law['beta']:.2f}"
    )
    made = rows(found)
    line = "python packages/tinylm-train/benchmarks/sweep.py shakespeare.txt"
    tables.write_table(tables.new_table(title, line, list(made[0]), made), options.json)
    shutil.copyfile(out / "sweep.svg", options.plot)


if __name__ == "__main__":
    main()
