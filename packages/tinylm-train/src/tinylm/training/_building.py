"""A data set's folder while it is being made: beside its place, under another name, and able to go on after a kill.

state.json in it says from what it is made and which shards are whole; a file that it does not name counts for nothing.
The folder gets its real name when all is in it. Not here: shards (_shards.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinylm.training._encoding import Place
from tinylm.training._errors import TrainingError
from tinylm.training._files import (
    fsync,
    is_below,
    only_writer,
    put_in_place,
    read_json,
    remove_leftovers,
    sha256,
    write_json,
)
from tinylm.training._shards import Standing

_STATE = "state.json"


class Building:
    """The folder, and how far each split is."""

    def __init__(self, folder: Path, facts: dict[str, Any], splits: list[str]) -> None:
        self.folder, self.facts = folder, facts
        self.standing = self._found(splits) or {name: Standing() for name in splits}
        listed = {
            s[key] for split in self.standing.values() for s in split.shards for key in ("file", "documents_file")
        }
        for path in folder.iterdir():
            if path.name not in (*listed, _STATE):
                path.unlink()

    @property
    def continues(self) -> bool:
        """Whether there is a whole shard, to go on from."""
        return any(standing.shards for standing in self.standing.values())

    def save(self) -> None:
        """Say on the disk how far it is."""
        temporary = self.folder / f"{_STATE}.new"
        write_json(
            temporary, {"facts": self.facts, "splits": {n: dataclasses.asdict(s) for n, s in self.standing.items()}}
        )
        fsync(temporary)
        temporary.replace(self.folder / _STATE)
        fsync(self.folder)

    def _found(self, splits: list[str]) -> dict[str, Standing] | None:
        """What a killed process left, if it was making the same and its shards are whole."""
        try:
            state = read_json(self.folder / _STATE, "a half-made data set")
            if state["facts"] != self.facts or list(state["splits"]) != splits:
                return None
            standing = {n: Standing(**{**s, "place": Place(*s["place"])}) for n, s in state["splits"].items()}
            for shard in (shard for split in standing.values() for shard in split.shards):
                for file, digest in (("file", "sha256"), ("documents_file", "documents_sha256")):
                    if sha256(self.folder / shard[file]) != shard[digest]:
                        return None
        except (TrainingError, OSError, KeyError, TypeError, AttributeError):
            return None
        return standing


@contextlib.contextmanager
def building(final: Path, facts: dict[str, Any], splits: list[str]) -> Iterator[Building]:
    """A Building that becomes `final` when the block ends. An error removes it; a kill or Ctrl-C leaves it, and the
    same again goes on from its last whole shard. Raises TrainingError as _files.new_directory does."""
    final = final.resolve()  # a link stays, and what it leads to is replaced; "." gets its name
    final.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(final.parent, final.name)
    folder = final.parent / f".{final.name}.partial"
    folder.mkdir(exist_ok=True)
    with only_writer(folder, final):
        work = Building(folder, facts, splits)
        try:
            yield work
            (folder / _STATE).unlink(missing_ok=True)
            put_in_place(folder, final)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and work.continues:
                raise KeyboardInterrupt("stopped. The same command again goes on from its last whole shard.") from None
            if not isinstance(error, Exception) and work.continues:
                raise
            shutil.rmtree(folder, ignore_errors=True)
            if not isinstance(error, OSError) or not is_below(error.filename, folder):
                raise
            raise TrainingError(
                f"wanted to write {final}, got: {error.strerror or error}; nothing of it was left. Is the disk full? "
                "Free some space and run the same command again"
            ) from error
