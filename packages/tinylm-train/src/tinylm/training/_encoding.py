"""The parts of a split → pieces of token ids in their order, encoded on several threads, from any place on.

The tokenizer's kernels work without Python's lock, so threads are enough. What waits is bounded by the number of
threads, whatever the length of the text. Not here: reading (_sources.py), writing (_shards.py).
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tinylm.tokenizer import Tokenizer
from tinylm.training import _sources
from tinylm.training._splits import Part


class Place(NamedTuple):
    """Where a piece begins: number of the part; character of the text file, or number of the record."""

    part: int = 0
    offset: int = 0


class Piece(NamedTuple):
    """Ids, where documents start in them, and the characters that they are (0: those of a later piece)."""

    ids: npt.NDArray[Any]
    starts: list[int]
    characters: int
    place: Place


class Encoder:
    """Encodes in `threads` threads; `read` is told how many characters were read."""

    def __init__(self, tokenizer: Tokenizer, dtype: str, threads: int, read: Callable[[int], None]) -> None:
        self.tokenizer, self.dtype, self.threads, self.read = tokenizer, np.dtype(dtype), threads, read
        self.end = np.array([] if tokenizer.eos_id is None else [tokenizer.eos_id], dtype=self.dtype)

    def pieces(self, parts: list[Part], place: Place) -> Iterator[Piece]:
        """All pieces of a split from `place` on."""
        for number in range(place.part, len(parts)):
            part = parts[number]
            first = max(part.start, place.offset if number == place.part else 0)
            if part.end > part.start:
                yield from (self._text if part.source.field is None else self._records)(number, part, first)

    def _text(self, number: int, part: Part, first: int) -> Iterator[Piece]:
        """One document, or the first or the last part of one."""
        offset, begun = first, first > part.start
        for ids, length in self.tokenizer.encode_parts(
            self._watch(part.source.text(first, part.end)), threads=self.threads
        ):
            yield Piece(ids.astype(self.dtype), [] if begun else [0], length or 0, Place(number, offset))
            begun, offset = True, offset + (length or 0)
        # Only a document that is whole ends here: the first nine tenths of a text do not.
        end = self.end if part.end == part.source.characters else self.end[:0]
        yield Piece(end, [], part.end - offset, Place(number, offset))

    def _watch(self, blocks: Iterator[str]) -> Iterator[str]:
        for block in blocks:
            self.read(len(block))
            yield block

    def _records(self, number: int, part: Part, first: int) -> Iterator[Piece]:
        with ThreadPoolExecutor(self.threads) as pool:
            waiting: deque[Future[Piece]] = deque()
            for group in _groups(part.documents(first)):
                waiting.append(pool.submit(self._encode, Place(number, group[0][0]), [text for _, text in group]))
                if len(waiting) > 2 * self.threads:
                    yield self._done(waiting)
            while waiting:
                yield self._done(waiting)

    def _done(self, waiting: deque[Future[Piece]]) -> Piece:
        piece = waiting.popleft().result()
        self.read(piece.characters)
        return piece

    def _encode(self, place: Place, texts: list[str]) -> Piece:
        arrays = [a for text in texts for a in (self.tokenizer.encode_array(text).astype(self.dtype), self.end)]
        lengths = [len(a) + len(self.end) for a in arrays[::2]]
        starts = list(itertools.accumulate(lengths, initial=0))[:-1]
        return Piece(np.concatenate(arrays), starts, sum(map(len, texts)), place)


def _groups(documents: Iterator[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    """Documents together, about a block of characters at a time."""
    group: list[tuple[int, str]] = []
    size = 0
    for number, text in documents:
        group.append((number, text))
        size += len(text)
        if size >= _sources.BLOCK:
            yield group
            group, size = [], 0
    if group:
        yield group
