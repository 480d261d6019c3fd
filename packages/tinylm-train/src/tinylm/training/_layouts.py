"""An epoch laid out: which tokens stand in which row, and the rows in their order. A function of (seed, epoch) alone.

`Windows` cuts each shard into stretches of the context's length, whatever documents they cross, from a random offset.
`Packed` keeps documents apart: a long one fills rows of its own, and what is left of it and the short ones are packed,
longest first, each into the fullest row that still has room for it (best-fit decreasing; for training: Ding et al.
2024, "Fewer Truncations Improve Language Modeling"). Not here: batches (data.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from tinylm.training.data import TokenDataset

IGNORED = -100  # a target that does not count: torch's and tinylm.model's
Ids = npt.NDArray[np.int64]


class Windows:
    """Windows next to each other, without overlap: `places[i]` is the shard and the first token of row i."""

    def __init__(self, dataset: TokenDataset, context: int, seed: int, epoch: int) -> None:
        self.dataset, self.context = dataset, context
        random = np.random.Generator(np.random.Philox(key=[seed, epoch]))
        places = []
        for number, shard in enumerate(dataset.shards):
            room = len(shard) - context  # one more token than the window, for the last target
            if room > 0:
                starts = np.arange(random.integers(min(context, room)), room, context, dtype=np.int64)
                places.append(np.stack([np.full_like(starts, number), starts], axis=1))
        self.places = random.permutation(np.concatenate(places), axis=0)

    def __len__(self) -> int:
        return len(self.places)

    def row(self, index: int) -> tuple[Ids, Ids]:
        """Inputs and targets of a row, (context,) each."""
        shard, start = self.places[index]
        ids = np.asarray(self.dataset.shards[shard][start : start + self.context + 1], dtype=np.int64)
        return ids[:-1], ids[1:]


class Packed:
    """Rows of whole documents; a target of -100 stands where a document, or padding, ends.

    Every token but the first of each document (of a shard) is a target once an epoch. `pieces` (N, 3): shard, first
    token, length; those of row i are pieces[ends[i-1]:ends[i]].
    """

    def __init__(self, dataset: TokenDataset, context: int, seed: int, epoch: int) -> None:
        self.dataset, self.context = dataset, context
        random = np.random.Generator(np.random.Philox(key=[seed, epoch]))
        full, rest = _cut(dataset, context)
        rest = random.permutation(rest, axis=0)  # documents of one length meet others in each epoch
        rest = rest[np.argsort(-rest[:, 2], kind="stable")]
        rows = _best_fit(rest[:, 2], context)
        number = np.concatenate([np.arange(len(full)), len(full) + rows])
        order = random.permutation(len(full) + (int(rows.max()) + 1 if len(rows) else 0))
        place = np.argsort(order, kind="stable")[number]
        by_row = np.argsort(place, kind="stable")
        self.pieces = np.concatenate([full, rest])[by_row]
        self.ends = np.searchsorted(place[by_row], np.arange(len(order)), side="right")

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def filled(self) -> float:
        """The share of places that hold a token."""
        return float(self.pieces[:, 2].sum()) / max(1, len(self) * self.context)

    def row(self, index: int) -> tuple[Ids, Ids]:
        """Inputs and targets of a row, (context,) each."""
        inputs, targets = np.zeros(self.context, np.int64), np.full(self.context, IGNORED, np.int64)
        at = 0
        for number, start, length in self.pieces[self.ends[index - 1] if index else 0 : self.ends[index]]:
            shard, whole = self.dataset.shards[number], start + length
            # a row that is full of one document goes on to the token behind it; elsewhere the piece is the end of one
            end = whole + 1 if length == self.context and self._goes_on(number, whole) else whole
            ids = shard[start:end]
            inputs[at : at + length] = ids[:length]
            targets[at : at + len(ids) - 1] = ids[1:]
            at += length
        return inputs, targets

    def _goes_on(self, shard: int, token: int) -> bool:
        """Whether `token` is there and begins no document."""
        starts = self.dataset.documents[shard]
        place = np.searchsorted(starts, token)
        return token < len(self.dataset.shards[shard]) and not (place < len(starts) and starts[place] == token)


def _cut(dataset: TokenDataset, context: int) -> tuple[Ids, Ids]:
    """Every document as full rows and what is left of it: two arrays (N, 3) of shard, first token and length."""
    full, rest = [np.empty((0, 3), np.int64)], [np.empty((0, 3), np.int64)]
    for number, (shard, documents) in enumerate(zip(dataset.shards, dataset.documents, strict=True)):
        starts = np.unique(np.concatenate([[0], documents.astype(np.int64)]))
        lengths = np.diff(starts, append=len(shard))
        rows = np.maximum(lengths - 1, 0) // context  # each with one more token for its last target
        which = np.repeat(np.arange(len(starts)), rows)
        nth = np.arange(len(which)) - np.repeat(np.cumsum(rows) - rows, rows)
        first = starts[which] + nth * context
        full.append(np.stack([np.full_like(first, number), first, np.full_like(first, context)], axis=1))
        left = lengths - rows * context
        some = left > 1  # one token alone predicts nothing
        first, left = (starts + rows * context)[some], left[some]
        rest.append(np.stack([np.full_like(first, number), first, left], axis=1))
    return np.concatenate(full), np.concatenate(rest)


def _best_fit(lengths: Ids, room: int) -> Ids:
    """The row of each piece: the fullest one that has room for it, or a new one. Linear in the number of pieces."""
    rows = np.empty(len(lengths), np.int64)
    having: list[list[int]] = [[] for _ in range(room + 1)]  # rows by the room that they have left
    some = 0  # bit n: there is a row with n places left
    count = 0
    for number, length in enumerate(lengths.tolist()):
        fitting = some >> length
        if fitting:
            left = length + (fitting & -fitting).bit_length() - 1
            row = having[left].pop()
            if not having[left]:
                some ^= 1 << left
        else:
            left, row = room, count
            count += 1
        rows[number] = row
        left -= length
        having[left].append(row)
        some |= 1 << left
    return rows
