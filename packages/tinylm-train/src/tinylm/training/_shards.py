"""Pieces of ids → shards on the disk, so that after every whole shard the work can go on from there.

Ids go to the file as they come: nothing of a shard's size is held in memory. A shard ends in the middle of a document,
and of a piece, when it is full; the document goes on in the next. Not here: what the pieces are (_encoding.py), where
the state is kept (_building.py).
"""

from __future__ import annotations

import dataclasses
import io
from array import array
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from tinylm.training._encoding import Piece, Place
from tinylm.training._files import fsync, sha256


@dataclasses.dataclass
class Standing:
    """How far a split is: its whole shards, and where the text that is in none of them begins.

    `skip` ids from `place` on are in the shards already; `characters` come before `place`.
    """

    shards: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    place: Place = dataclasses.field(default_factory=Place)
    skip: int = 0
    characters: int = 0
    whole: bool = False


class Writer:
    """Writes pieces, which begin at standing.place, as shards of `size` ids; `standing` moves on, and is `save`d, with
    every whole shard."""

    def __init__(
        self, standing: Standing, folder: Path, name: str, dtype: np.dtype[Any], size: int, save: Callable[[], None]
    ) -> None:
        self.standing, self.folder, self.name, self.dtype = standing, folder, name, dtype
        self.size, self.save, self.skip = size, save, standing.skip
        self.place, self.before, self.total = standing.place, standing.characters, standing.characters
        self.since = 0  # ids behind `place` that were met
        self.shard = self._next()

    def write(self, pieces: Iterable[Piece]) -> None:
        """All of them; then the split is whole."""
        try:
            for piece in pieces:
                self._add(piece)
            if self.shard.tokens:
                self.standing.shards.append(self.shard.close())
        finally:
            self.shard.abandon()
        self.standing.characters, self.standing.whole = self.total, True
        self.save()

    def _add(self, piece: Piece) -> None:
        if piece.place != self.place:
            self.place, self.since, self.before = piece.place, 0, self.total
            self.skip = 0
        done = min(max(0, self.skip - self.since), len(piece.ids))
        begins = iter([start for start in piece.starts if start >= done])
        start = next(begins, None)
        while done < len(piece.ids) or start is not None:
            if self.shard.tokens == self.size:
                self._finish(self.since + done)
            if start == done:
                self.shard.documents.append(self.shard.tokens)
                start = next(begins, None)
            end = len(piece.ids) if start is None else start
            end = min(end, done + self.size - self.shard.tokens)
            self.shard.append(piece.ids[done:end])
            done = end
        self.since += len(piece.ids)
        self.total += piece.characters

    def _finish(self, skip: int) -> None:
        """The shard is full, and `skip` ids behind `place` are in it or before it."""
        standing = self.standing
        standing.shards.append(self.shard.close())
        standing.place, standing.skip, standing.characters = self.place, skip, self.before
        self.save()
        self.shard = self._next()

    def _next(self) -> _Shard:
        return _Shard(self.folder, f"{self.name}-{len(self.standing.shards):05d}", self.dtype, self.size)


class _Shard:
    """A file that ids are appended to; its header has room for any number of them."""

    def __init__(self, folder: Path, stem: str, dtype: np.dtype[Any], size: int) -> None:
        self.path, self.documents_path = folder / f"{stem}.npy", folder / f"{stem}.documents.npy"
        self.dtype, self.tokens, self.documents = dtype, 0, array("Q")
        self.file: BinaryIO = self.path.open("wb")
        self.file.write(self._header(size))

    def append(self, ids: npt.NDArray[Any]) -> None:
        self.file.write(ids.tobytes())
        self.tokens += len(ids)

    def close(self) -> dict[str, Any]:
        """Write what is only known at the end, and force it to the disk; returns the shard's entry in data.json."""
        self.file.seek(0)
        self.file.write(self._header(self.tokens))
        self.file.close()
        np.save(self.documents_path, np.frombuffer(self.documents, dtype=np.uint64))
        for path in (self.path, self.documents_path):
            fsync(path)
        return {
            "file": self.path.name,
            "tokens": self.tokens,
            "sha256": sha256(self.path),
            "documents_file": self.documents_path.name,
            "documents": len(self.documents),
            "documents_sha256": sha256(self.documents_path),
        }

    def abandon(self) -> None:
        """Remove the file if it was not closed."""
        if not self.file.closed:
            self.file.close()
            self.path.unlink(missing_ok=True)

    def _header(self, tokens: int) -> bytes:
        """As np.save writes it: padded so that a longer or shorter array's takes the same room."""
        header = io.BytesIO()
        described = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (tokens,)}
        np.lib.format.write_array_header_1_0(header, described)
        return header.getvalue()
