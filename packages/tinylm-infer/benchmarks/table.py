"""One table: every rung of decoding, its speed, its part of the roofline, its exactness, and the peers beside.

    python packages/tinylm-infer/benchmarks/table.py [--again PART ...] [--peers PYTHON] [--checkpoint DIR --text FILE]

Each part is a script of its own, whose results stand in `results/`; one that stands there is taken as it is, and
measured where it is missing or named by `--again`: ladder (`tinylm-obs ladder decoding`: 24 texts with a beginning in
common, a small model), decode and batch (decode.py: GPT-2's shape, peers in the same interleaved run, with the Python
of an environment that has them), exactness (exactness.py), quality (quantization_quality.py, with `--data`).
What was broken off goes on where it was, also after minutes of quiet here and there (`timeout 450 python ...` again and
again): pieces are kept in `--keep`. Then the table is written to `results/table.json`
and into the README. Speed is tokens per CPU-second on one thread.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from tinylm.observability import tables

HERE = Path(__file__).parent
PARTS = {
    "ladder": "ladder_decoding.json",
    "decode": "decode.json",
    "batch": "batch_and_prefill.json",
    "exactness": "exactness.json",
    "quality": "quantization_quality.json",
}
#: row, weights, and its name in the ladder, in decode.py and in exactness.py
RUNGS = [
    ("recompute everything", "float32", None, "recompute", "the lowest rung"),
    ("KV cache", "float32", "one after the other", "torch float32", "KV cache"),
    ("static batch", "float32", "static batch", "static batch", "static batch"),
    ("paged, continuous batching", "float32", "paged, continuous batching", "paged", "paged, batched, chunked"),
    ("the same, preempted", "float32", None, None, "preempted"),
    ("prefix cache", "float32", "prefix cache", None, "prefix cache"),
    ("speculation", "float32", "speculation", None, "speculation"),
    ("torch.compile", "float32", "compiled", None, "compiled"),
    ("C++ pass", "float32", "C++ pass", "tinylm float32", "C++ pass"),
    ("C++ pass", "bfloat16", None, "tinylm bfloat16", None),
    ("C++ kernels", "int8", "int8, C++ kernels", "tinylm int8", "int8"),
    ("C++ kernels", "int4", "int4, C++ kernels", "tinylm int4", "int4"),
    ("batch_invariant", "float32", None, None, "batch_invariant, float32"),
    ("batch_invariant", "bfloat16", None, None, "batch_invariant, bfloat16"),
]
COLUMNS = [
    "rung, or engine",
    "weights",
    "ladder's texts",
    "GPT-2, one text",
    "of the roofline",
    "eight texts",
    "prompt of 512",
    "greedy: texts / differ / ties",
    "seeded: texts / differ / ties",
    "perplexity",
]
FIGURES = ("decode", "of the roofline", "batch 8", "prefill 512")  # as decode.py calls them
Rows = dict[str, dict[str, Any]]


def measure(part: str, given: argparse.Namespace) -> list[str]:
    """The command that makes a part's results."""
    keep = ["--keep", str(given.keep / f"{part}.json")]
    folder = ["--folder", str(given.folder)] if given.folder else []
    model = ["--checkpoint", str(given.checkpoint), "--text", str(given.text)] if given.checkpoint else []
    return {
        "ladder": [sys.executable, "-m", "tinylm.observability", "ladder", "decoding"],
        "decode": [given.peers, str(HERE / "decode.py"), "--figures", "decode", *keep, *folder],
        "batch": [given.peers, str(HERE / "decode.py"), "--figures", "batch 8", "prefill 512", *keep, *folder],
        "exactness": [sys.executable, str(HERE / "exactness.py"), *model, *keep],
        "quality": [sys.executable, str(HERE / "quantization_quality.py"), "--data", str(given.data)],
    }[part]


