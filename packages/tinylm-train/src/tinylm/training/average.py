"""An exponential moving average of the weights (Polyak and Juditsky 1992): what is judged and published, not trained.

Each update: a ← a + (1 − d) (θ − a), with d = min(decay, (1 + t) / (10 + t)) after t updates, so that the random start
is forgotten soon. The average sits where the last steps' noise cancels. Not here: the updates (step.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from tinylm.model import Transformer
from tinylm.training.spread import local


class Average:
    """The average of a model's weights, by name."""

    def __init__(self, model: Transformer, decay: float) -> None:
        self.model, self.decay = model, decay
        self.weights: dict[str, Tensor] = {name: p.detach().clone() for name, p in model.named_parameters()}

    def update(self, step: int) -> None:
        """Move towards the model's weights after its update number `step` (1 is the first)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        parameters = [local(p) for p in self.model.parameters()]
        torch._foreach_lerp_([local(weight) for weight in self.weights.values()], parameters, 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model has the average as its weights."""
        mine = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.load(self.weights)
        try:
            yield
        finally:
            self.load(mine)

    def load(self, weights: dict[str, Tensor]) -> None:
        """Put `weights` into the model."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(weights[name])
