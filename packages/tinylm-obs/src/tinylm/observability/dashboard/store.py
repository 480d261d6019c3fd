"""tinylm-obs · every run below a directory, kept up to date: what the dashboard's views read.

`Store.scan` finds runs and reads their run.json, `Store.poll` follows the files of those that somebody looks at. What
cannot be read becomes words in `problem` and `notes`, never an exception. It does NOT know the page. Next: `server.py`.
"""

import json
import os
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any

from .._errors import ObservabilityError
from .._readers import ALERTS_FILE, HISTOGRAMS_FILE, METRICS_FILE, RUN_FILE, SYSTEM_FILE, read_run
from .._values import utf8
from .histograms import Histograms
from .metrics import Metrics
from .tail import CHUNK, Tail


class Run:
    """One run directory. `record`: run.json, or None with a `problem` in words. `lock` is held while rows are added,
    and by who reads them. `version` rises with every change."""

    def __init__(self, path: Path, label: str, number: int) -> None:
        self.path, self.label, self.number = path, label, number
        self.record: dict[str, Any] | None = None
        self.problem: str | None = None
        self.lock = threading.Lock()
        self.version = 0
        self._stamp: object = None
        self._start_again()

    def _start_again(self) -> None:
        self.metrics, self.system, self.histograms = Metrics(), Metrics(), Histograms()
        self.alerts: list[dict[str, Any]] = []
        self.odd = 0  # rows that are rows, but not of their file
        self.tails = {
            name: Tail(self.path / name) for name in (METRICS_FILE, ALERTS_FILE, SYSTEM_FILE, HISTOGRAMS_FILE)
        }

    @property
    def status(self) -> str:
        """running, finished, failed, interrupted, unfinished, or unreadable."""
        return str(self.record["status"]) if self.record else "unreadable"

    @property
    def command(self) -> list[str]:
        """The words of the command that made it; none where run.json has no list of them."""
        words = (self.record or {}).get("command")
        return [str(word) for word in words] if isinstance(words, list) else []

    @property
    def behind(self) -> int:
        """Bytes of the run's files that are still to be read."""
        return sum(tail.behind for tail in self.tails.values())

    @property
    def notes(self) -> list[str]:
        """What was passed over in the run's files, in words."""
        found = [
            f"{self.label}/{name}: {len(tail.damaged)} damaged "
            f"{'line is' if len(tail.damaged) == 1 else 'lines are'} passed over, the first is line {tail.damaged[0]}"
            for name, tail in self.tails.items()
            if tail.damaged
        ]
        return [*found, f"{self.label}: {self.odd} rows are no histograms"] if self.odd else found

    def refresh(self) -> bool:
        """Read run.json if it has changed or says that the run goes on; whether anything is different now."""
        before = (self.record, self.problem)
        try:
            facts = (self.path / RUN_FILE).stat()
            stamp = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
            if stamp == self._stamp and self.status not in ("running", "unfinished"):
                return False
            self._stamp = stamp
            self.record, self.problem = _sendable(read_run(self.path)), None
        except (ObservabilityError, OSError) as error:
            self.record, self.problem = None, utf8(str(error))
        if (self.record, self.problem) == before:
            return False
        self.version += 1
        return True

    def poll(self, limit: int = CHUNK) -> bool:
        """Take up rows that have arrived, from at most `limit` bytes a file; whether there were any."""
        if self.record is None:
            return False
        changed = False
        with self.lock:
            try:
                changed = self._follow_all(limit)
                if any(tail.restarts for tail in self.tails.values()):
                    self._start_again()
                    changed = self._follow_all(limit)
            except OSError as error:
                self.problem = f"wanted to read {error.filename}, got {error.strerror}"
                changed = True
        self.version += changed
        return changed

    def _follow_all(self, limit: int) -> bool:
        return sum(self._follow(name, limit) for name in self.tails) > 0

    def _follow(self, name: str, limit: int) -> bool:
        tail = self.tails[name]
        damaged = len(tail.damaged)
        rows = tail.poll(limit)
        if name == METRICS_FILE:
            for row in rows:
                self.metrics.add(row)
        elif name == SYSTEM_FILE:
            for row in rows:
                self.system.add(row | {"step": int(1000 * row["time"])} if isinstance(row.get("time"), float) else row)
        elif name == HISTOGRAMS_FILE:
            self.odd += sum(not self.histograms.add(row) for row in rows)
        else:
            self.alerts += map(_sendable, rows)
        return bool(rows) or len(tail.damaged) != damaged


class Store:
    """The runs at or below a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.runs: dict[str, Run] = {}
        self.strays: list[str] = []
        self.version = 0

    def scan(self) -> bool:
        """Find runs that have appeared or gone, and read what run.json says of each; whether anything changed."""
        found, strays = self._find()
        changed = strays != self.strays or [run.path for run in self.runs.values()] != found
        known = {run.path: run for run in self.runs.values()}
        number = max((run.number for run in known.values()), default=-1)
        runs = {}
        for path in found:
            label = path.relative_to(self.directory).as_posix()
            label = utf8(label if label != "." else path.resolve().name)
            if path not in known:
                number += 1
                known[path] = Run(path, label, number)
            runs[label] = known[path]
        self.runs, self.strays = runs, strays
        changed = any([changed, *[run.refresh() for run in runs.values()]])
        self.version += changed
        return changed

    def poll(self, wanted: Collection[str], limit: int = CHUNK) -> bool:
        """Take up new rows of the runs with these labels; whether there were any."""
        changed = sum(run.poll(limit) for label, run in list(self.runs.items()) if label in wanted) > 0
        self.version += changed
        return changed

    def _find(self) -> tuple[list[Path], list[str]]:
        runs, strays = [], []
        for folder, _, files in os.walk(self.directory):
            if RUN_FILE in files:
                runs.append(Path(folder))
            elif METRICS_FILE in files:
                strays.append(utf8(f"{Path(folder) / METRICS_FILE} stands without a {RUN_FILE} beside it: not shown"))
        return sorted(runs), strays


def _sendable(data: dict[str, Any]) -> dict[str, Any]:
    """The same for a page, which takes no half of a surrogate pair."""
    made: dict[str, Any] = json.loads(json.dumps(data, ensure_ascii=False).encode(errors="replace"))
    return made
