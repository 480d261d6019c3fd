"""Where you are: how this package writes files. A reader sees the whole new file or the old one, never a half.

It does not lock: of two writers, the last one wins. Next: `naive_bpe.py`, which saves its merges and vocabulary here.
"""

import os
from pathlib import Path


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` beside `path`, flush it to the disk, then rename it into place; raises OSError and leaves no rest."""
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
