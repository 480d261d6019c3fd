"""tinylm-obs · follow a JSONL file that others append to: each poll gives the rows that have arrived.

A half-written last line waits for its end; a damaged line is counted and passed over; a file that was replaced or cut
is read anew. It does NOT lock, and does NOT know what rows mean (`metrics.py`, `store.py`).
"""

import json
from pathlib import Path
from typing import Any

from .._readers import checked_row, parse_row

CHUNK = 1 << 20  # bytes of one poll: a page stays responsive while a long file is read


class Tail:
    """The rows of one file, from its start. `damaged`: numbers of lines that are no rows. `behind`: bytes that wait to
    be read after the last poll. `restarts`: how often the file was found replaced."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.restarts = 0
        self._begin(None)

    def _begin(self, inode: int | None) -> None:
        self.damaged: list[int] = []
        self.behind = 0
        self._offset = 0
        self._line = 1
        self._rest = b""
        self._inode = inode

    def poll(self, limit: int = CHUNK) -> list[dict[str, Any]]:
        """The rows that have become whole since the last poll, from at most `limit` more bytes; no file, no rows.
        Raises OSError when the file is there and cannot be read."""
        try:
            facts = self.path.stat()
        except FileNotFoundError:
            return []
        if self._inode is None:
            self._inode = facts.st_ino
        if facts.st_ino != self._inode or facts.st_size < self._offset:
            self.restarts += 1
            self._begin(facts.st_ino)
        if facts.st_size == self._offset:
            self.behind = 0
            return []
        with self.path.open("rb") as file:
            file.seek(self._offset)
            data = file.read(limit)
        self._offset += len(data)
        self.behind = max(0, facts.st_size - self._offset)
        return self._rows(data)

    def _rows(self, data: bytes) -> list[dict[str, Any]]:
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        rows = _at_once(lines)
        if rows is None:
            parsed = [parse_row(line) if line else None for line in lines]
            rows = [row for row in parsed if row is not None]
            self.damaged += [self._line + place for place, row in enumerate(parsed) if row is None and lines[place]]
        self._line += len(lines)
        if self._rest.endswith(b"}") and (whole := parse_row(self._rest)) is not None:
            rows.append(whole)  # an object that parses is whole; only its newline is missing
            self._rest = b""
        return rows


def _at_once(lines: list[bytes]) -> list[dict[str, Any]] | None:
    """All lines in one call of the parser, in half the time; None unless every line is a row."""
    if not all(line[:1] == b"{" and line[-1:] == b"}" for line in lines):
        return None
    try:
        found = json.loads(b"[" + b",".join(lines) + b"]")
    except (ValueError, RecursionError):
        return None
    rows = [checked for row in found if (checked := checked_row(row)) is not None]
    return rows if len(rows) == len(lines) else None
