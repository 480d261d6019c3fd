"""Flash attention, forward: a block of queries meets the blocks of keys that it sees, one after the other.

Kept for each query while the keys go by: the largest score so far m, the sum l = Σ exp(s − m) and the output o = Σ
exp(s − m) v; when a larger m' turns up, l and o are multiplied by exp(m − m'). At the end y = o / l and L = m + ln l
(Dao 2023, algorithm 1). Powers of two instead of e throughout: the factor log₂ e is put into the scale, and L is kept
in units of ln 2. A block of keys that every query of the block sees whole needs no mask: only the two ends of the range
are masked, the diagonal and the window's edge.
What it does not do: gradients (attention_backward.py), checks (attention.py). Next: attention_backward.py.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tinylm.model.kernels import _launch


class Blocks(NamedTuple):
    """How a kernel cuts its work: queries and keys of a block, warps, blocks of keys (or queries) in flight."""

    queries: int
    keys: int
    warps: int
    stages: int


def blocks(q: Tensor) -> Blocks:
    """Fits into the 99 KiB of shared memory that a small Ampere or Ada GPU gives a block, for every type and head_dim.

    Fixed, not tuned at the first call: with other blocks the sums round otherwise, and a resumed run is to equal an
    unbroken one.
    """
    wide = q.shape[3] > 64
    if q.dtype == torch.float32:
        return Blocks(32 if wide else 64, 32, 4, 1 if wide else 2)
    return Blocks(128, 64, 8 if wide else 4, 2 if wide else 3)


@torch.library.custom_op("tinylm_model::attention_forward", mutates_args=())
def forward(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, key_starts: Tensor | None, longest: int, window: int
) -> tuple[Tensor, Tensor]:
    """-> y as q, in memory (B, T, H, head_dim), and L (B, H, T) float32. window 0: none; no starts: one length."""
    y, log_sum = room(q)
    batch, heads, time, size = q.shape
    sequences = batch if starts is None else len(starts) - 1
    if key_starts is None:
        key_starts = starts
    cut = blocks(q)
    programs = triton.cdiv(longest, cut.queries) * heads * sequences
    if programs:
        with _launch.on(q):
            _forward[(programs,)](
                q, k, v, y, log_sum, starts, key_starts, time, k.shape[2], heads, heads // k.shape[1], size, window,
                math.log2(math.e) / math.sqrt(size), triton.cdiv(longest, cut.queries),
                *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *y.stride()[:3],
                starts is not None, window > 0, cut.queries, cut.keys, max(16, triton.next_power_of_2(size)),
                num_warps=cut.warps, num_stages=cut.stages,
            )  # fmt: skip
    return y, log_sum


@forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, key_starts: Tensor | None, longest: int, window: int
) -> tuple[Tensor, Tensor]:
    return room(q)


def room(q: Tensor) -> tuple[Tensor, Tensor]:
    """Empty y, laid out as the projection that follows reads it, and L."""
    batch, heads, time, size = q.shape
    y = torch.empty((batch, time, heads, size), dtype=q.dtype, device=q.device).transpose(1, 2)
    return y, torch.empty((batch, heads, time), dtype=torch.float32, device=q.device)


@triton.jit
def span(starts, b, length, VARLEN: tl.constexpr):
    """Where sequence b begins among the tokens, and how long it is."""
    first = tl.full((), 0, tl.int64)
    count = length
    if VARLEN:
        count = tl.load(starts + b + 1) - tl.load(starts + b)
        first += tl.load(starts + b)
    return first, count


@triton.jit
def visible(row, column, keys, window, WINDOWED: tl.constexpr):
    """Which key columns the queries at positions `row` see."""
    seen = (column <= row) & (column < keys)
    if WINDOWED:
        seen = seen & (column > row - window)
    return seen


@triton.jit
def key_range(first, keys, window, WINDOWED: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """For queries at positions first to first + QUERIES − 1: keys low to high are seen by one of them at least, and
    those from whole to whole_end, multiples of KEYS from low, by all."""
    high = tl.maximum(tl.minimum(keys, first + QUERIES), 0)
    whole_end = tl.maximum(first + 1, 0) // KEYS * KEYS
    low = 0
    whole = 0
    if WINDOWED:
        low = tl.maximum(first - window + 1, 0) // KEYS * KEYS
        whole = tl.maximum((tl.maximum(first + QUERIES - window, 0) + KEYS - 1) // KEYS * KEYS, low)
    return low, whole, tl.maximum(whole_end, whole), high


@triton.jit
def _meet(
    out, total, top, q, k, v, row, low, high, keys, size, window, scale, k_time, v_time,
    MASKED: tl.constexpr, WINDOWED: tl.constexpr, KEYS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Take in the keys low to high, a block at a time."""
    column, dim = tl.arange(0, KEYS), tl.arange(0, SIZE)
    k_at = k + tl.cast(low, tl.int64) * k_time + column[None, :] * k_time + dim[:, None]
    v_at = v + tl.cast(low, tl.int64) * v_time + column[:, None] * v_time + dim[None, :]
    for start in range(low, high, KEYS):
        at = start + column
        k_mask, v_mask = dim[:, None] < size, dim[None, :] < size
        if MASKED:
            k_mask, v_mask = k_mask & (at < keys)[None, :], v_mask & (at < keys)[:, None]
        k_tile = tl.load(k_at, mask=k_mask, other=0.0)
        scores = tl.dot(q, k_tile, input_precision="ieee") * scale
        if MASKED:
            scores = tl.where(visible(row[:, None], at[None, :], keys, window, WINDOWED), scores, -float("inf"))
        higher = tl.maximum(top, tl.max(scores, axis=1))
        shift = higher
        if MASKED:
            shift = tl.where(higher == -float("inf"), 0.0, higher)  # a query that has seen no key yet
        p = tl.exp2(scores - shift[:, None])
        keep = tl.exp2(top - shift)
        total = total * keep + tl.sum(p, axis=1)
        v_tile = tl.load(v_at, mask=v_mask, other=0.0)
        out = tl.dot(p.to(v_tile.dtype), v_tile, out * keep[:, None], input_precision="ieee")
        top = higher
        k_at += KEYS * k_time
        v_at += KEYS * v_time
    return out, total, top


