"""tinylm-obs · write a run: init, log, finish.

A run is a directory (run.json, metrics.jsonl, histograms.jsonl, profile/). `init` writes run.json, each `log` appends
one row (`jsonl.py`), `finish` closes run.json. Starting in a directory that holds a run already raises `attempt` and
appends: nothing is truncated. It does NOT sample the system, draw or upload. Next: `_readers.py` reads it back,
`_held.py` is the way of CUDA scalars.
"""

import atexit
import json
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
from ._facts import command, git_commit, machine, now, versions
from ._held import HeldRow, is_cuda
from ._locks import one_at_a_time
from ._readers import FORMAT, METRICS_FILE, RUN_FILE, read_rows, read_run
from ._values import RESERVED, jsonable, plain_row
from .jsonl import JsonlFile

_HELD_LIMIT = 64  # rows with CUDA scalars held at most; beyond, log waits for the oldest
_PLAIN = frozenset((bool, int, float, str, type(None)))
_STATUSES = ("finished", "failed", "interrupted")
_encode = json.JSONEncoder(allow_nan=False, check_circular=False, separators=(",", ":")).encode
_current: "Run | None" = None


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
        self._histograms: JsonlFile | None = None
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
                raise ObservabilityError(
                    f"wanted a running run, got one that is finished ({self.directory}); init it again"
                )
            step = self._next_step() if step is None else step
            row = {"step": step, "time": time.time(), "attempt": self.attempt, **values}
            if len(row) != len(values) + 3 or "nonfinite" in row or type(step) is not int or step < 0:
                _refuse_row(values, step)
            if self._held:
                self._write_held(wait=False)
            if _PLAIN.issuperset(map(type, row.values())):
                try:
                    line = _encode(row)
                except ValueError:  # a number that is not finite: found by the encoder, at no extra cost
                    line = _encode(plain_row(row))
            elif any(map(is_cuda, values.values())):
                self._hold(HeldRow(row))
                self._step = step
                return
            else:
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
        with self._lock:
            if self._finished:
                raise ObservabilityError(
                    f"wanted a running run, got one that is finished ({self.directory}); init it again"
                )
            if self._histograms is None:
                self._histograms = JsonlFile(self.directory / "histograms.jsonl")
            row = {
                "step": self._next_step() if step is None else step,
                "time": time.time(),
                "attempt": self.attempt,
                "name": name,
                "counts": jsonable(list(counts)),
                "edges": jsonable(list(edges)),
            }
            self._histograms.append(_encode(row))

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
                    _write_record(self.directory, self._record | {"status": status, "finished": now()})
            self._metrics.close()
            if self._histograms is not None:
                self._histograms.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self.finish("interrupted" if issubclass(kind, KeyboardInterrupt) else "failed")

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


def init(directory: str | os.PathLike[str], config: object = None, name: str | None = None) -> Run:
    """Start a run in `directory` (made if missing), or the next attempt of the run that is there.

    config: a mapping or dataclass; becomes JSON (see `_values.jsonable`). Without config or name a resumed run keeps
    its own. name: the directory's name if not given. Raises ObservabilityError when the directory cannot be written,
    or holds a run of a higher format or a foreign run.json.
    """
    global _current
    path = Path(directory)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ObservabilityError(f"wanted a directory for the run at {path}, got {error.strerror}") from error
    with one_at_a_time(path):
        earlier = read_run(path) if (path / RUN_FILE).exists() else {}
        settings = jsonable(config if config is not None else earlier.get("config", {}))
        if not isinstance(settings, dict):
            raise ObservabilityError(f"wanted a mapping or dataclass as config, got {type(config).__name__}")
        started = now()
        record = {
            "format": FORMAT,
            "name": name or earlier.get("name") or path.resolve().name,
            "status": "running",
            "attempt": earlier.get("attempt", 0) + 1,
            "created": earlier.get("created", started),
            "started": started,
            "finished": None,
            "command": command(),
            "commit": git_commit(),
            "versions": versions(),
            "machine": machine(),
            "config": settings,
        }
        _write_record(path, record)
        _current = Run(path, record)
    return _current


def log(values: Mapping[str, object], step: int | None = None) -> None:
    """`Run.log` of the run that this process started last."""
    _started().log(values, step)


def finish(status: str = "finished") -> None:
    """`Run.finish` of the run that this process started last."""
    _started().finish(status)


def _started() -> Run:
    if _current is None:
        raise ObservabilityError("wanted a run, got none; call init(directory=...) first")
    return _current


def _write_record(directory: Path, record: Mapping[str, Any]) -> None:
    write_text(directory / RUN_FILE, json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _refuse_row(values: Mapping[str, object], step: object) -> None:
    taken = [name for name in RESERVED if name in values]
    if taken:
        raise ObservabilityError(
            f"wanted other names than {', '.join(RESERVED)} (they are the row's own), got {taken[0]!r}"
        )
    raise ObservabilityError(f"wanted a step that is an integer >= 0, got {step!r}")
