"""What one call of log costs, beside the same row by hand, a buffered CSV writer, and the loggers that are installed.

    python packages/tinylm-obs/benchmarks/logging_cost.py [--json FILE] [--quick]

Every way runs in processes of its own, in turns, because some leave threads behind; a figure is the median of 3
processes, each the least of 20 turns of 1,000 rows: other work on the machine only ever adds. "by hand" is json.dumps
and os.write of the same row (step, time and the scalars), without lock, attempt or a check for nan. CPU time is that of
the process, its threads included, and not of servers that it starts. Rows kept: a process logs 1,000 rows of 10 scalars
and kills itself with SIGKILL at once. For the peers: pip install trackio==0.43 tensorboard==2.21 wandb==0.31. It does
NOT measure what reading costs.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from loggers import WAYS, kept

CALLS, TURNS, PROCESSES, KILLED = 1_000, 20, 3, 1_000
COLUMNS = ["way", "1 scalar (µs CPU)", "10 scalars (µs CPU)", "× by hand, 1", "× by hand, 10"]
COLUMNS += ["import + init (s)", "rows kept of 1,000 after SIGKILL"]


def values(count: int) -> dict[str, float]:
    return {f"metric_{number}": 0.1234567890123 * (number + 1) for number in range(count)}


def child(way: str, folder: Path, count: int, kill: bool, turns: int) -> None:
    """In a process of its own: print what a row costs, or write rows and die."""
    started = time.perf_counter()
    log: Callable[[dict[str, float], int], Any] = WAYS[way][1](folder)
    began = time.perf_counter() - started
    row, step = values(count), 0
    if kill:
        for step in range(KILLED):
            log(row, step)
        os.kill(os.getpid(), signal.SIGKILL)
    costs = []
    for _ in range(turns):
        before = time.process_time()
        for _ in range(CALLS):
            log(row, step)
            step += 1
        costs.append((time.process_time() - before) / CALLS * 1e6)
    print(json.dumps({"cost": min(costs), "start": began}), flush=True)
    os._exit(0)  # what a logger does at its end is not asked


def measured(way: str, count: int, turns: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--child", way, "--folder", folder, "--count", str(count)]
        done = subprocess.run([*command, "--turns", str(turns)], capture_output=True, text=True, check=True)
        figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return figures


def rows_kept(way: str) -> int | None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--child", way, "--folder", folder, "--count", "10", "--kill"]
        subprocess.run(command, capture_output=True)
        time.sleep(2)  # a server of its own may still be writing
        return kept(way, Path(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of one call of log.")
    parser.add_argument("--json", type=Path, help="write the table here as well")
    parser.add_argument("--quick", action="store_true", help="one process and two turns each: does it run?")
    for hidden in ("--child", "--folder"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--turns", type=int, default=TURNS, help=argparse.SUPPRESS)
    parser.add_argument("--kill", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, Path(options.folder), options.count, options.kill, options.turns)
    ways = [way for way, (package, _) in WAYS.items() if package is None or find_spec(package)]
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    for _ in range(1 if options.quick else PROCESSES):
        for way in ways:
            for count in (1, 10):
                figures = measured(way, count, 2 if options.quick else TURNS)
                found.setdefault((way, count), []).append(figures)
    report(ways, found, options.json)


def report(ways: list[str], found: dict[tuple[str, int], list[dict[str, float]]], path: Path | None) -> None:
    from tinylm.observability.tables import cells, new_table, write_table

    def middle(way: str, count: int, what: str) -> float:
        return statistics.median(figures[what] for figures in found[way, count])

    hand = [middle("json.dumps + os.write by hand", count, "cost") for count in (1, 10)]
    rows = []
    for way in ways:
        costs = [middle(way, count, "cost") for count in (1, 10)]
        ratios = [cost / other for cost, other in zip(costs, hand, strict=True)]
        rows.append([way, *costs, *ratios, middle(way, 1, "start"), rows_kept(way)])
    table = new_table("Cost of one call", "python packages/tinylm-obs/benchmarks/logging_cost.py", COLUMNS, rows)
    for line in [COLUMNS, *cells(table)]:
        print("  ".join(text.ljust(40 if index == 0 else 20) for index, text in enumerate(line)))
    if path is not None:
        write_table(table, path)


if __name__ == "__main__":
    main()
