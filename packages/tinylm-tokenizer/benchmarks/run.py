"""Every benchmark of the tokenizer, and the one table of the README: rungs, exactness, speed, peers.

    python packages/tinylm-tokenizer/benchmarks/fetch_data.py --all
    python packages/tinylm-tokenizer/benchmarks/run.py [--quick] [PART ...]

PART: encoding, worst, training, wordpiece, sentencepiece_family (without one: all). Each is a file beside this one that
writes its own tables below results/. The summary is made from those tables, whenever they were measured (no --quick);
`run.py summary` measures nothing.
The peers: pip install -r packages/tinylm-tokenizer/benchmarks/peers.txt
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from typing import Any

from _bench import HERE, RESULTS, table

PARTS = ("encoding", "worst", "training", "wordpiece", "sentencepiece_family")
RESULT_OF = {  # the last that a part writes
    "encoding": "start_and_worst.json",
    "training": "training.json",
    "worst": "worst.json",
    "wordpiece": "wordpiece.json",
    "sentencepiece_family": "sentencepiece.json",
}
COLUMNS = ["job", "unit", "plain", "incremental", "kernels", "best peer", "peer", "× peer", "exactness", "measured"]
LOWER_IS_BETTER = ("ms", "CPU s", "MB of memory")


def summary_row(row: dict[str, Any]) -> list[Any]:
    """A row of the summary table; × peer is above 1 where the highest rung is ahead."""
    kernels, peer = row.get("kernels", row.get("incremental")), row.get("peer_figure")
    ratio: float | str = "–"
    if isinstance(kernels, (int, float)) and isinstance(peer, (int, float)) and kernels and peer:
        ratio = peer / kernels if row["unit"] in LOWER_IS_BETTER else kernels / peer
    figures = [row.get(name, "–") for name in ("plain", "incremental", "kernels")]
    return [
        row["job"],
        row["unit"],
        *figures,
        peer or "–",
        row.get("peer", "–"),
        ratio,
        row.get("exact", "–"),
        row["date"],
    ]


def training() -> list[dict[str, Any]]:
    """The rows of the summary, from the table that training.py wrote."""
    rows = json.loads((RESULTS / "training.json").read_text())["rows"]
    jobs: dict[str, dict[str, list[Any]]] = {}
    for row in rows:
        jobs.setdefault(row[0], {})[row[1]] = row
    found = []
    for job, who in jobs.items():
        if "kernels, 1 thread" in who:
            peers = [name for name in who if not name.startswith("kernels") and name.endswith("1 thread")]
            for unit, column in (("CPU s", 2), ("MB of memory", 4)):
                best = min(peers, key=lambda name: who[name][column])
                ours = who["kernels, 1 thread"][column]
                figures = {"kernels": ours, "peer": best.partition(",")[0], "peer_figure": who[best][column]}
                found.append({"job": job, "unit": unit, **figures, "exact": "merges = gigabpe's, tokenizers'"})
        else:
            plain, quick, peer = (who[name][2] for name in ("byte_bpe", "byte_bpe_fast", "minbpe's algorithm"))
            figures = {"plain": plain, "incremental": quick, "peer": "minbpe's algorithm", "peer_figure": peer}
            found.append({"job": job, "unit": "CPU s", **figures, "exact": "every rung the same"})
    return found


def main() -> None:
    wanted = [word for word in sys.argv[1:] if not word.startswith("-")]
    if unknown := [word for word in wanted if word not in (*PARTS, "summary")]:
        raise SystemExit(f"unknown part {', '.join(unknown)}: choose from {', '.join(PARTS)}")
    options = [word for word in sys.argv[1:] if word.startswith("-")]
    for part in [] if wanted == ["summary"] else wanted or PARTS:
        if subprocess.run([sys.executable, str(HERE / f"{part}.py"), *options]).returncode:
            raise SystemExit(f"{part}.py ended with the error above")
    if "--quick" in options:  # nothing was written: the summary would be of older figures
        return
    found: list[dict[str, Any]] = []
    for part in PARTS:
        if not (RESULTS / RESULT_OF[part]).is_file():
            print(f"no results of {part}: rows left out")
        else:
            rows = training() if part == "training" else importlib.import_module(part).summary()
            date = json.loads((RESULTS / RESULT_OF[part]).read_text())["date"]
            found += [{"date": date, **row} for row in rows]
    table(
        "summary",
        "The rungs and the best peer of each job; × peer above 1: ours is ahead",
        "python packages/tinylm-tokenizer/benchmarks/run.py",
        COLUMNS,
        [summary_row(row) for row in found],
        ["numpy", "regex"],
    )


if __name__ == "__main__":
    main()
