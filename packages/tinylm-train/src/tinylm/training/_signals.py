"""Ctrl-C once: finish the step, save, stop. Twice: stop now.

Not here: what stopping is (trainer.py, finetuning/run.py).
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def stop_after_step(request_stop: Callable[[], None], say: Callable[[str], None]) -> Iterator[None]:
    """First Ctrl-C (or SIGTERM): finish the step, save, stop. Second: stop now."""

    def handle(number: int, frame: FrameType | None) -> None:
        for which in (signal.SIGINT, signal.SIGTERM):
            signal.signal(which, signal.default_int_handler)
        request_stop()
        with contextlib.suppress(RuntimeError):  # the signal may have come while a line was being written
            say("stopping after this step (Ctrl-C again: at once, and what came after the last checkpoint is lost)")

    before = {which: signal.signal(which, handle) for which in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
