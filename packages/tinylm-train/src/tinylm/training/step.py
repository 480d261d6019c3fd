"""One update: the gradient of a batch, in parts if asked, clipped, and handed to the optimisers.

A batch in parts gives the gradient of the whole: each part's loss is weighted by its share of the targets that count.
Not here: which batch, when, and what to do when a step goes wrong (trainer.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tinylm.model import Transformer
from tinylm.model.linear import narrow_gradients
from tinylm.training.optimizers import Adam
from tinylm.training.scaling import LossScale
from tinylm.training.spread import local
from tinylm.training.strategy import LossFunction, SingleProcess

_IGNORED = -100


@dataclasses.dataclass(frozen=True)
class Gradient:
    """What is known of a batch once its gradient stands in the parameters."""

    loss: float  # nats, the mean over the targets that count
    norm: float  # of the whole gradient, before clipping
    targets: int  # that count


class Step:
    """Holds what an update needs; `gradient`, then `update` or `discard`."""

    def __init__(
        self,
        model: Transformer,
        optimizers: Mapping[str, torch.optim.Optimizer],
        device: torch.device,
        clip: float,
        parts: int,
        strategy: SingleProcess,
    ) -> None:
        self.model, self.optimizers, self.device = model, optimizers, device
        self.clip, self.parts, self.strategy = clip, parts, strategy
        self.loss: LossFunction = strategy.wrap(model)
        self.autocast: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
        self.scale: LossScale | None = None  # in float16 only
        self.parameters: list[Tensor] = list(model.parameters())
        self._factor = 1.0  # that clips the gradient
        if parts == 1 and strategy.world_size == 1:  # no sum of gradients is rounded
            adams = [optimizer for optimizer in optimizers.values() if isinstance(optimizer, Adam)]
            narrow_gradients(model, (p for adam in adams for group in adam.param_groups for p in group["params"]))

    def gradient(self, inputs: Tensor, targets: Tensor) -> Gradient:
        """inputs, targets (B, T) int64 -> gradients in the parameters, which `update` clips."""
        counts = [int((part != _IGNORED).sum()) for part in targets.chunk(self.parts)]
        total = int(self.strategy.sum(sum(counts)))
        nats = torch.zeros((), dtype=torch.float64, device=self.device)
        # Over many processes gradients are averaged, and here they are to be summed.
        unit = (self.scale.scale if self.scale else 1.0) * self.strategy.data_ranks / max(1, total)
        for number, (ids, wanted, count) in enumerate(
            zip(inputs.chunk(self.parts), targets.chunk(self.parts), counts, strict=True)
        ):
            if not count and self.strategy.world_size == 1:
                continue  # over many processes, others may wait for this one's
            ids, wanted = (part.to(self.device, non_blocking=True) for part in (ids, wanted))
            with self.strategy.accumulating(last=number == len(counts) - 1):
                with self.autocast():
                    # A mean divides by the count inside the head, too early for float16's small numbers.
                    summed = self.scale is not None and not self.model.config.experts
                    loss = self.loss(ids, wanted, "sum") if summed else self.loss(ids, wanted, "mean") * count
                (loss * unit).backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
            nats += loss.detach()
        gradients = [local(p.grad) for p in self.parameters if p.grad is not None]
        if self.scale is not None and gradients:
            torch._foreach_mul_(gradients, 1 / self.scale.scale)
        norm = float(self.strategy.gradient_norm(self.parameters))
        self._factor = min(1.0, self.clip / (norm + 1e-6))
        return Gradient(self.strategy.sum(float(nats)) / max(1, total), norm, total)

    def forward(self, inputs: Tensor, targets: Tensor) -> None:
        """The batch through the model itself, for whoever watches it."""
        for ids, wanted in zip(inputs.chunk(self.parts), targets.chunk(self.parts), strict=True):
            with self.autocast():
                self.model.loss(ids.to(self.device), wanted.to(self.device))

    def update(self, factor: float) -> None:
        """Clip and move the weights; `factor`: of the peak learning rates."""
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
            if self._factor < 1:
                self._clip(optimizer)
            optimizer.step()
        self.discard()

    def _clip(self, optimizer: torch.optim.Optimizer) -> None:
        """Adam's kernel multiplies as it reads; for the others it is a pass over their gradients."""
        if isinstance(optimizer, Adam):
            optimizer.gradient_factor = self._factor
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [local(p.grad) for p in parameters if p.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, self._factor)

    def discard(self) -> None:
        """Forget the gradients."""
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
