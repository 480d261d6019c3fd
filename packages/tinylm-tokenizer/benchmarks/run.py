"""Every benchmark of the tokenizer, and the one table of the README: rungs, exactness, speed, peers.

    python packages/tinylm-tokenizer/benchmarks/fetch_data.py --all
    python packages/tinylm-tokenizer/benchmarks/run.py [--quick] [PART ...]

PART: encoding, plain, training, sentencepiece, wordpiece (without one: all). Each part is a file beside this one whose
`main()` measures, writes its own tables below results/ and returns rows for the summary; a part that is not run now
keeps the rows of its last run. The peers: pip install -r packages/tinylm-tokenizer/benchmarks/peers.txt
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

from _bench import HERE, RESULTS, table

PARTS = {
    "encoding": "encoding",
    "plain": "plain",
    "training": "training",
    "sentencepiece": "spm",
    "wordpiece": "wordpiece",
}
COLUMNS = ["job", "unit", "plain", "incremental", "kernels", "best peer", "peer", "× peer", "exactness"]
LOWER_IS_BETTER = ("ms", "CPU s", "MB of memory")


def summary_row(row: dict[str, Any]) -> list[Any]:
    """A row of the summary table; × peer is above 1 where the kernels are ahead."""
    kernels, peer = row.get("kernels"), row.get("peer_figure")
    ratio: float | str = "–"
    if isinstance(kernels, (int, float)) and isinstance(peer, (int, float)) and kernels and peer:
        ratio = peer / kernels if row["unit"] in LOWER_IS_BETTER else kernels / peer
    figures = [row.get(name, "–") for name in ("plain", "incremental", "kernels")]
    return [row["job"], row["unit"], *figures, peer or "–", row.get("peer", "–"), ratio, row.get("exact", "–")]


def main() -> None:
    wanted = [word for word in sys.argv[1:] if not word.startswith("-")]
    if unknown := [word for word in wanted if word not in PARTS]:
        raise SystemExit(f"unknown part {', '.join(unknown)}: choose from {', '.join(PARTS)}")
    options = [word for word in sys.argv[1:] if word.startswith("-")]
    file = RESULTS / "summary.json"
    found: dict[str, list[dict[str, Any]]] = json.loads(file.read_text())["parts"] if file.is_file() else {}
    for part in wanted or [part for part in PARTS if (HERE / f"{PARTS[part]}.py").is_file()]:
        sys.argv = [f"{PARTS[part]}.py", *options]
        found[part] = importlib.import_module(PARTS[part]).main()
    table(
        "summary",
        "The rungs and the best peer of each job; × peer above 1: ours is ahead",
        "python packages/tinylm-tokenizer/benchmarks/run.py",
        COLUMNS,
        [summary_row(row) for part in PARTS for row in found.get(part, [])],
        ["numpy", "regex"],
        parts=found,
    )


if __name__ == "__main__":
    main()
