"""tinylm.inference: work of the explorer that outlasts a question: with progress, and it can be cancelled.

One piece of work at a time; a new one ends the one before. Not here: what is worked on (`rungs.py`).
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tinylm.inference._errors import InferenceError


class Cancelled(Exception):
    """Raised in the work, where it tells its progress."""


class Progress:
    """How far some work has come: `done` of `total`, in whatever it counts."""

    def __init__(self) -> None:
        self.total, self.done = 0, 0
        self._cancelled = threading.Event()

    def add(self, amount: int) -> None:
        """Cancelled where `cancel` was called."""
        self.done += amount
        if self._cancelled.is_set():
            raise Cancelled

    def cancel(self) -> None:
        self._cancelled.set()


@dataclass(frozen=True)
class Status:
    """`state`: "running", "done", "cancelled" or "failed". `fraction`: of the work; `seconds`: since it began."""

    id: int
    state: str
    fraction: float
    seconds: float
    result: Any
    error: str | None


class Background:
    """Asked from any thread."""

    def __init__(self) -> None:
        self._id = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread()
        self._progress, self._status = Progress(), Status(0, "cancelled", 0.0, 0.0, None, None)
        self._start = 0.0

    def start(self, work: Callable[[Progress], Any]) -> Status:
        """Begins `work`, after the one before has ended."""
        with self._lock:
            self._end()
            self._id, self._start, self._progress = self._id + 1, time.perf_counter(), Progress()
            self._status = Status(self._id, "running", 0.0, 0.0, None, None)
            self._thread = threading.Thread(target=self._run, args=(work, self._progress), daemon=True)
            self._thread.start()
        return self.status(self._id)

    def status(self, number: int) -> Status:
        """InferenceError where a newer piece of work has taken its place."""
        status, progress = self._status, self._progress
        if number != status.id or number == 0:
            raise InferenceError("this work has ended: another was begun meanwhile")
        if status.state != "running":
            return status
        fraction = min(progress.done / progress.total, 1.0) if progress.total else 0.0
        return Status(status.id, "running", fraction, time.perf_counter() - self._start, None, None)

    def cancel(self, number: int) -> Status:
        """Ends the work; one that has ended already stays as it is. Raises what `status` raises."""
        with self._lock:
            self.status(number)
            self._end()
        return self.status(number)

    def close(self) -> None:
        with self._lock:
            self._end()

    def _end(self) -> None:
        self._progress.cancel()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self, work: Callable[[Progress], Any], progress: Progress) -> None:
        state, result, error = "done", None, None
        try:
            result = work(progress)
        except Cancelled:
            state = "cancelled"
        except (ValueError, RuntimeError, MemoryError, OSError) as problem:  # torch's errors are RuntimeError
            state, error = "failed", str(problem) or type(problem).__name__
        fraction = 1.0 if state == "done" else min(progress.done / (progress.total or 1), 1.0)
        self._status = Status(self._status.id, state, fraction, time.perf_counter() - self._start, result, error)