def read(path: Path) -> Rows:
    """A table's rows by their first cell (a ladder's by the rung), as objects."""
    table = tables.read_table(path)
    rows = [row if isinstance(row, dict) else dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    return {str(row.get("rung", row[table["columns"][0]])): row for row in rows}


def per_cpu_second(row: dict[str, Any]) -> float | None:
    """Of a ladder's row, which has the speed by the clock."""
    return row["per second"] * row["time (s)"] / row["CPU (s)"] if row else None


def counts(row: dict[str, Any], drawing: str) -> str | None:
    numbers = [row.get(f"{drawing}: {column}") for column in ("texts", "differ", "ties")]
    return None if None in numbers else " / ".join(f"{number:,}" for number in numbers)


def worst(path: Path, scheme: str) -> str | None:
    """The most that a scheme costs in perplexity, of the models that were trained here."""
    rows = tables.read_table(path)
    each = [dict(zip(rows["columns"], row, strict=True)) for row in rows["rows"]]
    found = [row[scheme] for row in each if row["seed"] is not None and scheme in row]
    return max(found, key=lambda text: float(text.split()[0]), default=None)


def join(results: Path) -> list[list[Any]]:
    """The rows: the rungs, then what decode.py measured beside them."""
    ladder, decode, batch, exactness = (read(results / PARTS[part]) for part in list(PARTS)[:4])
    speeds = {name: {**decode.get(name, {}), **batch.get(name, {})} for name in [*decode, *batch]}
    rows: list[list[Any]] = []
    for name, weights, rung, engine, way in RUNGS:
        speed, exact = speeds.pop(engine, {}), exactness.get(way or "", {})
        told = f"{name}, {exact['CPU-s']} the CPU time" if exact.get("CPU-s") else name
        if way == "the lowest rung":
            texts = ["what the others are compared with"] * 2
        else:
            texts = [counts(exact, drawing) for drawing in ("greedy", "seeded")]
        figures = [speed.get(column) for column in FIGURES]
        cost = worst(results / PARTS["quality"], weights) if weights.startswith("int") else None
        rows.append([told, weights, per_cpu_second(ladder.get(rung or "", {})), *figures, *texts, cost])
    for engine, speed in speeds.items():
        peer, _, weights = engine.partition(" ")
        figures = [speed.get(column) for column in FIGURES]
        rows.append([peer, weights, None, *figures, None, None, None])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--again", nargs="*", default=[], choices=PARTS, help="measure these though they are there")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--keep", type=Path, default=Path("runs/table"), help="where broken-off measurements go on")
    parser.add_argument("--peers", default=sys.executable, metavar="PYTHON", help="of an environment with the peers")
    parser.add_argument("--folder", type=Path, help="where the models that peers read stand, or are put")
    parser.add_argument("--checkpoint", type=Path, help="exactness of a trained model; with --text")
    parser.add_argument("--text", type=Path, help="where its prompts come from")
    parser.add_argument("--data", type=Path, help="what the models whose quality is measured are trained on")
    given = parser.parse_args()
    for part, name in PARTS.items():
        if part in given.again or not (given.results / name).exists():
            print(f"measuring: {part}", file=sys.stderr, flush=True)
            done = subprocess.run([*measure(part, given), "--json", str(given.results / name)], check=False)
            if done.returncode:
                sys.exit(f"{part}: ended with {done.returncode}; the same command goes on where it was")
    found = {part: tables.read_table(given.results / name) for part, name in PARTS.items()}
    dates = {part: table["date"] for part, table in found.items()}
    title = "Decoding: tokens per CPU-second on one thread, exactness, and peers; each part measured on its own"
    command = "python packages/tinylm-infer/benchmarks/table.py"
    table = {**tables.new_table(title, command, COLUMNS, join(given.results)), "measured": dates}
    table["machine"] = found["decode"]["machine"]  # whose speeds these are, wherever they are put together
    tables.write_table(table, given.results / "table.json")
    for line in [COLUMNS, *tables.cells(table)]:
        print("  ".join(text.ljust(26) for text in line))
    if (readme := HERE.parent / "README.md").exists() and given.results == HERE / "results":
        sys.exit(tables.main([str(readme)]))


if __name__ == "__main__":
    main()
