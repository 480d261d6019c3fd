"""RoPE: every pair of numbers of a head turned by its position's angle, in one pass over memory.

    y[i] = x[i] cos − x[i + D/2] sin        y[i + D/2] = x[i + D/2] cos + x[i] sin        (Su et al. 2021, eq. 34)
    ∂x[i] = ∂y[i] cos + ∂y[i + D/2] sin     ∂x[i + D/2] = ∂y[i + D/2] cos − ∂y[i] sin

in Hugging Face's half-split layout. A rotation's transpose is the rotation back, so the backward pass is the same
kernel with −sin. Memory traffic for N numbers: reads N and writes N, forward and backward; the tables of cosines and
sines are read once a token for all of its heads and stay in the cache. torch's form moves about four times as much.
What it does not do: make the tables (../rope.py does), interleaved pairs, heads of an odd size. Next: swiglu.py.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tinylm.model._errors import ModelError
from tinylm.model.kernels import _launch

TILE = 2048  # pairs a program turns at once


def rope_reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """What the kernel computes, in torch: x (B, heads, T, head_dim), cos and sin (T or B, 1, T; head_dim / 2)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, heads, T, head_dim), of any strides; cos, sin (T, head_dim / 2) or (B or 1, 1, T, head_dim / 2) -> as x.

    Sums are in float32, and the result is rounded once, to x's type. ModelError for shapes that do not fit.
    """
    _launch.check("rope", x)
    batch, _, time, size = x.shape if x.ndim == 4 else (0, 0, 0, 1)
    allowed = ((time, size // 2), (1, 1, time, size // 2), (batch, 1, time, size // 2))
    if size % 2 or cos.shape not in allowed or sin.shape != cos.shape:
        raise ModelError(
            f"rope: wanted x (batch, heads, time, an even head_dim) and tables (time, head_dim / 2) or (batch, 1, "
            f"time, head_dim / 2), got {tuple(x.shape)}, {tuple(cos.shape)} and {tuple(sin.shape)}"
        )
    y: Tensor = _RoPE.apply(x, cos, sin)
    return y


class _RoPE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        y: Tensor = rotate(x, cos, sin, False)
        return y

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return rotate(upstream[0], cos, sin, True), None, None


@torch.library.custom_op("tinylm_model::rotate", mutates_args=())
def rotate(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    """Turn x by the tables' angles, or back. The result keeps the order in memory of x's axes."""
    x = x if x.stride(3) == 1 else x.contiguous()
    cos, sin = cos.contiguous(), sin.contiguous()
    y = _launch.heads_like(x)
    batch, heads, time, size = x.shape
    rows, half = batch * heads * time, size // 2
    if rows:
        block = triton.next_power_of_2(half)
        per_program = max(1, TILE // max(block, 32))
        table_stride = time * half if cos.ndim == 4 and cos.shape[0] > 1 else 0
        with _launch.on(x):
            _rotate[(triton.cdiv(rows, per_program),)](
                x, y, cos, sin, rows, heads, time, half, *x.stride()[:3], *y.stride()[:3], table_stride,
                back, per_program, block, num_warps=4,
            )  # fmt: skip
    return y


@rotate.register_fake
def _(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    return _launch.heads_like(x if x.stride(3) == 1 else x.contiguous())


@triton.jit
def _rotate(
    x, y, cos, sin, rows, heads, time, half, x_batch, x_head, x_time, y_batch, y_head, y_time, table_batch,
    BACK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)  # the heads of a token are neighbours: they share its angles
    pair = tl.arange(0, BLOCK)[None, :]
    mask = (row < rows)[:, None] & (pair < half)
    head, token = row % heads, row // heads
    t, b = (token % time).to(tl.int64), (token // time).to(tl.int64)
    table = (b * table_batch + t * half)[:, None] + pair
    c = tl.load(cos + table, mask=mask, other=0.0).to(tl.float32)
    s = tl.load(sin + table, mask=mask, other=0.0).to(tl.float32)
    if BACK:
        s = -s
    source = x + (b * x_batch + head * x_head + t * x_time)[:, None] + pair
    first = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(source + half, mask=mask, other=0.0).to(tl.float32)
    target = y + (b * y_batch + head * y_head + t * y_time)[:, None] + pair
    tl.store(target, (first * c - second * s).to(y.dtype.element_ty), mask=mask)
    tl.store(target + half, (second * c + first * s).to(y.dtype.element_ty), mask=mask)
