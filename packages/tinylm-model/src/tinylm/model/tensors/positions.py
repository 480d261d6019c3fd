"""Rotary positions: queries and keys turned by an angle that grows with their place (Su et al. 2021, eq. 34).

Learned positions are an embedding (layers.py). Not here: scaled forms of RoPE. Next: attention.py.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotations(time: int, head_dim: int, theta: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines (T, head_dim / 2) of the angles t · θ^(−2i / head_dim), computed in float64, of like's type."""
    pairs = torch.arange(0, head_dim, 2, dtype=torch.float64, device=like.device)
    angles = torch.arange(time, dtype=torch.float64, device=like.device)[:, None] * theta ** (-pairs / head_dim)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each pair (a, b) = (x[i], x[i + head_dim / 2]) becomes (a cos − b sin, b cos + a sin). x (..., T, head_dim).

    A query turned by t and a key turned by s have a product that depends on t − s only. Hugging Face's half-split
    layout of the pairs. The result is contiguous, as the products of attention.py want it, whatever x was.
    """
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    (a, b), (first, second) = x.chunk(2, dim=-1), y.chunk(2, dim=-1)
    torch.mul(a, cos, out=first).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=second).addcmul_(a, sin)
    return y


def rope_backward(dy: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """∂x = Rᵀ ∂y: a rotation's transpose is the rotation back."""
    return rope(dy, cos, -sin)
