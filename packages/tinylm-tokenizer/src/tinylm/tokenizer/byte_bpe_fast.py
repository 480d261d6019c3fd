"""Byte-level BPE in plain Python, incremental: the same merges and ids as `byte_bpe.py`, much sooner.

What it changes: after a merge only the words that held the merged pair are looked at again. Each pair knows its count
and the words it occurs in; a heap with lazy deletion gives the next pair. When encoding, each piece is encoded once
and remembered; a merge looks only at the two pairs that it changes; and a long piece is merged through a heap, so that
one letter repeated a million times stays n log n. A text with many new pieces has them merged all at once, as arrays:
see `_engines/side_by_side.py`.

Sources: as `byte_bpe.py`; Provilkov et al. 2020 (BPE dropout, `Encoder.sample`).
What it does not do: use more than one core or leave Python and NumPy; see `kernels/`.
"""

from __future__ import annotations

import heapq
import itertools
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from tinylm.tokenizer._engines.vocabulary import Vocabulary
from tinylm.tokenizer._text.pretokenize import split
from tinylm.tokenizer.byte_bpe import ID_OF_BYTE, Pair

if TYPE_CHECKING:
    from random import Random

    import numpy as np
    from numpy.typing import NDArray

    from tinylm.tokenizer._engines.side_by_side import SideBySide

_LONG = 256  # bytes; up to here looking for the lowest rank among all is quicker than keeping a heap
_NEVER = 1 << 62  # the rank of a pair that does not merge
_CACHED_PIECES = 1 << 17  # bounds the memory of the cache
_BLOCK = 1 << 17  # pieces that are looked at together
_MANY = 256  # new pieces from which on merging them side by side is quicker
_ARRAY_IDS = 1 << 24  # ids below have places in an array
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


