"""RMSNorm, forward and backward, in one pass over memory each.

    r = 1 / sqrt(mean(x²) + eps)        y = x r ⊙ weight                       (Zhang and Sennrich 2019, eq. 4)
    p = ∂y ⊙ x r                        ∂weight = Σ_rows p
    ∂x = r (∂y ⊙ weight − x r · (p · weight) / D)

Memory traffic for N rows of D numbers: forward reads N·D and writes N·D (+ N for r); backward reads 2·N·D and writes
N·D (+ 512·D partial sums of ∂weight). Sums are in float32 whatever the type of x; y is rounded once.
What it does not do: LayerNorm, the residual's addition, rows of more than 16,384 numbers. Next: rope.py.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tinylm.model._errors import ModelError
from tinylm.model.kernels import LIMITS, _launch

TILE = 4096  # numbers a program holds at once: 32 for each thread of four warps
PROGRAMS = 512  # of the backward pass: enough to fill a GPU, few enough for their sums of ∂weight to cost nothing


def rmsnorm_reference(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """What the kernel computes, in torch: x (..., D), weight (D,) -> (..., D) of type `dtype`."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt() * weight).to(dtype)


def rmsnorm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype | None = None) -> Tensor:
    """x (..., D), weight (D,) -> (..., D) of type `dtype` (x's, if None). ModelError for more than 16,384 numbers a
    row."""
    _launch.check("rmsnorm", x)
    size = x.shape[-1]
    if weight.shape != (size,) or size > LIMITS["rmsnorm"]:
        raise ModelError(
            f"rmsnorm: wanted rows of at most {LIMITS['rmsnorm']} numbers and a weight for each, got x "
            f"{tuple(x.shape)} and weight {tuple(weight.shape)}"
        )
    y: Tensor = _RMSNorm.apply(x, weight, eps, dtype or x.dtype)
    return y


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        y: Tensor
        y, r = rmsnorm_forward(x, weight, eps, dtype)
        ctx.save_for_backward(x, weight, r)
        return y

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, r = ctx.saved_tensors
        dx, partial = rmsnorm_backward(upstream[0], x, weight, r)
        return dx, partial.sum(0).to(weight.dtype), None, None


@torch.library.custom_op("tinylm_model::rmsnorm_forward", mutates_args=())
def rmsnorm_forward(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """-> y (..., D) and r (rows,)."""
    flat = _launch.rows_of(x)
    rows, size = flat.shape
    y = torch.empty(x.shape, dtype=dtype, device=x.device)
    r = torch.empty(rows, dtype=torch.float32, device=x.device)
    if rows:
        per_program, block, warps = _tile(size)
        with _launch.on(x):
            _forward[(triton.cdiv(rows, per_program),)](
                flat, weight.contiguous(), y, r, rows, size, flat.stride(0), eps, per_program, block, num_warps=warps
            )
    return y, r


@torch.library.custom_op("tinylm_model::rmsnorm_backward", mutates_args=())
def rmsnorm_backward(dy: Tensor, x: Tensor, weight: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """-> ∂x (..., D) and ∂weight in parts (≤ 512, D) still to be summed."""
    flat, upstream = _launch.rows_of(x), _launch.rows_of(dy)
    rows, size = flat.shape
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    per_program, block, warps = _tile(size)
    partial = torch.zeros(_programs(rows, size), size, dtype=torch.float32, device=x.device)
    if rows:
        with _launch.on(x):
            _backward[(partial.shape[0],)](
                upstream, flat, weight.contiguous(), r, dx, partial, rows, size, upstream.stride(0), flat.stride(0),
                per_program, block, num_warps=warps,
            )  # fmt: skip
    return dx, partial


@rmsnorm_forward.register_fake
def _(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    rows = x.numel() // x.shape[-1]
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(rows, dtype=torch.float32)


@rmsnorm_backward.register_fake
def _(dy: Tensor, x: Tensor, weight: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    size = x.shape[-1]
    return x.new_empty(x.shape), x.new_empty((_programs(x.numel() // size, size), size), dtype=torch.float32)


def _tile(size: int) -> tuple[int, int, int]:
    """Rows at once, numbers a row (a power of two), warps."""
    block = triton.next_power_of_2(size)
    return max(1, TILE // max(block, 64)), block, max(4, block // 1024)


def _programs(rows: int, size: int) -> int:
    return max(1, min(PROGRAMS, -(-rows // _tile(size)[0])))


@triton.jit
def _forward(x, weight, y, r, rows, size, x_stride, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    mask = (row < rows)[:, None] & (column < size)[None, :]
    at = row.to(tl.int64)[:, None]  # a large batch has more than 2³¹ numbers
    x_tile = tl.load(x + at * x_stride + column[None, :], mask=mask, other=0.0).to(tl.float32)
    w = tl.load(weight + column, mask=column < size, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x_tile * x_tile, axis=1) / size + eps)
    out = x_tile * scale[:, None] * w[None, :]
    tl.store(y + at * size + column[None, :], out.to(y.dtype.element_ty), mask=mask)
    tl.store(r + row, scale, mask=row < rows)


@triton.jit
def _backward(
    dy, x, weight, r, dx, partial, rows, size, dy_stride, x_stride, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    column = tl.arange(0, BLOCK)
    w = tl.load(weight + column, mask=column < size, other=0.0).to(tl.float32)
    dw = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (column < size)[None, :]
        at = row.to(tl.int64)[:, None]
        x_tile = tl.load(x + at * x_stride + column[None, :], mask=mask, other=0.0).to(tl.float32)
        upstream = tl.load(dy + at * dy_stride + column[None, :], mask=mask, other=0.0).to(tl.float32)
        scale = tl.load(r + row, mask=row < rows, other=0.0)[:, None]
        x_hat = x_tile * scale
        p = upstream * x_hat
        dw += p
        shift = tl.sum(p * w[None, :], axis=1)[:, None] / size
        out = scale * (upstream * w[None, :] - x_hat * shift)
        tl.store(dx + at * size + column[None, :], out.to(dx.dtype.element_ty), mask=mask)
    tl.store(partial + tl.program_id(0) * size + column, tl.sum(dw, axis=0), mask=column < size)
