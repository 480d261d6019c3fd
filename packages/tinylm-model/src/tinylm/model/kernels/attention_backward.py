"""Flash attention, backward: each block of the pattern computed again from L, for the queries and for the keys.

    Pᵢⱼ = exp(Sᵢⱼ − Lᵢ)          ∂vⱼ = Σᵢ Pᵢⱼ ∂yᵢ          ∂Pᵢⱼ = ∂yᵢ · vⱼ
    ∂Sᵢⱼ = Pᵢⱼ (∂Pᵢⱼ − Δᵢ),  Δᵢ = ∂yᵢ · yᵢ                 ∂qᵢ = Σⱼ ∂Sᵢⱼ kⱼ / √d         ∂kⱼ = Σᵢ ∂Sᵢⱼ qᵢ / √d

(Dao 2023, algorithm 2.) Three kernels: Δ, one number a query; ∂k and ∂v, a block of keys meeting the queries that see
it, of every query head of its group; ∂q, a block of queries meeting its keys. Splitting the last two costs computing S
and ∂P twice (seven products, not five), and buys sums in a fixed order: no atomic additions, so the same gradients bit
for bit each time, and no float32 copy of ∂q.
What it does not do: gradients of L, of the lengths or of the window. Next: cross_entropy.py.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from tinylm.model.kernels import _launch
from tinylm.model.kernels.attention_forward import Blocks, key_range, span, visible


def blocks(q: Tensor) -> tuple[Blocks, Blocks]:
    """Of the kernel for ∂k and ∂v, and of that for ∂q; as in the forward pass, for 99 KiB of shared memory."""
    wide = q.shape[3] > 64
    if q.dtype == torch.float32:
        cut = Blocks(32, 32, 4, 1)
        return cut, cut
    if wide:
        return Blocks(32, 64, 8, 2), Blocks(64, 32, 4, 2)
    return Blocks(32, 128, 8, 2), Blocks(128, 64, 8, 2)


@torch.library.custom_op("tinylm_model::attention_backward", mutates_args=())
def backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, log_sum: Tensor, starts: Tensor | None,
    key_starts: Tensor | None, longest: int, longest_keys: int, window: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """-> ∂q, ∂k, ∂v, each laid out in memory (B, tokens, heads, head_dim)."""
    dy = dy if dy.stride(3) == 1 else dy.contiguous()
    dq, dk, dv = (_launch.heads_like(x) for x in (q, k, v))
    batch, heads, time, size = q.shape
    sequences = batch if starts is None else len(starts) - 1
    if key_starts is None:
        key_starts = starts
    delta, padded = torch.empty_like(log_sum), max(16, triton.next_power_of_2(size))
    if delta.numel():
        parts = triton.cdiv(time, 64)
        with _launch.on(q):
            _delta[(parts * heads * batch,)](
                dy, y, delta, parts, heads, time, size, *dy.stride()[:3], *y.stride()[:3], 64, padded, num_warps=4
            )
    for_keys, for_queries = blocks(q)
    log2_scale = math.log2(math.e) / math.sqrt(size)
    common = (
        dy, q, k, v, log_sum, delta, starts, key_starts, time, k.shape[2], heads, heads // k.shape[1], size, window,
        log2_scale, 1 / math.sqrt(size), *dy.stride()[:3], *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
    )  # fmt: skip
    parts = triton.cdiv(longest_keys, for_keys.keys)
    if parts * sequences:
        with _launch.on(q):
            _key_gradients[(parts * k.shape[1] * sequences,)](
                *common, dk, dv, parts, *dk.stride()[:3], *dv.stride()[:3], starts is not None, window > 0,
                for_keys.queries, for_keys.keys, padded, num_warps=for_keys.warps, num_stages=for_keys.stages,
            )  # fmt: skip
    parts = triton.cdiv(longest, for_queries.queries)
    if parts * sequences:
        with _launch.on(q):
            _query_gradients[(parts * heads * sequences,)](
                *common, dq, parts, *dq.stride()[:3], starts is not None, window > 0,
                for_queries.queries, for_queries.keys, padded, num_warps=for_queries.warps,
                num_stages=for_queries.stages,
            )  # fmt: skip
    return dq, dk, dv


@backward.register_fake
def _(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, log_sum: Tensor, starts: Tensor | None,
    key_starts: Tensor | None, longest: int, longest_keys: int, window: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _launch.heads_like(q), _launch.heads_like(k), _launch.heads_like(v)


@triton.jit
def _delta(
    dy, y, delta, parts, heads, time, size, dy_batch, dy_head, dy_time, y_batch, y_head, y_time,
    ROWS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    which = tl.program_id(0) // parts  # a grid's second axis ends at 65,535 programs
    row = tl.program_id(0) % parts * ROWS + tl.arange(0, ROWS)
    b, head = (which // heads).to(tl.int64), (which % heads).to(tl.int64)
    dim = tl.arange(0, SIZE)[None, :]
    mask = (row < time)[:, None] & (dim < size)
    at = row.to(tl.int64)[:, None]
    d_tile = tl.load(dy + b * dy_batch + head * dy_head + at * dy_time + dim, mask=mask, other=0.0).to(tl.float32)
    y_tile = tl.load(y + b * y_batch + head * y_head + at * y_time + dim, mask=mask, other=0.0).to(tl.float32)
    tl.store(delta + (b * heads + head) * time + row, tl.sum(d_tile * y_tile, axis=1), mask=row < time)


@triton.jit
def _meet_queries(
    dk, dv, k_tile, v_tile, dy, q, log_sum, delta, column, low, high, queries, offset, keys, size, window, scale,
    dy_time, q_time, MASKED: tl.constexpr, WINDOWED: tl.constexpr, QUERIES: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Add to ∂k and ∂v of a block of keys what the queries low to high ask, a block at a time: everything is
    transposed, keys by queries."""
    index, dim = tl.arange(0, QUERIES), tl.arange(0, SIZE)
    far = tl.cast(low, tl.int64)
    q_at = q + far * q_time + index[None, :] * q_time + dim[:, None]
    dy_at = dy + far * dy_time + index[:, None] * dy_time + dim[None, :]
    for start in range(low, high, QUERIES):
        row = start + index
        there = row < queries
        q_tile = tl.load(q_at, mask=there[None, :] & (dim < size)[:, None], other=0.0)
        bound = tl.load(log_sum + row, mask=there, other=float("inf"))  # no query: p = 0
        p = tl.exp2(tl.dot(k_tile, q_tile, input_precision="ieee") * scale - bound[None, :])
        if MASKED:
            p = tl.where(visible(row[None, :] + offset, column[:, None], keys, window, WINDOWED), p, 0.0)
        d_tile = tl.load(dy_at, mask=there[:, None] & (dim < size)[None, :], other=0.0)
        dv = tl.dot(p.to(d_tile.dtype), d_tile, dv, input_precision="ieee")
        shift = tl.load(delta + row, mask=there, other=0.0)
        ds = p * (tl.dot(v_tile, tl.trans(d_tile), input_precision="ieee") - shift[None, :])
        dk = tl.dot(ds.to(q_tile.dtype), tl.trans(q_tile), dk, input_precision="ieee")
        q_at += QUERIES * q_time
        dy_at += QUERIES * dy_time
    return dk, dv


