"""Each process has a copy of the model and computes its share of a batch; gradients are averaged while the backward
pass still goes on (Li et al. 2020, "PyTorch Distributed", https://arxiv.org/abs/2006.15704). All copies then make the
same update. Next: divided.py, when a copy is too large.
"""

from __future__ import annotations

import contextlib
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tinylm.model import Transformer
from tinylm.training.parallel.processes import Processes
from tinylm.training.strategy import LossFunction


class _Loss(nn.Module):
    """The model's loss as a forward pass, which is what DDP goes around."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, targets: Tensor, reduction: str) -> Tensor:
        return self.model.loss(ids, targets, reduction)


class Replicated(Processes):
    """Distributed data parallel."""

    _copies: DistributedDataParallel

    @property
    def description(self) -> str:
        """How many, and what they have."""
        return f"{self.world_size} processes, each with the whole model (DDP)"

    def wrap(self, model: Transformer) -> LossFunction:
        """All copies begin as the first process's."""
        ids: Any = [self.kind.index] if self.kind.type == "cuda" else None
        self._copies = copies = DistributedDataParallel(_Loss(model), device_ids=ids)

        def loss(inputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
            mine: Tensor = copies(inputs, targets, reduction)
            return mine

        return loss

    def accumulating(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Nothing is exchanged before the last part."""
        return contextlib.nullcontext() if last else self._copies.no_sync()
