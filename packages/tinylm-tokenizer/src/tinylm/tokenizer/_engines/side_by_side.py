"""Byte-level BPE of many pieces at once, with NumPy: the same ids as merging one piece after the other.

The steps are those of `byte_bpe.encode_piece`: the lowest rank first, of equals the leftmost. But a step is not one
merge: the pieces stand side by side, a column each, and in a round every column makes its next merge. So the
interpreter is paid once a round, and a merge costs what a few array look-ups cost.

Does not cut text and remembers nothing: `byte_bpe_fast.Encoder` does, and asks here when a text has many new pieces.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

_WIDTHS = (8, 16, 32, 64, 128)  # bytes; pieces up to a width stand in one table
_FEW, _ROWS = 128, 1 << 15  # fewer rows are quicker one by one; more would need much memory
_LEAST_TABLE = 1 << 15  # places; so large that hardly ever a third table is wanted
_PLACE_BITS = 8  # a step is a rank and, below it, the place of its left id: the least is the leftmost of the lowest
_PLACES = np.uint32((1 << _PLACE_BITS) - 1)
_NEVER = np.uint32(0xFFFFFFFF)  # the step of a pair that does not merge
_NONE = -1  # where no id is: what was joined with the id to its left, and on either side of a piece

Numbers = NDArray[np.int32]


class _Ranks:
    """(left id, right id) → step, for arrays of pairs: hash tables without chains. A pair that finds its place taken
    goes to the next table, which has another hash; two or three are enough."""

    def __init__(self, rank: Mapping[tuple[int, int], int]) -> None:
        self._left, self._right = np.array([*rank, (-2, -2)], dtype=np.int32).T.copy()  # the last one is for "no such"
        self._steps = np.array([*rank.values(), 0], dtype=np.uint32) << np.uint32(_PLACE_BITS)
        self._steps[-1] = _NEVER
        self._tables: list[tuple[int, Numbers]] = []
        waiting = np.arange(len(rank), dtype=np.int32)
        while len(waiting) or not self._tables:
            factor = 0x9E3779B1 + 2 * len(self._tables)
            table = np.full(max(1 << (16 * len(waiting)).bit_length(), _LEAST_TABLE), len(rank), dtype=np.int32)
            place = _hash(self._left[waiting], self._right[waiting], factor, len(table))
            table[place] = waiting
            self._tables.append((factor, table))
            waiting = waiting[table[place] != waiting]

    def of(self, left: Numbers, right: Numbers) -> NDArray[np.uint32]:
        """The step of each pair, its place left open; _NEVER where it does not merge."""
        none, (factor, table) = len(self._steps) - 1, self._tables[0]
        found = table[_hash(left, right, factor, len(table))]
        other = np.flatnonzero((self._left[found] != left) | (self._right[found] != right))
        for factor, table in self._tables[1:]:
            taken = other[found[other] != none]  # hardly any: an empty place says that no table has the pair
            found[other] = none
            if not len(taken):
                return self._steps[found]
            here, there = left[taken], right[taken]
            found[taken] = pair = table[_hash(here, there, factor, len(table))]
            other = taken[(self._left[pair] != here) | (self._right[pair] != there)]
        found[other] = none
        return self._steps[found]


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
        width, height = data.shape[1], len(data)
        data = np.ascontiguousarray(data.T)  # a piece is a column: the least of each takes a pass over whole lines
        inside = np.arange(width)[:, None] < sizes
        ids = np.full((width + 2, height), _NONE, dtype=np.int32)  # every id has a neighbour on either side
        ids[1:-1] = np.where(inside, self._byte_ids[data], _NONE)
        steps = np.full((width + 2, height), _NEVER, dtype=np.uint32)  # rank and place of the id here and the next one
        pairs = data[:-1].astype(np.int32) << 8 | data[1:]
        places = np.arange(1, width, dtype=np.uint32)[:, None]
        steps[1:-2] = np.where(inside[1:], self._two_bytes[pairs] | places, _NEVER)
        after = np.repeat(np.arange(1, width + 3, dtype=np.uint8)[:, None], height, axis=1)  # where the next id is
        before = after - np.uint8(2)
        whole, pieces = ids.reshape(-1), np.arange(height)
        while len(pieces):
            lowest = steps.min(axis=0)
            going = np.flatnonzero(lowest != _NEVER)
            if 4 * len(going) < 3 * len(pieces):
                steps, after, before = (table.take(going, axis=1) for table in (steps, after, before))
                pieces, lowest, going = pieces[going], lowest[going], np.arange(len(going))
            else:
                lowest = lowest[going]
            self._merge_once(whole, height, pieces[going], going, lowest, steps, after, before)
        return ids[1:-1].T

    def _merge_once(
        self,
        ids: Numbers,
        height: int,
        piece: NDArray[np.int64],
        column: NDArray[np.int64],
        lowest: NDArray[np.uint32],
        steps: NDArray[np.uint32],
        after: NDArray[np.uint8],
        before: NDArray[np.uint8],
    ) -> None:
        """In each of these columns, which hold those pieces, take the step `lowest`."""
        across = steps.shape[1]
        steps_, after_, before_ = steps.reshape(-1), after.reshape(-1), before.reshape(-1)  # views
        left = (lowest & _PLACES).astype(np.int64)
        at = left * across + column
        right = after_[at].astype(np.int64)
        gone = right * across + column
        next_ = after_[gone]
        previous = before_[at]
        made = self._results[lowest >> _PLACE_BITS]
        ids[left * height + piece] = made
        ids[right * height + piece] = _NONE
        after_[at] = next_
        following, leading = next_.astype(np.int64), previous.astype(np.int64)
        before_[following * across + column] = left
        steps_[gone] = _NEVER
        steps_[at] = self._ranks.of(made, ids[following * height + piece]) | lowest & _PLACES
        steps_[leading * across + column] = self._ranks.of(ids[leading * height + piece], made) | previous
