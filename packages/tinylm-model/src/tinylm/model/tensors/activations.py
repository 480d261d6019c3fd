"""GELU, SiLU, SwiGLU and softmax, with their backwards.

The backwards take what entered, not what left: a pass over numbers costs less than keeping them until the backward.
Passes write in place where nobody else holds the tensor. Not here: the matrices around them (blocks.py). Next:
positions.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_C, _A = math.sqrt(2 / math.pi), 0.044715


def _gate(x: Tensor) -> Tensor:
    """½ (1 + tanh(c (x + a x³))) as σ(2c (x + a x³)), since ½ (1 + tanh u) = σ(2u)."""
    return (x * x).mul_(2 * _C * _A).add_(2 * _C).mul_(x).sigmoid_()


def gelu(x: Tensor) -> Tensor:
    """y = x s with s = ½ (1 + tanh(c (x + a x³))), c = sqrt(2/π), a = 0.044715 (Hendrycks and Gimpel 2016)."""
    return _gate(x).mul_(x)


def gelu_backward(dy: Tensor, x: Tensor) -> Tensor:
    """∂x = ∂y ⊙ (s + x s'), s' = s (1 − s) 2c (1 + 3 a x²): the product rule, and σ' = σ (1 − σ)."""
    s = _gate(x)
    slope = (x * x).mul_(6 * _C * _A).add_(2 * _C).mul_(x).mul_(1 - s).add_(1)
    return slope.mul_(s).mul_(dy)


def silu(x: Tensor) -> Tensor:
    """y = x σ(x) (Hendrycks and Gimpel 2016; "swish")."""
    return torch.sigmoid(x).mul_(x)


def silu_backward(dy: Tensor, x: Tensor) -> Tensor:
    """∂x = ∂y ⊙ σ (1 + x (1 − σ)): σ' = σ (1 − σ)."""
    s = torch.sigmoid(x)
    return (1 - s).mul_(x).add_(1).mul_(s).mul_(dy)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """y = SiLU(gate) ⊙ up (Shazeer 2020)."""
    return silu(gate).mul_(up)


def swiglu_backward(dy: Tensor, gate: Tensor, up: Tensor, d_gate: Tensor, d_up: Tensor) -> None:
    """∂gate = ∂y ⊙ up ⊙ σ (1 + gate (1 − σ)),  ∂up = ∂y ⊙ gate σ, into the halves of one tensor: one σ for both."""
    s = torch.sigmoid(gate)
    torch.mul(gate, s, out=d_up)
    torch.mul(1 - s, gate, out=d_gate)
    d_gate.add_(1).mul_(s).mul_(up).mul_(dy)
    d_up.mul_(dy)


def softmax_(scores: Tensor) -> tuple[Tensor, Tensor]:
    """p = exp(s) / Σ exp(s) over the last axis, written over s; and ln Σ exp(s), one number a row. s in a wide type.

    The largest score is taken off first, so that exp cannot overflow.
    """
    top = scores.amax(dim=-1, keepdim=True)
    p = scores.sub_(top).exp_()
    total = p.sum(dim=-1, keepdim=True)
    return p.div_(total), total.log_().add_(top)


def softmax_backward_(dp: Tensor, p: Tensor, shift: Tensor | None = None) -> Tensor:
    """∂s = p ⊙ (∂p − Σⱼ pⱼ ∂pⱼ), written over ∂p: raising every score alike changes nothing, so the mean of ∂p has no
    effect. `shift` is that sum, where the caller has it already."""
    shift = (dp * p).sum(dim=-1, keepdim=True) if shift is None else shift
    return dp.sub_(shift).mul_(p)
