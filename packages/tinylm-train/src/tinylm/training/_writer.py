"""Checkpoints are written by a thread of their own, one at a time, so that training does not wait for the disk.

An error of the thread is raised by the next call here, in the thread that trains. Not here: what is written
(checkpoint.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable

Check = Callable[[], None]


class Cancelled(Exception):
    """The job was told to stop."""


class Writer:
    """Runs one job after another. A job is given a function that raises `Cancelled` once it should stop."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._cancel = threading.Event()

    def submit(self, job: Callable[[Check], object]) -> None:
        """Wait for the job before, then start this one."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(job,), name="checkpoint writer")
        self._thread.start()

    def wait(self) -> None:
        """Until nothing is being written. Raises what the job raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def poll(self) -> None:
        """Raise what an ended job raised; return at once in any case."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def cancel(self) -> None:
        """Stop the job that is running, soon, and wait until it has; its errors are nobody's any more."""
        self._cancel.set()
        if self._thread is not None:
            self._thread.join()
        self._thread, self._error = None, None
        self._cancel.clear()

    def _run(self, job: Callable[[Check], object]) -> None:
        try:
            job(self._check)
        except Cancelled:
            pass
        except BaseException as error:
            self._error = error

    def _check(self) -> None:
        if self._cancel.is_set():
            raise Cancelled
