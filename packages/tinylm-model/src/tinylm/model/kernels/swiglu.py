"""SwiGLU's inner part, SiLU(gate) ⊙ up, in one pass over memory forward and one backward.

    σ = 1 / (1 + exp(−g))          y = g σ ⊙ u                                             (Shazeer 2020, eq. 5)
    ∂u = ∂y ⊙ g σ                  ∂g = ∂y ⊙ u ⊙ σ (1 + g (1 − σ))

Memory traffic for N numbers: forward reads 2·N and writes N (torch's two operations: 3·N and 2·N, and SiLU(gate) is
kept for the backward pass); backward reads 3·N and writes 2·N, with σ computed again.
What it does not do: the three products of matrices around it (transformer.py). Next: attention.py.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from tinylm.model._errors import ModelError
from tinylm.model.kernels import _launch

BLOCK = 1024  # numbers of one row that a program computes


def swiglu_reference(gate: Tensor, up: Tensor) -> Tensor:
    """What the kernel computes, in torch."""
    return F.silu(gate) * up


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """gate, up (..., M) -> SiLU(gate) ⊙ up (..., M), computed in float32 and rounded once. ModelError if they differ in
    shape or type."""
    _launch.check("swiglu", gate, up)
    if gate.shape != up.shape or gate.ndim == 0:
        raise ModelError(f"swiglu: wanted gate and up of one shape, got {tuple(gate.shape)} and {tuple(up.shape)}")
    y: Tensor = _SwiGLU.apply(gate, up)
    return y


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        y: Tensor = swiglu_forward(gate, up)
        return y

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, ...]:
        d_gate, d_up = swiglu_backward(upstream[0], *ctx.saved_tensors)
        return d_gate, d_up


@torch.library.custom_op("tinylm_model::swiglu_forward", mutates_args=())
def swiglu_forward(gate: Tensor, up: Tensor) -> Tensor:
    """-> SiLU(gate) ⊙ up."""
    g, u = _launch.rows_of(gate), _launch.rows_of(up)
    rows, size = g.shape
    y = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    if y.numel():
        parts = triton.cdiv(size, BLOCK)
        with _launch.on(gate):
            _forward[(rows * parts,)](g, u, y, size, parts, g.stride(0), u.stride(0), BLOCK, num_warps=4)
    return y


@torch.library.custom_op("tinylm_model::swiglu_backward", mutates_args=())
def swiglu_backward(dy: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """-> ∂gate, ∂up."""
    d, g, u = _launch.rows_of(dy), _launch.rows_of(gate), _launch.rows_of(up)
    rows, size = g.shape
    d_gate = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    d_up = torch.empty_like(d_gate)
    if d_up.numel():
        parts = triton.cdiv(size, BLOCK)
        with _launch.on(gate):
            _backward[(rows * parts,)](
                d, g, u, d_gate, d_up, size, parts, d.stride(0), g.stride(0), u.stride(0), BLOCK, num_warps=4
            )
    return d_gate, d_up


@swiglu_forward.register_fake
def _(gate: Tensor, up: Tensor) -> Tensor:
    return gate.new_empty(gate.shape)


@swiglu_backward.register_fake
def _(dy: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape), gate.new_empty(gate.shape)


@triton.jit
def _forward(gate, up, y, size, parts, gate_stride, up_stride, BLOCK: tl.constexpr):
    row = (tl.program_id(0) // parts).to(tl.int64)
    column = (tl.program_id(0) % parts) * BLOCK + tl.arange(0, BLOCK)
    mask = column < size
    g = tl.load(gate + row * gate_stride + column, mask=mask, other=0.0).to(tl.float32)
    u = tl.load(up + row * up_stride + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + row * size + column, (g * tl.sigmoid(g) * u).to(y.dtype.element_ty), mask=mask)


@triton.jit
def _backward(
    dy, gate, up, d_gate, d_up, size, parts, dy_stride, gate_stride, up_stride, BLOCK: tl.constexpr
):  # fmt: skip
    row = (tl.program_id(0) // parts).to(tl.int64)
    column = (tl.program_id(0) % parts) * BLOCK + tl.arange(0, BLOCK)
    mask = column < size
    d = tl.load(dy + row * dy_stride + column, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(gate + row * gate_stride + column, mask=mask, other=0.0).to(tl.float32)
    u = tl.load(up + row * up_stride + column, mask=mask, other=0.0).to(tl.float32)
    sigma = tl.sigmoid(g)
    at = row * size + column
    tl.store(d_up + at, (d * g * sigma).to(d_up.dtype.element_ty), mask=mask)
    tl.store(d_gate + at, (d * u * sigma * (1 + g * (1 - sigma))).to(d_gate.dtype.element_ty), mask=mask)
