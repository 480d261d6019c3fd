"""tinylm-obs · a file is there whole or not at all.

Used for every file that is replaced (run.json, results, tables, exports). It does NOT append: metrics rows go through
`jsonl.py`. Next: `_run.py`.
"""

import contextlib
import os
import tempfile
from pathlib import Path

from ._errors import ObservabilityError


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to `path` through a temporary file in the same directory, fsync and os.replace."""
    temporary: Path | None = None
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_UMASK)  # mkstemp makes 0600; a run is as readable as any file of the user's
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()
        raise ObservabilityError(
            f"wanted to write {path}, got {error.strerror or error}; free space or choose another place"
        ) from error


def _read_umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


_UMASK = _read_umask()  # read once, at import: umask is process-wide and cannot be read without setting it
