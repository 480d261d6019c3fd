"""tinylm-obs · logging ladder, rung 1: rows of numbers through a buffered CSV writer.

What most training scripts begin with. The columns are fixed by the first row. It is quick because almost no call
reaches the operating system: up to a buffer (8 KiB) of rows is lost when the process is killed. `jsonl.py` (rung 2)
keeps each row, lets columns change, and costs one system call per row.

It does NOT know runs or attempts, and nothing else in the package uses it: it is the rung to compare with.
"""

import csv
import os
from collections.abc import Mapping
from pathlib import Path


class BufferedCsv:
    """A CSV file of rows with the same columns; rows sit in a buffer until it is full or `close` is called."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Create `path`, replacing what was there."""
        self._file = Path(path).open("w", encoding="utf-8", newline="")  # noqa: SIM115  (closed by close)
        self._writer = csv.writer(self._file)
        self._columns: tuple[str, ...] = ()

    def append(self, row: Mapping[str, object]) -> None:
        """Buffer one row. The first row names the columns; ValueError when a later one has others."""
        if not self._columns:
            self._columns = tuple(row)
            self._writer.writerow(self._columns)
        elif tuple(row) != self._columns:
            raise ValueError(f"wanted the columns {self._columns}, got {tuple(row)}")
        self._writer.writerow(row.values())

    def close(self) -> None:
        """Write what is buffered and close the file."""
        self._file.close()
