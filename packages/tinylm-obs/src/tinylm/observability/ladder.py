"""tinylm-obs · the rungs of the component "logging", for `tinylm-obs ladder logging`.

Both rungs write the same rows to a new file; what is read back must be equal. It does NOT measure:
`climb.py` does. What the upper rung buys is not speed but rows that a kill cannot take back (tests/observability
shows it).
"""

import csv
import json
import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .buffered_csv import BufferedCsv
from .jsonl import JsonlFile


@dataclass
class _Work:
    rows: list[dict[str, float]]
    folder: tempfile.TemporaryDirectory[str] = field(default_factory=tempfile.TemporaryDirectory)

    def file(self, name: str) -> Path:
        path = Path(self.folder.name) / name
        path.unlink(missing_ok=True)
        return path


def rungs() -> list[dict[str, Any]]:
    """The ladder of logging, lowest rung first."""
    common = {
        "component": "logging",
        "ladder": "metrics logging",
        "make": _make,
        "compare": _compare,
        "amount": lambda work: len(work.rows),
        "unit": "rows",
        "size": 20_000,
        "cost": lambda work: (0.0, float(sum(len(json.dumps(row)) for row in work.rows)), ""),  # the text, moved once
    }
    return [
        common
        | {
            "rung": "buffered CSV",
            "module": "tinylm.observability.buffered_csv",
            "change": "csv.writer into the process's buffer; fixed columns; a kill loses the buffer",
            "equals": None,
            "run": _run_csv,
        },
        common
        | {
            "rung": "JSONL append",
            "module": "tinylm.observability.jsonl",
            "change": "one os.write of one JSON line per row: a kill loses nothing, columns may change",
            "equals": "buffered CSV",
            "run": _run_jsonl,
        },
    ]


def _make(size: int) -> _Work:
    return _Work([{"step": float(step), "loss": 2 + math.sin(step), "rate": 1e-3 / (step + 1)} for step in range(size)])


def _run_csv(work: _Work) -> Path:
    path = work.file("rows.csv")
    file = BufferedCsv(path)
    for row in work.rows:
        file.append(row)
    file.close()
    return path


def _run_jsonl(work: _Work) -> Path:
    path = work.file("rows.jsonl")
    file = JsonlFile(path)
    for row in work.rows:
        file.append(json.dumps(row))
    file.close()
    return path


def _compare(result: Path, reference: Path) -> float:
    """How many rows differ, read back from the two files."""
    ours, theirs = _read(result), _read(reference)
    return float(sum(a != b for a, b in zip(ours, theirs, strict=False)) + abs(len(ours) - len(theirs)))


def _read(path: Path) -> list[dict[str, float]]:
    with path.open(encoding="utf-8", newline="") as lines:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in lines]
        return [{name: float(text) for name, text in row.items()} for row in csv.DictReader(lines)]
