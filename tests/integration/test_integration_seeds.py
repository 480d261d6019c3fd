"""What `tinylm-obs compare` says of several seeds of real training runs, beside SciPy on the same files."""

import json
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest

from tinylm.training import TrainConfig, Trainer

stats = pytest.importorskip("scipy.stats")


def lasts(run: Path, name: str) -> float:
    """The last figure that was logged under a name, read by hand."""
    rows = [json.loads(line) for line in (run / "run" / "metrics.jsonl").read_text().splitlines()]
    found: float = [row[name] for row in rows if name in row][-1]
    return found


def test_compare_says_what_scipy_says(house: Any, tmp_path: Path, command: Callable[..., Any]) -> None:
    """Two learning rates, of one three seeds and of the other two: mean, deviation and p of Welch's t-test."""
    groups = {0.02: [0, 1, 2], 0.001: [0, 1]}
    runs = {rate: [tmp_path / f"{rate}-{seed}" for seed in seeds] for rate, seeds in groups.items()}
    options = {
        "depth": 1,
        "steps": 6,
        "context": 64,
        "batch_size": 2,
        "dtype": "float32",
        "device": "cpu",
        "threads": 1,
    }
    for rate, seeds in groups.items():
        for seed, out in zip(seeds, runs[rate], strict=True):
            config = TrainConfig(data=str(house.tokens), out=str(out), learning_rate=rate, seed=seed, **options)
            Trainer(config).train()
    shown = command("tinylm-obs", "compare", *runs[0.02], *runs[0.001]).stdout
    table = [line.split() for line in shown.splitlines() if "±" in line]
    for name in ("loss", "gradient_norm", "validation_bits_per_character"):
        first, second = ([lasts(run, name) for run in runs[rate]] for rate in groups)
        (row,) = [line for line in table if line[0] == name]
        said = [float(row[place].replace(",", "")) for place in (1, 3, 4, 6, 7)]
        p = stats.ttest_ind(first, second, equal_var=False).pvalue
        assert said == pytest.approx([mean(first), stdev(first), mean(second), stdev(second), p], rel=0.01), name
