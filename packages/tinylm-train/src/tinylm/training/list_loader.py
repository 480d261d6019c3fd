"""The lowest rung of the data ladder: every token id in a Python list, and windows drawn from it.

It reads like the idea: cut the text into windows, shuffle them, take the next few. All of the text is in memory, 36
bytes a token instead of 2. Not here: files that stay on the disk (mapped_loader.py); ranks, packing, a thread
(data.py).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class ListLoader:
    """Batches of `batch_size` windows of `context` ids and their targets, one on; in the order of (seed, epoch)."""

    def __init__(self, shards: list[list[int]], batch_size: int, context: int, seed: int) -> None:
        self.shards, self.batch_size, self.context, self.seed = shards, batch_size, context, seed
        self.epoch = -1
        self.windows: list[list[int]] = []

    def next(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets, both (batch_size, context) int64."""
        batch: list[list[int]] = []
        while len(batch) < self.batch_size:
            if not self.windows:
                self._shuffle()
            shard, start = self.windows.pop()
            batch.append(self.shards[shard][start : start + self.context + 1])
        return torch.tensor([ids[:-1] for ids in batch]), torch.tensor([ids[1:] for ids in batch])

    def _shuffle(self) -> None:
        """The next epoch's windows, from a random offset in each shard."""
        self.epoch += 1
        random = np.random.Generator(np.random.Philox(key=[self.seed, self.epoch]))
        windows = []
        for number, shard in enumerate(self.shards):
            room = len(shard) - self.context
            if room > 0:
                offset = int(random.integers(min(self.context, room)))
                windows += [[number, start] for start in range(offset, room, self.context)]
        self.windows = random.permutation(np.array(windows), axis=0).tolist()[::-1]
