"""Writing a file so that a reader never sees half of it.

Repeated in every pillar on purpose (15 lines instead of a dependency). Next: checkpoint.py, which uses it.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success fsync it and rename it over `path`, on failure remove it. An
    OSError in writing it names `path`."""
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes private files; a checkpoint is an ordinary one
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError) or error.errno is None:
            raise
        if error.filename is not None and name not in (error.filename, error.filename2):  # of what is read meanwhile
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None
