"""Byte-level BPE in plain Python, incremental: the same merges and ids as `byte_bpe.py`, much sooner.

What it changes: after a merge only the words that held the merged pair are looked at again. Each pair knows its count
and the words it occurs in; a heap with lazy deletion gives the next pair. When encoding, each piece is encoded once
and remembered, and a long piece is merged through a heap, so that one letter repeated a million times stays n log n.

What it does not do: use more than one core or leave Python; see `kernels/`.
"""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from tinylm.tokenizer._engines.vocabulary import Merge3, Vocabulary
from tinylm.tokenizer._text.pretokenize import split
from tinylm.tokenizer.byte_bpe import ID_OF_BYTE, Pair

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_LONG = 64  # bytes; up to here looking at all pairs again is quicker than keeping a heap
_CACHED_PIECES = 1 << 17  # bounds the memory of the cache
_CACHED_LENGTH = 64  # characters


def train_merges(
    pieces: Mapping[str, int], wanted: int, progress: Callable[[int], None] = lambda done: None
) -> list[Pair]:
    """Learn at most `wanted` merges from pieces and how often each occurs; `progress(n)` is called after merge n."""
    words = [[ID_OF_BYTE[byte] for byte in piece.encode()] for piece in pieces]
    counts = list(pieces.values())
    pair_counts: dict[Pair, int] = defaultdict(int)
    words_with: dict[Pair, set[int]] = defaultdict(set)
    for index, word in enumerate(words):
        for pair in itertools.pairwise(word):
            pair_counts[pair] += counts[index]
            words_with[pair].add(index)
    heap = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(heap)

    merges: list[Pair] = []
    while len(merges) < wanted and heap:
        negative_count, best = heapq.heappop(heap)
        count = pair_counts.get(best, 0)
        if -negative_count != count:  # an old entry: the count went down since it was pushed
            if count:
                heapq.heappush(heap, (-count, best))
            continue
        new_id = 256 + len(merges)
        grown: set[Pair] = set()
        for index in words_with.pop(best):
            word = words[index]
            for pair in itertools.pairwise(word):
                pair_counts[pair] -= counts[index]
            word = words[index] = _merge(word, best, new_id)
            for pair in itertools.pairwise(word):
                pair_counts[pair] += counts[index]
                if new_id in pair:  # no other pair can have become more frequent
                    words_with[pair].add(index)
                    grown.add(pair)
        del pair_counts[best]
        for pair in grown:
            heapq.heappush(heap, (-pair_counts[pair], pair))
        merges.append(best)
        progress(len(merges))
    return merges


def _merge(ids: list[int], pair: Pair, new_id: int) -> list[int]:
    """`byte_bpe.merge`, jumping from one left half to the next instead of looking at every id."""
    left, right = pair
    merged: list[int] = []
    start = 0
    try:
        while True:
            found = ids.index(left, start)
            merged += ids[start:found]
            if found + 1 < len(ids) and ids[found + 1] == right:
                merged.append(new_id)
                start = found + 2
            else:
                merged.append(left)
                start = found + 1
    except ValueError:  # no further left half
        return merged + ids[start:]


class Encoder:
    """Text → ids and back. One object may be shared by threads."""

    name = "python"

    def __init__(self, vocabulary: Vocabulary, named: Mapping[int, bytes] | None = None) -> None:
        self._stages = vocabulary.stages
        self._byte_ids = vocabulary.byte_ids()
        self._merges: dict[Pair, tuple[int, int]] = {}  # pair → (rank, result)
        for rank, (left, right, result) in enumerate(vocabulary.merges):
            self._merges.setdefault((left, right), (rank, result))
        whole = vocabulary.tokens.items() if vocabulary.whole_piece_first else ()
        self._whole = {token: id for id, token in whole}
        self._bytes = {**vocabulary.tokens, **(named or {})}
        self._cache: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """The ids of `text`. Errors: UnicodeEncodeError for a lone surrogate."""
        str.encode(text)  # so that the error names the place in the text and not in a piece
        ids: list[int] = []
        cache = self._cache
        for piece in split(text, self._stages):
            known = cache.get(piece)
            ids += self._encode_new(piece) if known is None else known
        return ids

    def encode_array(self, text: str) -> NDArray[np.uint32]:
        """The same as an array of shape (ids,)."""
        import numpy as np

        return np.array(self.encode(text), dtype=np.uint32)

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """`encode` of each text. Threads would not help: all of it holds Python's lock."""
        return [self.encode(text) for text in texts]

    def count(self, text: str) -> int:
        """How many ids `text` has."""
        return len(self.encode(text))

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of `ids`. Errors: KeyError for an id that is neither a token nor in `named`."""
        known = self._bytes
        return b"".join([known[id] for id in ids])

    def _encode_new(self, piece: str) -> list[int]:
        data = piece.encode()
        if (whole := self._whole.get(data)) is not None:
            ids = [whole]
        else:
            ids = [self._byte_ids[byte] for byte in data]
            ids = _merge_short(ids, self._merges) if len(ids) <= _LONG else _merge_long(ids, self._merges)
        if len(piece) <= _CACHED_LENGTH:
            if len(self._cache) >= _CACHED_PIECES:
                self._cache = {}
            self._cache[piece] = ids
        return ids


def _merge_short(ids: list[int], merges: dict[Pair, tuple[int, int]]) -> list[int]:
    """Again and again, merge the pair of the lowest rank (the leftmost of several)."""
    none = (len(merges), -1)
    while len(ids) > 1:
        ranked = [merges.get(pair, none) for pair in itertools.pairwise(ids)]
        best = min(ranked)
        if best is none or best[1] < 0:
            break
        position = ranked.index(best)
        ids[position : position + 2] = [best[1]]
    return ids


def _merge_long(ids: list[int], merges: dict[Pair, tuple[int, int]]) -> list[int]:
    """The same through a heap of (rank, position) over a doubly linked list: n log n instead of n²."""
    following = [*range(1, len(ids)), -1]
    preceding = [*range(-1, len(ids) - 1)]
    heap: list[Merge3] = []  # rank, position of the left half, result

    def push(left: int, right: int) -> None:
        if left >= 0 and right >= 0 and (found := merges.get((ids[left], ids[right]))):
            heapq.heappush(heap, (found[0], left, found[1]))

    for position in range(len(ids) - 1):
        push(position, position + 1)
    while heap:
        rank, left, result = heapq.heappop(heap)
        right = following[left]
        if ids[left] < 0 or right < 0 or merges.get((ids[left], ids[right]), (-1,))[0] != rank:
            continue  # one half has been merged since
        ids[left], ids[right] = result, -1
        following[left] = after = following[right]
        if after >= 0:
            preceding[after] = left
        push(preceding[left], left)
        push(left, after)
    return [id for id in ids if id >= 0]
