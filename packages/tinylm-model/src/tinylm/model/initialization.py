"""The numbers a model begins with, all rules in one function.

Not here: the shapes (transformer.py). Next: training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.overrides import TorchFunctionMode

from tinylm.model._errors import ModelError

if TYPE_CHECKING:
    from tinylm.model.transformer import Transformer


@contextmanager
def uninitialized() -> Iterator[None]:
    """A model made within has its parameters on the meta device, without numbers: those of a file take their place.

    `torch.device("meta")` alone would do, but drawing numbers there imports torch's compiler, a second or more.
    """
    with torch.device("meta"), _NoNumbers():
        yield


class _NoNumbers(TorchFunctionMode):
    """Whatever would fill a tensor leaves it as it is."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init" or getattr(func, "__name__", "") in _FILLING:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


_FILLING = ("normal_", "uniform_", "fill_", "zero_")


@torch.no_grad()
def initialize(
    model: Transformer, residual: Literal["scaled", "zero"] = "scaled", generator: torch.Generator | None = None
) -> None:
    """Fill every parameter of `model` in place.

    - matrices, a router's and each expert's too: normal with std 0.02 · sqrt(768 / fan_in), which is GPT-2's 0.02 at
      GPT-2's width and keeps the size of activations the same at any other (the fan-in rule of muP, Yang et al. 2022);
    - embeddings and an untied head: normal, std 0.02 (Radford et al. 2019);
    - the two projections that write into the residual stream (attention.output, mlp.down): "scaled" divides their std
      by sqrt(2 · depth), so that the sum over the layers keeps its variance (GPT-2); "zero" starts every block as the
      identity;
    - biases 0, norm weights 1.
    """
    if residual not in ("scaled", "zero"):
        raise ModelError(f"initialize: wanted residual to be 'scaled' or 'zero', got {residual!r}")
    shrink = 0.0 if residual == "zero" else 1 / math.sqrt(2 * model.config.depth)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        elif parameter.ndim == 1:
            parameter.fill_(1.0)
        elif name in ("embed.weight", "positions.weight", "head.weight"):
            parameter.normal_(0.0, 0.02, generator=generator)
        else:
            std = 0.02 * math.sqrt(768 / parameter.shape[-1])
            if name.endswith(("attention.output.weight", "mlp.down.weight")):
                std *= shrink
            parameter.normal_(0.0, std, generator=generator)