class _Merges:
    """The merges of a vocabulary, by pair: `rank[pair]`, the lowest first, and `result[rank]`, the id it makes."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.rank: dict[Pair, int] = {}
        self.result: dict[int, int] = {}
        for rank, (left, right, result) in enumerate(vocabulary.merges):
            if vocabulary.ranked:  # all pairs that make one token are equal
                rank = result
            if self.rank.setdefault((left, right), rank) == rank:
                self.result[rank] = result


def unmade(vocabulary: Vocabulary) -> list[bytes]:
    """The tokens that the merges do not make of their bytes: only a whole piece can be one (`whole_piece_first`)."""
    if vocabulary.merges_make_all:
        return []
    merges = _Merges(vocabulary)
    byte_ids = {token[0]: id for id, token in vocabulary.tokens.items() if len(token) == 1}  # some may lack: -1 below
    longer = ((id, token) for id, token in vocabulary.tokens.items() if len(token) > 1)
    return [token for id, token in longer if _merge_short([byte_ids.get(byte, -1) for byte in token], merges) != [id]]


class _Pieces(dict[str, bytes]):
    """Piece → ids (see `_packed`); a piece that is not there is encoded and remembered, so that a text is a look-up for
    each piece."""

    def __init__(self, encode: Callable[[str], bytes]) -> None:
        self._encode = encode

    def __missing__(self, piece: str) -> bytes:
        ids = self._encode(piece)
        if len(piece) <= _CACHED_LENGTH:
            if len(self) >= _CACHED_PIECES:
                self.clear()
            self[piece] = ids
        return ids


def _packed(ids: Iterable[int]) -> bytes:
    """Ids as the bytes of an array of uint32: those of many pieces are put together by one `join`."""
    return array("I", ids).tobytes()


class Encoder:
    """Text → ids and back. One object may be shared by threads."""

    name = "python"

    def __init__(self, vocabulary: Vocabulary, named: Mapping[int, bytes] | None = None) -> None:
        self._stages = vocabulary.stages
        self._byte_ids = vocabulary.byte_ids()
        self._merges = _Merges(vocabulary)
        whole = vocabulary.tokens.items() if vocabulary.whole_piece_first else ()
        self._whole = {token: id for id, token in whole}
        self._bytes = {**vocabulary.tokens, **(named or {})}
        self._pieces = _Pieces(self._encode_piece)
        self._arrays = max(vocabulary.tokens) < _ARRAY_IDS

    def encode(self, text: str) -> list[int]:
        """The ids of `text`. Errors: UnicodeEncodeError for a lone surrogate."""
        return memoryview(self._encode(text)).cast("I").tolist()

    def encode_array(self, text: str) -> NDArray[np.uint32]:
        """The same as an array of shape (ids,)."""
        import numpy as np

        return np.frombuffer(self._encode(text), dtype=np.uint32).copy()

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """`encode` of each text. Threads would not help: all of it holds Python's lock."""
        return [self.encode(text) for text in texts]

    def count(self, text: str) -> int:
        """How many ids `text` has."""
        return len(self._encode(text)) // 4

    def _encode(self, text: str) -> bytes:
        str.encode(text)  # so that the error names the place in the text and not in a piece
        pieces = split(text, self._stages)
        blocks = [pieces[start : start + _BLOCK] for start in range(0, len(pieces), _BLOCK)]
        return b"".join([b"".join(map(self._prepared(block).__getitem__, block)) for block in blocks])

    def _prepared(self, pieces: Sequence[str]) -> _Pieces:
        """What is remembered, after the new ones of `pieces` were merged side by side if they are many."""
        known = self._pieces
        if len(pieces) < _MANY or not self._arrays:
            return known
        new = list(itertools.filterfalse(known.__contains__, dict.fromkeys(pieces)))
        if len(known) + len(new) > _CACHED_PIECES:
            known.clear()
            new = list(dict.fromkeys(pieces))
        if len(new) >= _MANY:
            data = list(map(str.encode, new))
            if self._whole:
                split_up = [key not in self._whole for key in data]
                new, data = list(itertools.compress(new, split_up)), list(itertools.compress(data, split_up))
            for numbers, ids in self._side_by_side.encode(data):
                known.update(zip(map(new.__getitem__, numbers), ids, strict=True))
        return known

    @cached_property
    def _side_by_side(self) -> SideBySide:
        from tinylm.tokenizer._engines.side_by_side import SideBySide  # imports numpy

        return SideBySide(self._byte_ids, self._merges.rank, self._merges.result)

    def sample(self, text: str, dropout: float, chance: Random) -> list[int]:
        """Ids with BPE dropout (Provilkov et al. 2020): each merge is left out with probability `dropout`."""
        text.encode()
        return [
            id
            for piece in split(text, self._stages)
            for id in _merge_long(
                [self._byte_ids[byte] for byte in piece.encode()], self._merges, lambda: chance.random() < dropout
            )
        ]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of `ids`. Errors: KeyError for an id that is neither a token nor in `named`."""
        known = self._bytes
        return b"".join([known[id] for id in ids])

    def _encode_piece(self, piece: str) -> bytes:
        data = piece.encode()
        if (whole := self._whole.get(data)) is not None:
            return _packed([whole])
        ids = [self._byte_ids[byte] for byte in data]
        return _packed(_merge_short(ids, self._merges) if len(ids) <= _LONG else _merge_long(ids, self._merges))


def _merge_short(ids: list[int], merges: _Merges) -> list[int]:
    """Again and again, merge the pair of the lowest rank (the leftmost of several)."""
    rank_of, result_of, never = merges.rank.get, merges.result, _NEVER  # local names are quicker
    ids.append(-1)  # so that the last id has a right neighbour, too
    ranks = [rank_of(pair, never) for pair in itertools.pairwise(ids)]  # ranks[i]: of ids[i] and ids[i + 1]
    while (lowest := min(ranks)) != never:
        left = ranks.index(lowest)
        right = left + 1
        ids[left] = result = result_of[lowest]
        del ids[right], ranks[right]
        ranks[left] = rank_of((result, ids[right]), never)
        if left:
            ranks[left - 1] = rank_of((ids[left - 1], result), never)
    ids.pop()
    return ids


def _merge_long(ids: list[int], merges: _Merges, skip: Callable[[], bool] | None = None) -> list[int]:
    """The same through a heap of (rank, position) over a doubly linked list: n log n instead of n².

    skip: called before each merge, True leaves it out.
    """
    rank_of, result_of = merges.rank.get, merges.result
    following = [*range(1, len(ids)), -1]
    preceding = [*range(-1, len(ids) - 1)]
    ranks = [rank_of(pair, _NEVER) for pair in itertools.pairwise(ids)] + [_NEVER]
    heap = [(rank, left) for left, rank in enumerate(ranks) if rank != _NEVER]
    heapq.heapify(heap)
    while heap:
        rank, left = heapq.heappop(heap)
        if ranks[left] != rank:
            continue  # one half has been merged since
        if skip and skip():
            ranks[left] = _NEVER
            continue
        right = following[left]
        following[left] = after = following[right]
        ids[left], ids[right] = result_of[rank], -1
        ranks[left] = ranks[right] = _NEVER
        if after >= 0:
            preceding[after] = left
            ranks[left] = rank = rank_of((ids[left], ids[after]), _NEVER)
            if rank != _NEVER:
                heapq.heappush(heap, (rank, left))
        if (before := preceding[left]) >= 0:
            ranks[before] = rank = rank_of((ids[before], ids[left]), _NEVER)
            if rank != _NEVER:
                heapq.heappush(heap, (rank, before))
    return [id for id in ids if id >= 0]
