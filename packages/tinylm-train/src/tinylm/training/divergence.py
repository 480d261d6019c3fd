"""Has this step gone wrong, and where? A loss or gradient that is not a number, or one far outside what came before.

Where: the first module whose output is not a number, found by running the batch again with a hook on each module; if
the forward pass is sound, the parameter where the backward pass met the first bad gradient; for a spike, the one with
the largest gradient. Not here: what to do about it (trainer.py: stop, skip, rollback).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tinylm.training.spread import local

WINDOW = 64  # steps that a step is compared with
_ENOUGH = 32  # fewer say nothing yet


def not_a_number(loss: float, norm: float) -> str | None:
    """In words, or None."""
    if math.isfinite(loss) and math.isfinite(norm):
        return None
    return f"the loss is {loss} and the gradient norm {norm}"


def spike(loss: float, norm: float, losses: Sequence[float], norms: Sequence[float], times: float) -> str | None:
    """In words, or None: a gradient norm beyond `times` the median of the steps before, or a loss beyond their median
    by one nat and by `times` their median distance from it. 0: nothing is one."""
    if not times or len(norms) < _ENOUGH:
        return None
    usual = statistics.median(norms)
    if norm > times * usual:
        return f"the gradient norm is {norm:.3g}, {norm / usual:.0f} times the usual {usual:.3g}"
    middle = statistics.median(losses)
    spread = statistics.median(abs(value - middle) for value in losses)
    if loss > middle + max(1.0, times * spread):
        return f"the loss is {loss:.3f}, the usual {middle:.3f}"
    return None


def no_better_than_guessing(loss: float, vocab_size: int) -> str | None:
    """In words, or None: a loss, nats a token, that finding every token equally likely has too. Norms keep a model
    finite at a learning rate that is far too high, and nothing else tells."""
    guessing = math.log(vocab_size)
    return None if loss < guessing else f"the loss is {loss:.3f}, no better than guessing ({guessing:.3f})"


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether every number is one. A pass without a copy: what is not a number is both the least and the largest."""
    return all(math.isfinite(bound) for tensor in tensors if tensor.numel() for bound in tensor.aminmax())


def guilty_module(model: nn.Module, forward: Callable[[], Any]) -> str | None:
    """The first module whose output holds a number that is not finite while `forward` runs, or None."""
    found: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            tensors = output if isinstance(output, tuple) else (output,)
            if not found and any(isinstance(t, Tensor) and not bool(t.isfinite().all()) for t in tensors):
                found.append(name)

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def guilty_parameter(model: nn.Module) -> str | None:
    """The last parameter, as the forward pass goes, whose gradient is not finite; else the one with the largest."""
    gradients = [(name, local(p.grad)) for name, p in model.named_parameters() if p.grad is not None]
    bad = [name for name, gradient in gradients if not bool(gradient.isfinite().all())]
    if bad:
        return bad[-1]
    return max(gradients, key=lambda pair: float(pair[1].norm()))[0] if gradients else None
