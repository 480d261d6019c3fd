"""Linear layers, and in 16 bits on the CPU their products by hand: a weight's gradient is computed into the memory of
the cast that the products read, instead of being one more tensor beside it.

Not here: the head's product (loss.py), the experts' (experts.py). Next: norm.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tinylm.model._dtypes import compute_dtype


class Linear(nn.Linear):
    """y = x Wᵀ + b. x (..., in) -> (..., out), under autocast in its type."""

    def forward(self, x: Tensor) -> Tensor:
        kind = compute_dtype(x)
        if not _by_hand(x, self.weight, kind):
            return super().forward(x)
        apply: Callable[..., Tensor] = _LinearOnCPU.apply  # torch leaves it untyped
        return apply(x.to(kind), self.weight, self.bias)


def narrow_gradients(model: nn.Module, parameters: Iterable[Tensor] | None = None) -> None:
    """From now on the gradients that are computed in bfloat16, here and in loss.py, stay in bfloat16 instead of being
    widened to the weight's type: half the memory, and the same numbers but for a table that is embedding and head, the
    sum of whose two gradients is rounded. parameters: those alone; by default all.

    For one backward pass an update: sums of several passes would be rounded to 16 bits. What reads `grad` must take
    them (tinylm-train's AdamW and Adam do).
    """
    chosen = None if parameters is None else {id(parameter) for parameter in parameters}
    for module in model.modules():
        if isinstance(module, (Linear, nn.Embedding)) and (chosen is None or id(module.weight) in chosen):
            module.weight.grad_dtype = None  # torch: a gradient of any type is kept as it comes


def _by_hand(x: Tensor, weight: Tensor, kind: torch.dtype) -> bool:
    """Where autocast would cast: not weights in 16 bits, nor such as are spread over processes."""
    cast = x.device.type == "cpu" and kind.itemsize == 2 and weight.dtype == torch.float32
    return cast and type(weight) is nn.Parameter and torch.is_grad_enabled() and not torch.compiler.is_compiling()


class _LinearOnCPU(torch.autograd.Function):
    """y = x Wᵀ + b:  ∂x = ∂y W,  ∂W = ∂yᵀ x,  ∂b = Σ ∂y, sums over all rows; each in the type of x.

    W is cast for each product instead of once: between the two the copies of all layers would be in memory. ∂W is
    written over the second. ∂yᵀ is copied where it is the smaller of the two: oneDNN is slower with a transposed first
    matrix.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        narrow = weight.to(x.dtype)
        dy, (for_x, for_weight, for_bias) = upstream[0].flatten(0, -2), ctx.needs_input_grad
        dx = dw = None
        if for_x:
            dx = (dy @ narrow).view_as(x)
        if for_weight:
            across = dy.mT.contiguous() if weight.shape[0] < weight.shape[1] else dy.mT
            dw = torch.mm(across, x.flatten(0, -2), out=narrow)
            if dw.dtype == torch.float16:  # which is scaled, and what undoes the scale needs float32's range
                dw = dw.float()
        return dx, dw, dy.sum(0) if for_bias else None
