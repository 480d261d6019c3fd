"""The speedrun: how few CPU-seconds, on one thread, to a validation loss of at most 1.88 nats a character.

Tinyshakespeare by characters, the first 90 % of the file to train on, the full rest to judge; at most 0.9 M parameters.
nanoGPT's CPU recipe takes 104 CPU-s for 1.898. What counts is everything the process does: Python's start, the imports,
the training and the validation. Each seed is a process of its own.

    python packages/tinylm-train/benchmarks/speedrun.py --data tinyshakespeare.txt --seeds 5 --json out.json
    python packages/tinylm-train/benchmarks/speedrun.py                     # the quickstart's Shakespeare instead
    python packages/tinylm-train/benchmarks/speedrun.py --records           # every record, from the first; the table
    python packages/tinylm-train/benchmarks/speedrun.py --recipe long       # any size, in nanoGPT's 104 CPU-s

Every record is the project's own Transformer and optimisers; a record says what changed. Not here: checkpoints, logs,
resuming (tinylm-train pretrain does all that); the ideas that lost (docs/log.md). Next: recipes.py beside this file.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from recipes import LONG, RECORDS, Recipe

HERE = Path(__file__).resolve().parent
QUICKSTART = HERE.parents[2] / "data" / "raw" / "shakespeare" / "shakespeare.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
SOURCE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
TARGET = 1.88  # nats a character, mean over the seeds


def run(recipe: Recipe, file: Path, seed: int) -> dict[str, Any]:
    """Train once in this process. Times are CPU seconds since the process began."""
    import torch
    from recipes import build, train

    torch.set_num_threads(1)
    text = file.read_text(encoding="utf-8")
    alphabet = {character: number for number, character in enumerate(sorted(set(text)))}
    ids = torch.tensor([alphabet[character] for character in text])
    cut = len(ids) * 9 // 10
    model = build(recipe, len(alphabet), seed)
    begun = time.process_time()
    train(model, recipe, ids[:cut], seed)
    trained = time.process_time()
    loss = validation_loss(model, ids[cut:], recipe)
    return {
        "validation_loss": loss,
        "cpu_seconds": time.process_time(),
        "training_cpu_seconds": trained - begun,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def validation_loss(model: Any, ids: Any, recipe: Recipe) -> float:
    """Mean nats a character over all of `ids` (N,), in windows of the recipe's context that do not overlap."""
    import torch

    context, nats = recipe.context, 0.0
    whole = (len(ids) - 1) // context
    rows = ids[: whole * context + 1].unfold(0, context + 1, context)
    rest = ids[None, whole * context :]  # what is left over at the end
    with torch.no_grad():
        for group in [*rows.split(max(1, 16384 // context)), *([rest] if rest.shape[1] > 1 else [])]:
            nats += float(model.loss(group[:, :-1], group[:, 1:], reduction="sum"))
    return nats / (len(ids) - 1)


def in_processes(recipe: Recipe, file: Path, seeds: int) -> list[dict[str, Any]]:
    """One fresh process a seed, one after the other."""
    runs = []
    for seed in range(seeds):
        command = [sys.executable, __file__, "--recipe", recipe.name, "--data", str(file), "--only-seed", str(seed)]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
        )
        if done.returncode:
            raise SystemExit(f"error: seed {seed} of {recipe.name} ended with exit code {done.returncode}")
        runs.append(json.loads(done.stdout.splitlines()[-1]))
        loss, seconds = runs[-1]["validation_loss"], runs[-1]["cpu_seconds"]
        print(f"{recipe.name}, seed {seed}: {loss:.4f} nats in {seconds:.2f} CPU-s", file=sys.stderr, flush=True)
    return runs


def summary(recipe: Recipe, runs: list[dict[str, Any]]) -> dict[str, Any]:
    losses = [one["validation_loss"] for one in runs]
    return {
        "record": recipe.name,
        "who": recipe.who,
        "what changed": recipe.changed,
        "parameters": runs[0]["parameters"],
        "characters seen": recipe.steps * recipe.batch * recipe.context,
        "validation loss": round(statistics.mean(losses), 4),
        "p (loss ≤ 1.88)": p_value(losses),
        "CPU-s, training": round(statistics.mean(one["training_cpu_seconds"] for one in runs), 2),
        "CPU-s, all": round(statistics.mean(one["cpu_seconds"] for one in runs), 2),
    }


def p_value(losses: list[float]) -> float | None:
    """How likely losses this low are if the true mean is 1.88: Student's t-test, one-sided. None for a single run."""
    n = len(losses)
    if n < 2:
        return None
    spread = statistics.stdev(losses)
    t = (TARGET - statistics.mean(losses)) / (max(spread, 1e-12) / math.sqrt(n))
    return float(f"{_student_tail(t, n - 1):.2g}")


def _student_tail(t: float, freedom: int) -> float:
    """P(T > t) by Simpson's rule over the angle: T = √ν tan φ has the density ∝ cos^(ν−1) φ."""
    phi, steps = math.atan(t / math.sqrt(freedom)), 2000

    def area(low: float, high: float) -> float:
        h = (high - low) / steps
        values = [math.cos(low + i * h) ** (freedom - 1) for i in range(steps + 1)]
        return h / 3 * (values[0] + values[-1] + 4 * sum(values[1:-1:2]) + 2 * sum(values[2:-1:2]))

    return max(0.0, area(phi, math.pi / 2) / area(-math.pi / 2, math.pi / 2))


def chosen_file(data: Path | None) -> Path:
    """The text to train on; what is not the known file is said, never taken for it."""
    if data is None:
        if not QUICKSTART.is_file():
            fetch = "python packages/tinylm-tokenizer/benchmarks/fetch_data.py shakespeare"
            raise SystemExit(f"error: wanted the quickstart's text, found none; run: {fetch}")
        return QUICKSTART
    if not data.is_file():
        raise SystemExit(f"error: wanted tinyshakespeare at {data}, found no file; it is at {SOURCE}")
    if data != QUICKSTART and hashlib.sha256(data.read_bytes()).hexdigest() != SHA256:
        print(
            f"note: {data.name} is not tinyshakespeare (sha256 {SHA256[:12]}…): its figure is its own", file=sys.stderr
        )
    return data


def main() -> None:
    recipes = {recipe.name: recipe for recipe in (*RECORDS, LONG)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, metavar="FILE", help="tinyshakespeare; the quickstart's text when not given"
    )
    parser.add_argument("--seeds", type=int, default=5, help="runs, seeds 0, 1, ... (5)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures there")
    parser.add_argument("--recipe", choices=recipes, default=RECORDS[-1].name, help="the newest record when not given")
    parser.add_argument("--records", action="store_true", help="all records in turn")
    parser.add_argument("--quick", action="store_true", help="one seed, nothing written")
    parser.add_argument("--only-seed", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error("wanted at least one seed")
    file = chosen_file(options.data)
    if options.only_seed is not None:
        print(json.dumps(run(recipes[options.recipe], file, options.only_seed)))
        return
    names = [recipe.name for recipe in RECORDS] if options.records else [options.recipe]
    rows, runs = [], []
    for name in names:
        runs = in_processes(recipes[name], file, 1 if options.quick else options.seeds)
        rows.append(summary(recipes[name], runs))
        if options.records:
            rows[-1]["CPU-s, all, before"] = rows[-2]["CPU-s, all"] if len(rows) > 1 else None
    report(rows, runs, recipes[names[-1]], file, None if options.quick else options.json)


def report(
    rows: list[dict[str, Any]], runs: list[dict[str, Any]], recipe: Recipe, file: Path, out: Path | None
) -> None:
    """Print the table, and write it with the last recipe's runs."""
    from tinylm.observability import tables

    from_here = "" if file == QUICKSTART else " --data tinyshakespeare.txt"
    which = " --records" if len(rows) > 1 else f" --recipe {recipe.name}" if recipe is LONG else ""
    command = f"python packages/tinylm-train/benchmarks/speedrun.py{from_here} --seeds {len(runs)}{which}"
    table = tables.new_table("Speedrun, one thread", command, list(rows[0]), rows)
    table |= {
        "mean_validation_loss": statistics.mean(one["validation_loss"] for one in runs),
        "mean_cpu_seconds": statistics.mean(one["cpu_seconds"] for one in runs),
        "runs": runs,
        "recipe": dataclasses.asdict(recipe),
        "text": {"name": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()},
    }
    for row in rows:
        print("  ".join(f"{name}: {value}" for name, value in row.items()))
    print(f"mean validation loss {table['mean_validation_loss']:.4f} nats, mean {table['mean_cpu_seconds']:.2f} CPU-s")
    if out is not None:
        tables.write_table(table, out)


if __name__ == "__main__":
    main()
