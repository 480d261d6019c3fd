"""tinylm-obs · logging ladder, rung 2: one unbuffered append of one JSON line per row.

`buffered_csv.py` (rung 1) keeps rows in a buffer of the process, so a killed process loses them. Here each row is one
`os.write` on a descriptor opened with O_APPEND: when `append` returns, the row is the operating system's, and
SIGKILL cannot take it back (a power cut can: nothing is fsynced per row). The kernel puts each write of O_APPEND
at the end of the file as a whole, so any number of threads and processes may write to one file.

It does NOT know steps, attempts or runs (`_run.py`) and does NOT read (`_readers.py`).
"""

import errno
import os
from pathlib import Path

from ._errors import ObservabilityError
from ._locks import mark_alive


class JsonlFile:
    """An append-only file of JSON lines, marked as alive (`_locks.py`) as long as it is open."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open or create `path`. Raises ObservabilityError when it cannot be opened."""
        self.path = Path(path)
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError as error:
            raise ObservabilityError(f"wanted to append to {self.path}, got {error.strerror}") from error
        mark_alive(self._descriptor)
        self._torn = self._ends_torn()

    def append(self, line: str) -> None:
        """Write `line` (JSON without a newline) as one row. When this returns, a SIGKILL cannot lose the row.

        Raises ObservabilityError when the disk is full; a half-written row is closed off by the
        next one, so readers skip it and lose no other.
        """
        try:
            for _ in range(2):  # a short write happens at the end of the disk; the second try hears why
                data = (f"\n{line}\n" if self._torn else f"{line}\n").encode()
                self._torn = os.write(self._descriptor, data) != len(data)
                if not self._torn:
                    return
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise ObservabilityError(
                f"wanted to append a row to {self.path}, got {error.strerror}; free space and start again: it continues"
            ) from error

    def close(self) -> None:
        """Close the file and drop the lock; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _ends_torn(self) -> bool:
        """Whether the file ends in the middle of a row (power loss, full disk)."""
        if os.fstat(self._descriptor).st_size == 0:
            return False
        os.lseek(self._descriptor, -1, os.SEEK_END)  # writes go to the end all the same: O_APPEND
        return os.read(self._descriptor, 1) != b"\n"
