"""tinylm-obs · file locks: who is alive, and who is first.

flock is dropped by the kernel when a process dies, in whatever way: that is how a killed run is told from a running
one, and why no lock can be left behind. File systems without locks (some network ones) and Windows go on without:
then only the status shown is less exact. It does NOT guard the appends of rows: those need no lock (`jsonl.py`).
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ._errors import ObservabilityError

try:
    import fcntl
except ImportError:  # Windows
    _flock = None
else:
    _flock = fcntl.flock
    _SHARED = fcntl.LOCK_SH
    _ALONE = fcntl.LOCK_EX | fcntl.LOCK_NB
    _WAIT = fcntl.LOCK_EX


def mark_alive(descriptor: int) -> None:
    """Hold a shared lock on an open file until it is closed or the process ends."""
    if _flock is not None:
        with contextlib.suppress(OSError):  # no locks here
            _flock(descriptor, _SHARED)  # waits for `has_writer`, which looks for a moment


def has_writer(path: Path) -> bool | None:
    """Whether a live process has called `mark_alive` on this file; None where that cannot be known."""
    if _flock is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        _flock(descriptor, _ALONE)
    except BlockingIOError:
        return True
    except OSError:
        return None
    else:
        return False
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def one_at_a_time(directory: Path) -> Iterator[None]:
    """One process at a time is inside for this directory; the others wait."""
    if _flock is None:
        yield
        return
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError as error:
        raise ObservabilityError(f"wanted the run's directory {directory}, got {error.strerror}") from error
    try:
        with contextlib.suppress(OSError):
            _flock(descriptor, _WAIT)
        yield
    finally:
        os.close(descriptor)
