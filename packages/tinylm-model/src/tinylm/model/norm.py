"""LayerNorm, and RMSNorm with its backward by hand for the CPU, where torch composes it of a dozen passes over memory.

On CUDA a Triton kernel does both (kernels/rmsnorm.py); torch's own rms_norm where that is switched off, and on the CPU
without gradients. LayerNorm is torch's own, but for what it keeps in 16 bits on the CPU. Next: attention.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinylm.model import kernels
from tinylm.model._dtypes import compute_dtype, wide


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x²) + eps) · weight over the last axis (Zhang and Sennrich 2019).

    Under autocast y has autocast's type, so that the products that share it do not each cast it again.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        dtype = compute_dtype(x)
        if kernels.chosen("rmsnorm", x):
            from tinylm.model.kernels.rmsnorm import rmsnorm

            return rmsnorm(x, self.weight, self.eps, dtype)
        if x.device.type == "cpu" and torch.is_grad_enabled():
            apply: Callable[..., Tensor] = _RMSNormOnCPU.apply  # torch leaves it untyped
            return apply(x, self.weight, self.eps, dtype)
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps).to(dtype)


class LayerNorm(nn.LayerNorm):
    """y = (x − mean(x)) / sqrt(var(x) + eps) · weight + bias over the last axis (Ba et al. 2016), in autocast's type as
    RMSNorm's."""

    def forward(self, x: Tensor) -> Tensor:
        dtype = compute_dtype(x)
        narrows = x.device.type == "cpu" and dtype.itemsize < x.dtype.itemsize and torch.is_grad_enabled()
        if not narrows or torch.compiler.is_compiling():
            return super().forward(x).to(dtype)
        apply: Callable[..., Tensor] = _LayerNormOnCPU.apply  # torch leaves it untyped
        return apply(x, self.weight, self.bias, self.eps, dtype)


class _LayerNormOnCPU(torch.autograd.Function):
    """torch's kernels, but what is kept for the backward is c = x − mean(x) in y's 16 bits, half of x, instead of x: it
    has the derivatives of x and the same r = 1 / sqrt(mean(c²) + eps), and a mean of 0. With x̂ = c r, g = ∂y ⊙ weight:

        ∂x = r (g − mean(g) − x̂ mean(g ⊙ x̂)),    ∂weight = Σ_rows ∂y ⊙ x̂,    ∂bias = Σ_rows ∂y.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        y, mean, r = torch.native_layer_norm(x, weight.shape, weight, bias, eps)
        c = torch.sub(x, mean, out=torch.empty_like(x, dtype=dtype))
        ctx.save_for_backward(c, r, weight)
        return y.to(dtype)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        c, r, weight = ctx.saved_tensors
        dy, c = (tensor.to(r.dtype) for tensor in (upstream[0], c))
        found: tuple[Tensor, ...] = torch.ops.aten.native_layer_norm_backward(
            dy, c, weight.shape, torch.zeros_like(r), r, weight, weight, [True, True, True]
        )  # the second weight stands for the bias, whose shape alone is asked for
        return *found, None, None


class _RMSNormOnCPU(torch.autograd.Function):
    """With r = 1 / sqrt(mean(x²) + eps), x̂ = x r and p = ∂y ⊙ x̂, summed over rows or over the last axis (of size D):

    ∂weight = Σ_rows p,    ∂x = r (∂y ⊙ weight − x̂ · (p · weight) / D).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide(x.dtype))  # of squares
        r = (norm.square() / x.shape[-1] + eps).rsqrt()
        ctx.save_for_backward(x, weight, r)
        y: Tensor = (x * r).mul_(weight).to(dtype)
        return y

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, r = ctx.saved_tensors
        (dy,) = upstream
        x_hat = x * r
        p = dy * x_hat
        shift = (p @ weight.to(p.dtype)).unsqueeze(-1) / x.shape[-1]
        dx = (dy * weight).to(p.dtype).sub_(x_hat.mul_(shift)).mul_(r)
        return dx.to(x.dtype), p.flatten(0, -2).sum(0).to(weight.dtype), None, None
