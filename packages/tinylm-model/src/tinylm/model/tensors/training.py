"""Adam on one vector of tensors, and the scalar rung's training loop: the same names, the same losses.

What it does not do: batches of several names, other optimisers (tinylm.training). Next: ../transformer.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tinylm.model.scalar.training import encode
from tinylm.model.tensors.layers import wide
from tinylm.model.tensors.transformer import Transformer


class Adam:
    """The equations of scalar.training.Adam (Kingma and Ba 2015, alg. 1), for all weights at once, each a kernel in
    place. The averages are float32 at least; a 16-bit weight takes a change only if it is not below its last bit."""

    def __init__(self, beta1: float = 0.9, beta2: float = 0.99, eps: float = 1e-8) -> None:
        self.beta1, self.beta2, self.eps = beta1, beta2, eps
        self.steps = 0
        self.m: Tensor | None = None
        self.v: Tensor | None = None

    def step(self, weights: Tensor, gradients: Tensor, rate: float) -> None:
        """Change `weights` (P,) in place."""
        self.steps += 1
        g = gradients.to(wide(gradients))
        m = self.m = torch.zeros_like(g) if self.m is None else self.m
        v = self.v = torch.zeros_like(g) if self.v is None else self.v
        m.lerp_(g, 1 - self.beta1)
        v.mul_(self.beta2).addcmul_(g, g, value=1 - self.beta2)
        whole = (1 - self.beta2**self.steps) ** 0.5
        below = v.sqrt().add_(self.eps * whole)
        weights.addcdiv_(m, below, value=-rate * whole / (1 - self.beta1**self.steps))


def train(model: Transformer, names: list[str], steps: int, rate: float = 0.01) -> list[float]:
    """One name a step, the rate falling to 0 in a straight line; changes the model's weights, returns each loss."""
    optimizer, losses = Adam(), []
    for step in range(steps):
        ids = encode(names[step % len(names)])[: model.config.context + 1]
        loss, gradients = model.loss_and_gradients([ids[:-1]], [ids[1:]])
        optimizer.step(model.weights.flat, gradients.flat, rate * (1 - step / steps))
        losses.append(loss)
    return [loss.item() for loss in losses]  # looked at once, at the end
