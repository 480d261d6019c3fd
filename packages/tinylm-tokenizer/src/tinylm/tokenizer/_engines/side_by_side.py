"""Byte-level BPE of many pieces at once, with NumPy: the same ids as merging one piece after the other.

The steps are those of `byte_bpe.encode_piece`: the lowest rank first, of equals the leftmost. But a step is not one
merge: the pieces stand below one another, a row each, and in a round every row makes its next merge. So the interpreter
is paid once a round, and a merge costs what a few array look-ups cost.

Does not cut text and remembers nothing: `byte_bpe_fast.Encoder` does, and asks here when a text has many new pieces.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

_WIDTHS = (8, 16, 32, 64, 128)  # bytes; pieces up to a width stand in one table
_FEW, _ROWS = 128, 1 << 15  # fewer rows are quicker one by one; more would need much memory
_LEAST_TABLE = 1 << 15  # places; so large that hardly ever a third table is wanted
_NEVER = np.iinfo(np.int32).max  # the rank of a pair that does not merge
_NONE = -1  # where no id is: what was joined with the id to its left, and on either side of a piece

Numbers = NDArray[np.int32]


class _Ranks:
    """(left id, right id) → rank, for arrays of pairs: hash tables without chains. A pair that finds its place taken
    goes to the next table, which has another hash; two or three are enough."""

    def __init__(self, rank: Mapping[tuple[int, int], int]) -> None:
        self._left, self._right = np.array([*rank, (-2, -2)], dtype=np.int32).T.copy()  # the last one is for "no such"
        self._ranks = np.array([*rank.values(), _NEVER], dtype=np.int32)
        self._tables: list[tuple[int, Numbers]] = []
        waiting = np.arange(len(rank), dtype=np.int32)
        while len(waiting):
            factor = 0x9E3779B1 + 2 * len(self._tables)
            table = np.full(max(1 << (16 * len(waiting)).bit_length(), _LEAST_TABLE), len(rank), dtype=np.int32)
            place = _hash(self._left[waiting], self._right[waiting], factor, len(table))
            table[place] = waiting
            self._tables.append((factor, table))
            waiting = waiting[table[place] != waiting]

    def of(self, left: Numbers, right: Numbers) -> Numbers:
        """The rank of each pair; _NEVER where it does not merge."""
        found = np.full(len(left), len(self._ranks) - 1, dtype=np.int32)
        for factor, table in self._tables:
            pair = table[_hash(left, right, factor, len(table))]
            np.copyto(found, pair, where=(self._left[pair] == left) & (self._right[pair] == right))
        return self._ranks[found]


def _hash(left: Numbers, right: Numbers, factor: int, size: int) -> NDArray[np.uint32]:
    mixed = (left.view(np.uint32) * np.uint32(factor) ^ right.view(np.uint32)) * np.uint32(0x85EBCA6B)
    hashed: NDArray[np.uint32] = mixed >> np.uint32(33 - size.bit_length())
    return hashed


class SideBySide:
    """The merges of a vocabulary. byte_ids: the id of each byte; rank: (left id, right id) → rank, the lowest is merged
    first; result: rank → the id that the merge makes."""

    def __init__(self, byte_ids: Sequence[int], rank: Mapping[tuple[int, int], int], result: Mapping[int, int]) -> None:
        self._byte_ids = np.array(byte_ids, dtype=np.int32)
        self._ranks = _Ranks(rank)
        self._results = np.zeros(max(result, default=0) + 1, dtype=np.int32)
        self._results[[*result]] = [*result.values()]
        self._two_bytes = self._ranks.of(np.repeat(self._byte_ids, 256), np.tile(self._byte_ids, 256))

    def encode(self, pieces: Sequence[bytes]) -> Iterator[tuple[list[int], Iterator[bytes]]]:
        """Numbers of pieces, and the ids of each as the bytes of a uint32 array. Left out are pieces of a length that
        few have, and those of more than 128 bytes."""
        sizes = np.fromiter(map(len, pieces), dtype=np.int32, count=len(pieces))
        for below, width in zip((0, *_WIDTHS), _WIDTHS, strict=False):
            rows = np.flatnonzero((sizes > below) & (sizes <= width))
            for start in range(0, len(rows) - _FEW, _ROWS):
                some = rows[start : start + _ROWS]
                numbers = some.tolist()
                data = np.array([pieces[row] for row in numbers], dtype=f"S{width}").view(np.uint8).reshape(-1, width)
                ids = self._merged(data, sizes[some])
                there = ids != _NONE
                ends = (4 * np.cumsum(np.count_nonzero(there, axis=1))).tolist()
                joined = ids[there].tobytes()
                yield numbers, map(joined.__getitem__, map(slice, [0, *ends], ends))

    def _merged(self, data: NDArray[np.uint8], sizes: Numbers) -> Numbers:
        """data: bytes, shape (rows, width), of which the first `sizes` of a row count → ids of the same shape, _NONE
        where none begins."""
        height, width = data.shape
        columns = width + 2  # one more on either side of the bytes, so that every id has two neighbours
        inside = np.arange(width) < sizes[:, None]
        ids = np.full((height, columns), _NONE, dtype=np.int32)
        ids[:, 1:-1] = np.where(inside, self._byte_ids[data], _NONE)
        ranks = np.full((height, columns), _NEVER, dtype=np.int32)  # of the id here and the next one
        pairs = data[:, :-1].astype(np.int32) << 8 | data[:, 1:]
        ranks[:, 1:-2] = np.where(inside[:, 1:], self._two_bytes[pairs], _NEVER)
        after = np.tile(np.arange(1, columns + 1, dtype=np.uint8), (height, 1))  # where the next id is
        before = after - np.uint8(2)
        first = np.arange(height) * columns  # where a row begins in `ids`
        flat = ids.reshape(-1)
        while len(first):
            left = ranks.argmin(axis=1)
            lowest = np.take_along_axis(ranks, left[:, None], axis=1)[:, 0]
            going = lowest != _NEVER
            if not going.all():
                ranks, after, before = ranks[going], after[going], before[going]
                first, left, lowest = first[going], left[going], lowest[going]
            self._merge_once(flat, first, left, lowest, ranks, after, before)
        return ids[:, 1:-1]

    def _merge_once(
        self,
        ids: Numbers,
        first: NDArray[np.int64],
        left: NDArray[np.int64],
        lowest: Numbers,
        ranks: Numbers,
        after: NDArray[np.uint8],
        before: NDArray[np.uint8],
    ) -> None:
        """In each row join the id in column `left` with the next one; `lowest` is the rank of that."""
        row = np.arange(len(left)) * ranks.shape[1]
        ranks_, after_, before_ = ranks.reshape(-1), after.reshape(-1), before.reshape(-1)  # views
        at = row + left
        right = after_[at]
        next_ = after_[row + right]
        previous = before_[at]
        ids[first + left] = made = self._results[lowest]
        ids[first + right] = _NONE
        after_[at] = next_
        before_[row + next_] = left
        ranks_[row + right] = _NEVER
        ranks_[at] = self._ranks.of(made, ids[first + next_])
        ranks_[row + previous] = self._ranks.of(ids[first + previous], made)
