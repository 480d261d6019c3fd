"""The middle rung of the data ladder: shards stay on the disk, and a window is read when it is drawn.

Memory holds where windows begin, and the pages that were read lately. Not here: the state that a run goes on from,
ranks, packed documents, the thread that has the next batch ready (data.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def batches(paths: Sequence[Path], batch_size: int, context: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless inputs and targets, both (batch_size, context) int64, from shards of ids."""
    shards = [np.load(path, mmap_mode="r", allow_pickle=False) for path in paths]
    rows: list[np.ndarray[tuple[int], np.dtype[np.int64]]] = []
    epoch = 0
    while True:
        random = np.random.Generator(np.random.Philox(key=[seed, epoch]))
        windows = []
        for number, shard in enumerate(shards):
            room = len(shard) - context
            if room > 0:
                starts = np.arange(random.integers(min(context, room)), room, context)
                windows.append(np.stack([np.full_like(starts, number), starts], axis=1))
        for number, start in random.permutation(np.concatenate(windows), axis=0):
            rows.append(shards[number][start : start + context + 1].astype(np.int64))
            if len(rows) == batch_size:
                batch = torch.from_numpy(np.stack(rows))
                yield batch[:, :-1].contiguous(), batch[:, 1:].contiguous()
                rows = []
        epoch += 1
