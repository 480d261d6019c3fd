"""Writing so that a reader never sees half a file or half a folder, and reading JSON of ours with its checks.

A folder is filled under a temporary name beside its place, every file in it is fsynced, and it is renamed as a whole.
A folder that one process writes is locked; the kernel unlocks it when the process ends, however it ends.
Not here: what stands in the files (prepare.py, checkpoint.py).
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinylm.training._direct import copy_file
from tinylm.training._errors import TrainingError

try:
    from fcntl import LOCK_EX, LOCK_NB, flock
except ImportError:  # Windows: two processes in one folder are not told apart
    flock = None  # type: ignore[assignment]

FORMAT = 1


class LaterFormat(TrainingError):
    """The file is whole, but a later version wrote it."""


@contextlib.contextmanager
def only_writer(directory: Path, final: Path | None = None) -> Iterator[None]:
    """Nobody else is inside for this folder. Raises TrainingError when another process is; `final`: what it then names.

    A file system without locks (some network ones) goes on without.
    """
    if flock is None:
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            flock(descriptor, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            raise TrainingError(
                f"wanted to write {final or directory}, got a folder that another process is writing: wait until it "
                "has ended, or choose another --out"
            ) from None
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)


def fsync(path: Path) -> None:
    """Force a file's or a folder's contents to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """The hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def same_bytes(one: Path, other: Path) -> bool:
    """Whether two files hold the same: read up to the first difference only, which in a model's weights comes soon."""
    with one.open("rb") as first, other.open("rb") as second:
        while piece := first.read(1 << 20):
            if piece != second.read(len(piece)):
                return False
        return not second.read(1)


@contextlib.contextmanager
def new_directory(final: Path) -> Iterator[Path]:
    """A temporary folder that becomes `final`, whole, when the block ends (replacing what stood there); it vanishes
    when the block fails, and then what stood there still stands. What a killed process left of the same is removed.
    Raises TrainingError when it cannot be written, and while another process makes the same folder."""
    final = final.resolve()  # a link stays, and what it leads to is replaced; "." gets its name
    final.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(final.parent, final.name)
    temporary = final.parent / f".{final.name}.{os.getpid()}.tmp"
    temporary.mkdir()
    try:
        with only_writer(temporary, final):
            yield temporary
            put_in_place(temporary, final)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if not isinstance(error, OSError) or not is_below(error.filename, temporary):
            raise
        raise TrainingError(
            f"wanted to write {final}, got: {error.strerror or error}; nothing of it was left. Is the disk full? Free "
            "some space and run the same command again"
        ) from error


def put_in_place(folder: Path, final: Path) -> None:
    """Force all of `folder` to the disk and give it its name; what stood there is removed when the new one stands."""
    for path in sorted(folder.rglob("*"), reverse=True):
        fsync(path)
    fsync(folder)
    if final.exists():
        final.rename(final.parent / f".{final.name}.{os.getpid()}.old")
    folder.rename(final)
    fsync(final.parent)
    for old in final.parent.glob(f".{glob.escape(final.name)}.*.old"):
        shutil.rmtree(old)


def is_below(name: object, folder: Path) -> bool:
    """Whether an OSError is about a file in `folder`; NumPy and safetensors name none."""
    return name is None or (isinstance(name, str) and Path(name).is_relative_to(folder))


def remove_leftovers(parent: Path, name: str = "") -> None:
    """Remove the temporary folders and files of killed processes: those for `name`, or all of them.

    Raises TrainingError when the process that fills one of the folders is alive."""
    for path in parent.glob(f".{glob.escape(name)}.*.tmp" if name else ".*.tmp"):
        if path.is_dir():
            with only_writer(path, parent / name):
                shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def publish(source: Path, target: Path) -> None:
    """Copy one file over another so that a reader sees the old one or the new one, never a part."""
    remove_leftovers(target.parent, target.name)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        copy_file(source, temporary)
        fsync(temporary)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write `value` with our format number, indented. The folder it stands in is what makes it atomic."""
    path.write_text(
        json.dumps({"format": FORMAT, **value}, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8"
    )


def read_json(path: Path, wanted: str) -> dict[str, Any]:
    """Read JSON of ours. Raises TrainingError when it is missing, damaged or of a later format; `wanted` names it."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise TrainingError(f"wanted {wanted} at {path}, got no such file") from None
    except (OSError, ValueError, RecursionError) as error:  # not UTF-8, not JSON, a number or a nesting too large
        raise TrainingError(f"wanted {wanted} at {path}, got a file that cannot be read ({error})") from None
    if not isinstance(value, dict) or not isinstance(value.get("format"), int):
        raise TrainingError(f'wanted {wanted} at {path}, got JSON without our "format" number')
    if value["format"] > FORMAT:
        raise LaterFormat(
            f"wanted {wanted} of format {FORMAT}, got format {value['format']} in {path}: "
            "it was written by a later version; upgrade tinylm-train"
        )
    return value
