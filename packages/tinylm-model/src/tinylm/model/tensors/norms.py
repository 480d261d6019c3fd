"""LayerNorm and RMSNorm over the last axis, with their backwards. QK-norm is RMSNorm over each head's numbers.

Kept for the backward are x̂ and one number a row. What follows a norm is a product that needs the norm's y for its own
gradient: `scaled` makes it again from x̂. Not here: where they stand in a block (blocks.py). Next: activations.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tinylm.model.tensors.layers import wide

Saved = tuple[Tensor, Tensor]  # x̂ in the model's type, and r in a wide one


def scaled(normal: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x̂ ⊙ w + b: a norm's result, from what it saved."""
    return normal * weight if bias is None else torch.addcmul(bias, normal, weight)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Saved]:
    """x̂ = r (x − mean(x)) with r = 1 / sqrt(variance(x) + eps),  y = x̂ ⊙ w + b (Ba et al. 2016). x (..., D)."""
    variance, mean = torch.var_mean(x.to(wide(x)), dim=-1, keepdim=True, correction=0)
    r = variance.add_(eps).rsqrt_()
    normal = (x - mean).mul_(r).to(x.dtype)
    return scaled(normal, weight, bias), (normal, r)


def layer_norm_backward(dy: Tensor, weight: Tensor, saved: Saved, d_weight: Tensor, d_bias: Tensor) -> Tensor:
    """With ∂x̂ = ∂y ⊙ w:  ∂x = r (∂x̂ − mean(∂x̂) − x̂ mean(∂x̂ ⊙ x̂)), returned;  ∂w = Σ ∂y ⊙ x̂ and ∂b = Σ ∂y over the
    rows, written into d_weight and d_bias.

    Moving x along the ones changes only the mean, along x̂ only the variance, and both are normalised away: ∂x̂ loses its
    parts along the two. With p = ∂y ⊙ x̂, mean(∂x̂ ⊙ x̂) is p w / D and mean(∂x̂) is ∂y w / D: matrix by vector, no pass
    over rows of their own.
    """
    normal, r = saved
    p = dy * normal
    torch.sum(_rows(p), 0, out=d_weight)
    torch.sum(_rows(dy), 0, out=d_bias)
    dx = (dy * weight).to(r.dtype)
    dx.addcmul_(normal, _share(p, weight), value=-1).sub_(_share(dy, weight)).mul_(r)
    return dx.to(dy.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Saved]:
    """x̂ = r x with r = 1 / sqrt(mean(x²) + eps),  y = x̂ ⊙ w (Zhang and Sennrich 2019). x (..., D)."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide(x))
    r = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    normal = (x * r).to(x.dtype)
    return scaled(normal, weight), (normal, r)


def rms_norm_backward(dy: Tensor, weight: Tensor, saved: Saved, d_weight: Tensor) -> Tensor:
    """With ∂x̂ = ∂y ⊙ w:  ∂x = r (∂x̂ − x̂ mean(∂x̂ ⊙ x̂)), returned;  ∂w = Σ ∂y ⊙ x̂ over the rows, into d_weight."""
    normal, r = saved
    p = dy * normal
    torch.sum(_rows(p), 0, out=d_weight)
    dx = (dy * weight).to(r.dtype)
    dx.addcmul_(normal, _share(p, weight), value=-1).mul_(r)
    return dx.to(dy.dtype)


def _rows(x: Tensor) -> Tensor:
    """(..., D) -> (N, D)."""
    return x.reshape(-1, x.shape[-1])


def _share(x: Tensor, weight: Tensor) -> Tensor:
    """x w / D over the last axis, which stays with length 1, in a wide type."""
    return (x.to(wide(x)) @ weight.to(wide(x))).unsqueeze(-1).div_(x.shape[-1])
