"""What a long measurement has found so far, in one JSON file: stopped, it goes on where it was.

Used by `exactness.py`, `decode.py` and `table.py`. It measures nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Pieces:
    """Results by name, written whole after each. `of` says what is measured; a file of anything else is refused."""

    def __init__(self, path: Path | None, of: dict[str, Any], again: list[str] | None = None) -> None:
        """`path` None: nothing is kept. What has a word of `again` in its name is forgotten, and measured again."""
        self._path, self._of = path, of
        self._found: dict[str, Any] = {}
        if path is None or not path.exists():
            return
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["of"] != of:
            differing = [name for name in of if kept["of"].get(name) != of[name]]
            raise SystemExit(f"{path} holds another measurement ({', '.join(differing)}): remove it, or name another")
        self._found = {n: v for n, v in kept["found"].items() if not any(word in n for word in again or [])}

    def get(self, name: str, measure: Callable[[], Any]) -> Any:
        """What `measure` gives (plain data), or gave before."""
        if name not in self._found:
            self._found[name] = measure()
            if self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                whole = self._path.with_suffix(".part")
                whole.write_text(json.dumps({"of": self._of, "found": self._found}), encoding="utf-8")
                whole.replace(self._path)
        return self._found[name]
