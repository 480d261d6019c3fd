"""Files past the page cache (O_DIRECT), where a system and file system has that; elsewhere the same writes through it.

A checkpoint's gigabytes would push out what else is cached, and copying them there takes longer than the disk needs the
processor. Memory begins at a page and is whole blocks; the end of a file, which is not, goes through the cache. Not
here: what is written (_tensor_file.py, _files.py).
"""

from __future__ import annotations

import errno
import io
import mmap
import os
from pathlib import Path

_DIRECT: int = getattr(os, "O_DIRECT", 0)
_PIECE = 1 << 20  # a processor's second-level cache holds it


def piece_of_memory() -> memoryview:
    """What to write from, and to read into."""
    return memoryview(mmap.mmap(-1, _PIECE))


def open_to_write(path: Path) -> io.FileIO:
    """A new file, or an old one emptied."""
    return io.FileIO(_open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb")


def write_all(file: io.FileIO, content: memoryview) -> None:
    """All of it; what the device does not take directly, such as a part of a block, through the page cache."""
    while content:
        try:
            content = content[file.write(content) :]
        except OSError as error:
            if error.errno != errno.EINVAL or not _no_longer_direct(file):
                raise


def copy_file(source: Path, target: Path) -> None:
    """Write the bytes of `source` to `target`. OSError when the disk refuses."""
    view = piece_of_memory()
    with io.FileIO(_open(source, os.O_RDONLY), "rb") as reader, open_to_write(target) as writer:
        left = os.fstat(reader.fileno()).st_size
        while left:
            count = reader.readinto(view)
            if not count:
                raise OSError(errno.EIO, "it became shorter while it was copied", os.fspath(source))
            write_all(writer, view[:count])
            left -= count


def _open(path: Path, flags: int) -> int:
    flags |= getattr(os, "O_BINARY", 0)
    try:
        return os.open(path, flags | _DIRECT, 0o666)
    except OSError as error:
        if not _DIRECT or error.errno != errno.EINVAL:
            raise
        return os.open(path, flags, 0o666)


def _no_longer_direct(file: io.FileIO) -> bool:
    """Write through the page cache from now on; whether it was past it until now."""
    if not _DIRECT:
        return False
    import fcntl  # there is one wherever there is O_DIRECT

    flags = fcntl.fcntl(file, fcntl.F_GETFL)
    fcntl.fcntl(file, fcntl.F_SETFL, flags & ~_DIRECT)
    return bool(flags & _DIRECT)
