"""Adam on one vector, and the scalar rung's training loop with arrays: the same names, the same losses.

What it does not do: batches of several names, other optimisers (tinylm.training). Next: ../transformer.py.
"""

from __future__ import annotations

import numpy as np

from tinylm.model.arrays.layers import Array
from tinylm.model.arrays.transformer import Transformer
from tinylm.model.scalar.training import encode


class Adam:
    """The equations of scalar.training.Adam (Kingma and Ba 2015, alg. 1), for all weights at once."""

    def __init__(self, beta1: float = 0.9, beta2: float = 0.99, eps: float = 1e-8) -> None:
        self.beta1, self.beta2, self.eps = beta1, beta2, eps
        self.steps = 0
        self.m: Array | None = None
        self.v: Array | None = None

    def step(self, weights: Array, gradients: Array, rate: float) -> None:
        """Change `weights` (P,) in place."""
        self.steps += 1
        m = self.m = np.zeros_like(weights) if self.m is None else self.m
        v = self.v = np.zeros_like(weights) if self.v is None else self.v
        m += (1 - self.beta1) * (gradients - m)
        v += (1 - self.beta2) * (gradients * gradients - v)
        whole = (1 - self.beta2**self.steps) ** 0.5
        weights -= (rate * whole / (1 - self.beta1**self.steps)) * m / (np.sqrt(v) + self.eps * whole)


def train(model: Transformer, names: list[str], steps: int, rate: float = 0.01) -> list[float]:
    """One name a step, the rate falling to 0 in a straight line; changes the model's weights, returns each loss."""
    optimizer, losses = Adam(), []
    for step in range(steps):
        ids = encode(names[step % len(names)])[: model.config.context + 1]
        loss, gradients = model.loss_and_gradients([ids[:-1]], [ids[1:]])
        optimizer.step(model.weights.flat, gradients.flat, rate * (1 - step / steps))
        losses.append(loss)
    return losses
