"""Where the work runs: one process, or one of many. The trainer asks this object and nothing else about ranks.

`SingleProcess` is the whole interface, and its answers for a world of one. A strategy over many processes answers
the same questions with torch.distributed. Not here: the loop (trainer.py), one update (step.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor

from tinylm.model import Transformer

LossFunction = Callable[[Tensor, Tensor, str], Tensor]  # ids (B, T), targets (B, T), reduction -> loss


class SingleProcess:
    """One process, one device."""

    rank = 0
    world_size = 1

    @property
    def is_writer(self) -> bool:
        """Whether this process writes checkpoints and the run: exactly one does."""
        return self.rank == 0

    def wrap(self, model: Transformer) -> LossFunction:
        """What computes the training loss: here the model's own. The model's parameters stay the ones to update."""
        return model.loss

    def accumulating(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Around the backward pass of a part of a batch: processes need to agree on gradients after the last only."""
        return contextlib.nullcontext()

    def sum(self, number: float) -> float:
        """The sum of every process's number."""
        return number

    def whole(self, tensor: Tensor) -> Tensor:
        """All of a weight or of an optimiser's state, for a checkpoint: every process calls it, in the same order."""
        return tensor

    def gradient_norm(self, parameters: list[Tensor]) -> Tensor:
        """√Σ g² over all numbers of all gradients, wherever they are."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        return torch.nn.utils.get_total_norm(gradients)
