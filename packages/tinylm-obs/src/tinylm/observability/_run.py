"""tinylm-obs · write a run: rows of metrics, histograms, alerts, artifacts.

A run is a directory (run.json, metrics.jsonl, histograms.jsonl, alerts.jsonl, system.jsonl, profile/). `init`
(`_start.py`) opens it, each `log` appends one row (`jsonl.py`), `finish` closes run.json. It does NOT measure
(`watching.py`, `system.py`), draw or upload. Next: `_readers.py` reads it back, `_held.py` is the way of CUDA scalars.
"""

import atexit
import contextlib
import json
import operator
import os
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ._atomic import write_text
from ._errors import ObservabilityError
from ._facts import now
from ._held import HeldRow, is_cuda
from ._locks import one_at_a_time
from ._readers import ALERTS_FILE, HISTOGRAMS_FILE, METRICS_FILE, RUN_FILE, SYSTEM_FILE, read_rows, read_run
from ._values import LARGEST, RESERVED, jsonable, plain_row
from .jsonl import JsonlFile

_HELD_LIMIT = 64  # rows with CUDA scalars held at most; beyond, log waits for the oldest
_STATUSES = ("finished", "failed", "interrupted")
_encode = json.JSONEncoder(allow_nan=False, check_circular=False, separators=(",", ":")).encode


