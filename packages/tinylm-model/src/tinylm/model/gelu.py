"""GELU in the form of GPT-2, and its backward for the CPU, where torch takes as long for its tanh as for a product.

Not here: the MLP around it (transformer.py), the form that the derivation starts from (arrays/activations.py). Next:
swiglu.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tinylm.model._dtypes import wide
from tinylm.model._graph import graph_is_kept

_S, _C = 2 * math.sqrt(2 / math.pi), 0.044715
_BLOCK = 65536  # numbers for each thread: five blocks in float32 stay in the processor's cache


def gelu(x: Tensor) -> Tensor:
    """x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³))) (Hendrycks and Gimpel 2016), of any shape."""
    by_hand = x.device.type == "cpu" and x.requires_grad and torch.is_grad_enabled()
    if not by_hand or torch.compiler.is_compiling():
        return F.gelu(x, approximate="tanh")
    apply: Callable[..., Tensor] = _GELUOnCPU.apply  # torch leaves it untyped
    return apply(x)


class _GELUOnCPU(torch.autograd.Function):
    """As (1 + tanh a)/2 = σ(2a): with s = 2√(2/π), v = s (1 + 0.044715 x²) and σ = σ(x v),

        y = x σ,    ∂y/∂x = σ + x σ(1 − σ) ∂(x v)/∂x = σ + (y − y σ)(3 v − 2 s).

    The derivative is computed while σ is at hand and kept instead of x, so that the backward is one product. Blocks of
    float32 at least, whatever the type of x: nothing is rounded between.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        y, slope = torch.empty_like(x), torch.empty_like(x)
        size = min(_BLOCK * torch.get_num_threads(), max(1, x.numel()))
        scratch = [torch.empty(size, dtype=wide(x.dtype)) for _ in range(4)]
        constant = torch.full((size,), _S, dtype=wide(x.dtype))
        blocks = (torch.split(tensor.view(-1), size) for tensor in (x, y, slope))
        for xs, ys, slopes in zip(*blocks, strict=True):
            if len(xs) < size:
                constant, *scratch = (tensor[: len(xs)] for tensor in (constant, *scratch))
            block, v, sigma, z = scratch
            block.copy_(xs)
            torch.addcmul(constant, block, block, value=_S * _C, out=v)
            torch.mul(v, block, out=sigma).sigmoid_()
            ys.copy_(block.mul_(sigma))
            torch.addcmul(block, block, sigma, value=-1, out=z)
            slopes.copy_(torch.addcmul(sigma, v, z, value=3, out=v).sub_(z, alpha=2 * _S))
        ctx.save_for_backward(slope)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        slope: Tensor = ctx.saved_tensors[0]
        # in place unless another backward pass may follow: nothing else wants it
        return slope * upstream[0] if graph_is_kept() else slope.mul_(upstream[0])