@triton.jit
def _key_gradients(
    dy, q, k, v, log_sum, delta, starts, key_starts, time, key_time, heads, group, size, window, log2_scale, scale,
    dy_batch, dy_head, dy_time, q_batch, q_head, q_time, k_batch, k_head, k_time, v_batch, v_head, v_time,
    dk, dv, parts, dk_batch, dk_head, dk_time, dv_batch, dv_head, dv_time,
    VARLEN: tl.constexpr, WINDOWED: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0) % parts  # the first keys are seen by most queries: they start first
    key_head = (tl.program_id(0) // parts % (heads // group)).to(tl.int64)
    b = (tl.program_id(0) // parts // (heads // group)).to(tl.int64)
    first, queries = span(starts, b, time, VARLEN)
    first_key, keys = span(key_starts, b, key_time, VARLEN)
    if part * KEYS >= keys:
        return
    outer = b
    if VARLEN:
        outer = b * 0
    column, dim = part * KEYS + tl.arange(0, KEYS), tl.arange(0, SIZE)
    there = (column < keys)[:, None] & (dim < size)[None, :]
    at = (first_key + column)[:, None]
    k_tile = tl.load(k + outer * k_batch + key_head * k_head + at * k_time + dim[None, :], mask=there, other=0.0)
    v_tile = tl.load(v + outer * v_batch + key_head * v_head + at * v_time + dim[None, :], mask=there, other=0.0)
    dk_sum = tl.zeros((KEYS, SIZE), tl.float32)
    dv_sum = tl.zeros((KEYS, SIZE), tl.float32)
    offset = keys - queries
    # queries low to high see one key of the block at least, those from whole to whole_end all of them
    low = tl.maximum(part * KEYS - offset, 0) // QUERIES * QUERIES
    high = queries
    whole = (tl.maximum(part * KEYS + KEYS - 1 - offset, 0) + QUERIES - 1) // QUERIES * QUERIES
    whole_end = queries
    if WINDOWED:
        high = tl.maximum(tl.minimum(queries, part * KEYS + KEYS - 1 + window - offset), 0)
        whole_end = tl.maximum(part * KEYS + window - offset, 0) // QUERIES * QUERIES
    whole = tl.maximum(whole, low)
    whole_end = tl.maximum(tl.minimum(whole_end, high), whole)
    for member in range(group):
        head = key_head * group + member
        q_base = q + outer * q_batch + head * q_head + first * q_time
        dy_base = dy + outer * dy_batch + head * dy_head + first * dy_time
        line = (outer * heads + head) * time + first
        dk_sum, dv_sum = _meet_queries(
            dk_sum, dv_sum, k_tile, v_tile, dy_base, q_base, log_sum + line, delta + line, column, low,
            tl.minimum(whole, high), queries, offset, keys, size, window, log2_scale, dy_time, q_time, True,
            WINDOWED, QUERIES, SIZE,
        )  # fmt: skip
        dk_sum, dv_sum = _meet_queries(
            dk_sum, dv_sum, k_tile, v_tile, dy_base, q_base, log_sum + line, delta + line, column, whole, whole_end,
            queries, offset, keys, size, window, log2_scale, dy_time, q_time, False, WINDOWED, QUERIES, SIZE,
        )  # fmt: skip
        if WINDOWED:
            dk_sum, dv_sum = _meet_queries(
                dk_sum, dv_sum, k_tile, v_tile, dy_base, q_base, log_sum + line, delta + line, column, whole_end,
                high, queries, offset, keys, size, window, log2_scale, dy_time, q_time, True, WINDOWED, QUERIES, SIZE,
            )  # fmt: skip
    dk_at = dk + outer * dk_batch + key_head * dk_head + at * dk_time + dim[None, :]
    dv_at = dv + outer * dv_batch + key_head * dv_head + at * dv_time + dim[None, :]
    tl.store(dk_at, (dk_sum * scale).to(dk.dtype.element_ty), mask=there)
    tl.store(dv_at, dv_sum.to(dv.dtype.element_ty), mask=there)


@triton.jit
def _meet_keys(
    dq, q_tile, d_tile, bound, shift, k, v, row, low, high, keys, size, window, scale, k_time, v_time,
    MASKED: tl.constexpr, WINDOWED: tl.constexpr, KEYS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Add to ∂q of a block of queries what the keys low to high say, a block at a time."""
    column, dim = tl.arange(0, KEYS), tl.arange(0, SIZE)
    far = tl.cast(low, tl.int64)
    k_at = k + far * k_time + column[None, :] * k_time + dim[:, None]
    v_at = v + far * v_time + column[None, :] * v_time + dim[:, None]
    for start in range(low, high, KEYS):
        at = start + column
        mask = (dim < size)[:, None]
        if MASKED:
            mask = mask & (at < keys)[None, :]
        k_tile = tl.load(k_at, mask=mask, other=0.0)
        v_tile = tl.load(v_at, mask=mask, other=0.0)
        p = tl.exp2(tl.dot(q_tile, k_tile, input_precision="ieee") * scale - bound[:, None])
        if MASKED:
            p = tl.where(visible(row[:, None], at[None, :], keys, window, WINDOWED), p, 0.0)
        ds = p * (tl.dot(d_tile, v_tile, input_precision="ieee") - shift[:, None])
        dq = tl.dot(ds.to(k_tile.dtype), tl.trans(k_tile), dq, input_precision="ieee")
        k_at += KEYS * k_time
        v_at += KEYS * v_time
    return dq


@triton.jit
def _query_gradients(
    dy, q, k, v, log_sum, delta, starts, key_starts, time, key_time, heads, group, size, window, log2_scale, scale,
    dy_batch, dy_head, dy_time, q_batch, q_head, q_time, k_batch, k_head, k_time, v_batch, v_head, v_time,
    dq, parts, dq_batch, dq_head, dq_time,
    VARLEN: tl.constexpr, WINDOWED: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    part = parts - 1 - tl.program_id(0) % parts
    head = (tl.program_id(0) // parts % heads).to(tl.int64)
    b = (tl.program_id(0) // parts // heads).to(tl.int64)
    first, queries = span(starts, b, time, VARLEN)
    first_key, keys = span(key_starts, b, key_time, VARLEN)
    if part * QUERIES >= queries:
        return
    outer = b
    if VARLEN:
        outer = b * 0
    index, dim = part * QUERIES + tl.arange(0, QUERIES), tl.arange(0, SIZE)
    there = (index < queries)[:, None] & (dim < size)[None, :]
    at = (first + index)[:, None]
    q_tile = tl.load(q + outer * q_batch + head * q_head + at * q_time + dim[None, :], mask=there, other=0.0)
    d_tile = tl.load(dy + outer * dy_batch + head * dy_head + at * dy_time + dim[None, :], mask=there, other=0.0)
    line = (outer * heads + head) * time + first + index
    bound = tl.load(log_sum + line, mask=index < queries, other=float("inf"))
    shift = tl.load(delta + line, mask=index < queries, other=0.0)
    k += outer * k_batch + head // group * k_head + first_key * k_time
    v += outer * v_batch + head // group * v_head + first_key * v_time
    dq_sum = tl.zeros((QUERIES, SIZE), tl.float32)
    offset = keys - queries
    row = index + offset
    low, whole, whole_end, high = key_range(part * QUERIES + offset, keys, window, WINDOWED, QUERIES, KEYS)
    if WINDOWED:
        dq_sum = _meet_keys(
            dq_sum, q_tile, d_tile, bound, shift, k, v, row, low, tl.minimum(whole, high), keys, size, window,
            log2_scale, k_time, v_time, True, WINDOWED, KEYS, SIZE,
        )  # fmt: skip
    dq_sum = _meet_keys(
        dq_sum, q_tile, d_tile, bound, shift, k, v, row, whole, whole_end, keys, size, window, log2_scale, k_time,
        v_time, False, WINDOWED, KEYS, SIZE,
    )  # fmt: skip
    dq_sum = _meet_keys(
        dq_sum, q_tile, d_tile, bound, shift, k, v, row, whole_end, high, keys, size, window, log2_scale, k_time,
        v_time, True, WINDOWED, KEYS, SIZE,
    )  # fmt: skip
    target = dq + outer * dq_batch + head * dq_head + at * dq_time + dim[None, :]
    tl.store(target, (dq_sum * scale).to(dq.dtype.element_ty), mask=there)
