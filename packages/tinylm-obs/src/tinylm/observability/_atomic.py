"""tinylm-obs · a file is there whole or not at all.

Used for every file that is replaced (run.json, results, tables, exports). It does NOT append: metrics rows go through
`jsonl.py`. Next: `_run.py`.
"""

import contextlib
import os
import time
from pathlib import Path

from ._errors import ObservabilityError


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to `path` through a temporary file in the same directory, fsync and os.replace. Half of a
    surrogate pair (file names that are no UTF-8 have them) is written as JSON's escape."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_bytes(path: Path, data: bytes) -> None:
    """The same for bytes."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")  # tempfile costs 10 ms of import
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:  # also Ctrl-C leaves no half file
        with contextlib.suppress(OSError):
            temporary.unlink()
        if not isinstance(error, OSError):
            raise
        raise ObservabilityError(
            f"wanted to write {path}, got {error.strerror or error}; free space or choose another place"
        ) from error