@triton.jit
def _forward(
    q, k, v, y, log_sum, starts, key_starts, time, key_time, heads, group, size, window, scale, parts,
    q_batch, q_head, q_time, k_batch, k_head, k_time, v_batch, v_head, v_time, y_batch, y_head, y_time,
    VARLEN: tl.constexpr, WINDOWED: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    part = parts - 1 - tl.program_id(0) % parts  # the last queries see most keys: they start first
    head = (tl.program_id(0) // parts % heads).to(tl.int64)
    b = (tl.program_id(0) // parts // heads).to(tl.int64)
    first, queries = span(starts, b, time, VARLEN)
    first_key, keys = span(key_starts, b, key_time, VARLEN)
    if part * QUERIES >= queries:
        return
    index = part * QUERIES + tl.arange(0, QUERIES)
    dim = tl.arange(0, SIZE)
    there = (index < queries)[:, None] & (dim < size)[None, :]
    outer = b
    if VARLEN:
        outer = b * 0
    at = (first + index)[:, None]
    q_tile = tl.load(q + outer * q_batch + head * q_head + at * q_time + dim[None, :], mask=there, other=0.0)
    k += outer * k_batch + head // group * k_head + first_key * k_time
    v += outer * v_batch + head // group * v_head + first_key * v_time
    out = tl.zeros((QUERIES, SIZE), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    top = tl.full((QUERIES,), -float("inf"), tl.float32)
    offset = keys - queries
    row = index + offset
    low, whole, whole_end, high = key_range(part * QUERIES + offset, keys, window, WINDOWED, QUERIES, KEYS)
    if WINDOWED:
        out, total, top = _meet(
            out, total, top, q_tile, k, v, row, low, tl.minimum(whole, high), keys, size, window, scale, k_time,
            v_time, True, WINDOWED, KEYS, SIZE,
        )  # fmt: skip
    out, total, top = _meet(
        out, total, top, q_tile, k, v, row, whole, whole_end, keys, size, window, scale, k_time, v_time, False,
        WINDOWED, KEYS, SIZE,
    )  # fmt: skip
    out, total, top = _meet(
        out, total, top, q_tile, k, v, row, whole_end, high, keys, size, window, scale, k_time, v_time, True,
        WINDOWED, KEYS, SIZE,
    )  # fmt: skip
    blind = total == 0.0  # no key at all: y = 0, and L = ∞ makes every p of the backward pass 0
    out = out / tl.where(blind, 1.0, total)[:, None]
    tl.store(y + outer * y_batch + head * y_head + at * y_time + dim[None, :], out.to(y.dtype.element_ty), mask=there)
    found = tl.where(blind, float("inf"), top + tl.log2(tl.where(blind, 1.0, total)))
    tl.store(log_sum + (outer * heads + head) * time + first + index, found, mask=index < queries)