class Run:
    """One attempt at a run, open for writing; made by `init`. Threads may share it; other processes may `init` beside
    it.
    """

    def __init__(self, directory: Path, record: dict[str, Any]) -> None:
        self.directory = directory
        self.name: str = record["name"]
        self.attempt: int = record["attempt"]
        self._record = record
        self._lock = threading.RLock()  # re-entrant: a signal handler may log or finish
        self._metrics = JsonlFile(directory / METRICS_FILE)
        self._beside: dict[str, JsonlFile] = {}  # the files beside metrics.jsonl, opened at first use
        self._step: int | None = None
        self._held: deque[HeldRow] = deque()
        self._finished = False

    def log(self, values: Mapping[str, object], step: int | None = None) -> None:
        """Append one row. When this returns, a kill cannot lose it; only rows with CUDA tensors wait, see below.

        values: name → number, boolean, string, None, or a one-element array or tensor. Names "step", "time",
        "attempt" and "nonfinite" are taken. step: any integer >= 0; without it the last step of this run plus one. A
        CUDA tensor is copied to the host without stopping the GPU; its row is written by the first call of log or
        finish that finds it arrived. Raises ObservabilityError for other values, a finished run or a full disk.
        """
        with self._lock:
            if self._finished:
                self._check_open()
            step = self._next_step() if step is None else step
            row = {"step": step, "time": time.time(), "attempt": self.attempt, **values}
            if len(row) != len(values) + 3 or "nonfinite" in row:
                _refuse_row(values)
            if type(step) is not int or not 0 <= step <= LARGEST:
                step = row["step"] = _whole(step)
            if self._held:
                self._write_held(wait=False)
            try:
                line = _encode(row)  # finds what is not finite and what is no plain value, at no extra cost
            except (ValueError, TypeError, RecursionError):
                if any(map(is_cuda, values.values())):
                    self._hold(HeldRow(row))
                    self._step = step
                    return
                line = _encode(plain_row(row))
            else:
                if "[" in line or line.find("{", 1) > 0:  # a list or mapping, which plain_row refuses, or a string
                    line = _encode(plain_row(row))
            self._metrics.append(line)
            self._step = step

    def histogram(self, name: str, counts: Sequence[int], edges: Sequence[float], step: int | None = None) -> None:
        """Append one histogram to histograms.jsonl: `counts` of len n between `edges` of len n + 1 (numpy.histogram's
        order).
        """
        if len(edges) != len(counts) + 1:
            raise ObservabilityError(
                f"wanted one edge more than counts for {name!r}, got {len(edges)} and {len(counts)}"
            )
        numbers = {"counts": jsonable(list(counts)), "edges": jsonable(list(edges))}
        if any(type(value) not in (int, float) for values in numbers.values() for value in values):
            raise ObservabilityError(f"wanted counts and edges that are finite numbers for {name!r}, got others")
        with self._lock:
            self._check_open()
            self._append(HISTOGRAMS_FILE, step, {"name": str(name), **numbers})

    def alert(self, kind: str, layer: str, message: str, step: int | None = None) -> None:
        """Append one alert to alerts.jsonl: what was noticed ("nan", "spike", ...), in which layer, in one line."""
        with self._lock:
            self._check_open()
            self._append(ALERTS_FILE, step, {"alert": str(kind), "layer": str(layer), "message": str(message)})

    def system(self, values: Mapping[str, float]) -> None:
        """Append one row about the machine to system.jsonl, at the step that was logged last (`system.py` samples)."""
        with self._lock:
            self._check_open()
            self._append(SYSTEM_FILE, max(0, self._next_step() - 1), plain_row(values))

    def artifact(self, name: str, path: str | os.PathLike[str], step: int | None = None) -> None:
        """Log where a file that belongs to the run stands, as "artifact/NAME": relative to the run's directory where
        that is possible. Raises ObservabilityError when nothing is there."""
        place = Path(path)
        if not place.exists():
            raise ObservabilityError(f"wanted a file or directory for the artifact {name!r}, got nothing at {place}")
        with contextlib.suppress(ValueError):  # on another drive (Windows) the path stays as it is
            place = Path(os.path.relpath(place, self.directory))
        self.log({f"artifact/{name}": place.as_posix()}, step)

    @property
    def profile_directory(self) -> Path:
        """The run's directory for profiles and traces, made when first asked for."""
        path = self.directory / "profile"
        path.mkdir(exist_ok=True)
        return path

    def finish(self, status: str = "finished") -> None:
        """Write held rows, close the files and put `status` ("finished", "failed" or "interrupted") into run.json.

        A second call does nothing. When a later attempt has started in the meantime, run.json is its and stays.
        """
        if status not in _STATUSES:
            raise ObservabilityError(f"wanted a status of {', '.join(_STATUSES)}, got {status!r}")
        with self._lock:
            if self._finished:
                return
            self._write_held(wait=True)
            self._finished = True
            atexit.unregister(self._write_held)
            with one_at_a_time(self.directory):
                if read_run(self.directory)["attempt"] == self.attempt:
                    write_record(self.directory, self._record | {"status": status, "finished": now()})
            self._metrics.close()
            for file in self._beside.values():
                file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self.finish("interrupted" if issubclass(kind, KeyboardInterrupt) else "failed")

    def _check_open(self) -> None:
        if self._finished:
            raise ObservabilityError(
                f"wanted a running run, got one that is finished ({self.directory}); init it again"
            )

    def _append(self, file: str, step: int | None, values: Mapping[str, object]) -> None:
        step = self._next_step() if step is None else _whole(step)
        if file not in self._beside:
            self._beside[file] = JsonlFile(self.directory / file)
        self._beside[file].append(_encode({"step": step, "time": time.time(), "attempt": self.attempt, **values}))

    def _next_step(self) -> int:
        if self._step is None:  # first use: go on after what earlier attempts wrote
            self._step = max((row["step"] for row in read_rows(self._metrics.path)), default=-1)
        return self._step + 1

    def _hold(self, row: HeldRow) -> None:
        if not self._held:
            atexit.register(self._write_held)
        self._held.append(row)
        if len(self._held) > _HELD_LIMIT:
            self._metrics.append(_encode(plain_row(self._held.popleft().take())))

    def _write_held(self, wait: bool = True) -> None:
        while self._held and (wait or self._held[0].ready()):
            self._metrics.append(_encode(plain_row(self._held.popleft().take())))


def write_record(directory: Path, record: Mapping[str, Any]) -> None:
    """Replace run.json."""
    write_text(directory / RUN_FILE, json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _refuse_row(values: Mapping[str, object]) -> None:
    taken = next((name for name in RESERVED if name in values), None)
    raise ObservabilityError(f"wanted other names than {', '.join(RESERVED)} (they are the row's own), got {taken!r}")


def _whole(step: Any) -> int:
    """A step as Python's integer; NumPy has integers of its own."""
    try:
        plain = -1 if isinstance(step, bool) else operator.index(step)
    except TypeError:
        plain = -1
    if not 0 <= plain <= LARGEST:
        shown = f"{step!r}" if plain < 0 else "more than 64 bits"
        raise ObservabilityError(f"wanted a step that is an integer >= 0, got {shown}")
    return plain
