"""What one call of log costs, beside the same row written by hand and a buffered CSV writer.

    python packages/tinylm-obs/benchmarks/logging_cost.py [--json FILE] [--quick]

Each way writes 2,000 rows at a time to a new file, the ways take turns, the figure is the median of 15 turns. "by
hand" is json.dumps and os.write of the same row (step, time and the scalars), without lock, attempt or a check for
nan. It does NOT measure what survives a kill: tests/observability does.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tinylm import observability as obs
from tinylm.observability.buffered_csv import BufferedCsv
from tinylm.observability.tables import cells, new_table, write_table
from tinylm.observability.timing import interleaved

CALLS = 2_000
TURNS = 15


def by_hand(directory: Path, values: dict[str, float]) -> None:
    descriptor = os.open(directory / "hand.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC)
    for step in range(CALLS):
        os.write(descriptor, (json.dumps({"step": step, "time": time.time(), **values}) + "\n").encode())
    os.close(descriptor)


def with_obs(run: obs.Run, values: dict[str, float]) -> None:
    for step in range(CALLS):
        run.log(values, step=step)


def buffered_csv(directory: Path, values: dict[str, float]) -> None:
    file = BufferedCsv(directory / "rows.csv")
    for step in range(CALLS):
        file.append({"step": step, "time": time.time(), **values})
    file.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of one call of log.")
    parser.add_argument("--json", type=Path, help="write the table here as well")
    parser.add_argument("--quick", action="store_true", help="three turns only: does it run?")
    options = parser.parse_args()
    costs: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        for count in (1, 10):
            values = {f"metric_{number}": 0.1234567890123 * (number + 1) for number in range(count)}
            with obs.init(directory / f"run-{count}") as run:
                ways: dict[str, Callable[[], None]] = {
                    "buffered CSV (a kill loses the buffer)": partial(buffered_csv, directory, values),
                    "json.dumps + os.write by hand": partial(by_hand, directory, values),
                    "run.log": partial(with_obs, run, values),
                }
                for way, figures in interleaved(ways, 3 if options.quick else TURNS).items():
                    costs.setdefault(way, []).append(figures.cpu_seconds / CALLS * 1e6)
    hand = costs["json.dumps + os.write by hand"]
    columns = ["way", "1 scalar (µs CPU)", "10 scalars (µs CPU)", "× by hand, 1", "× by hand, 10"]
    rows = [
        [way, *both, *(cost / other for cost, other in zip(both, hand, strict=True))] for way, both in costs.items()
    ]
    table = new_table("Cost of one call", "python packages/tinylm-obs/benchmarks/logging_cost.py", columns, rows)
    for line in [columns, *cells(table)]:
        print("  ".join(text.ljust(40 if index == 0 else 20) for index, text in enumerate(line)))
    if options.json is not None:
        write_table(table, options.json)


if __name__ == "__main__":
    main()
