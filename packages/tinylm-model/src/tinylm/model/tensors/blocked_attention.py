"""Causal attention a block of queries and keys at a time with the online softmax, in torch: what the GPU kernels do.

The rung below ../kernels/attention.py, which has each of these loops as a kernel, and the same as
../arrays/blocked_attention.py in torch, on any device. attention.py beside it takes the keys of a block of queries
whole, which needs no online softmax and is faster on a CPU. FlashAttention-2 (Dao 2023, algorithms 1 and 2), the online
softmax of Milakov and Gimelshein 2018. What it does not do: windows, sequences of different lengths, speed.
Next: ../kernels/attention.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 64  # queries, and keys, of a block


def blocked_attention(q: Tensor, k: Tensor, v: Tensor, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """y = softmax(q kᵀ / sqrt(head_dim) + causal) v, and L = ln Σⱼ exp(sⱼ) of each row.

    q (B, H, T, head_dim); k, v (B, K, T, head_dim), K dividing H. Returns y (B, H, T, head_dim) and L (B, K, G, T, 1).
    Kept for each row while the keys go by: the largest score m, the sum l = Σ exp(s − m) and o = Σ exp(s − m) v; when a
    larger m' turns up, l and o are multiplied by exp(m − m'). At the end y = o / l and L = m + ln l.
    """
    queries, keys, values = _grouped(q, k, v)
    y, log_sum = torch.empty_like(queries), torch.empty_like(queries[..., :1])
    for rows in _blocks(q.shape[2], block):
        top = torch.full_like(log_sum[..., rows, :], -math.inf)
        total, out = torch.zeros_like(top), torch.zeros_like(y[..., rows, :])
        for columns in _blocks(rows.stop, block):  # later keys are hidden from every query of the block
            scores = _scores(queries, keys, rows, columns)
            higher = torch.maximum(top, scores.amax(dim=-1, keepdim=True))
            p, keep = (scores - higher).exp_(), (top - higher).exp_()
            total = total.mul_(keep).add_(p.sum(dim=-1, keepdim=True))
            out = out.mul_(keep).add_(p @ values[..., columns, :])
            top = higher
        y[..., rows, :] = out / total
        log_sum[..., rows, :] = top + total.log()
    return y.reshape(q.shape), log_sum


def blocked_attention_backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, log_sum: Tensor, block: int = BLOCK
) -> tuple[Tensor, Tensor, Tensor]:
    """p = exp(s − L) block by block;  ∂v = pᵀ ∂y,  ∂s = p ⊙ (∂y vᵀ − Δ) with Δ = ∂y · y,  ∂q = ∂s k / sqrt(head_dim),
    ∂k = ∂sᵀ q / sqrt(head_dim); ∂k and ∂v summed over the query heads of a group."""
    queries, keys, values = _grouped(q, k, v)
    d_out = dy.reshape(queries.shape)
    delta = (d_out * y.reshape(queries.shape)).sum(dim=-1, keepdim=True)
    dq, dk, dv = torch.zeros_like(queries), torch.zeros_like(k), torch.zeros_like(v)
    for rows in _blocks(q.shape[2], block):
        d_rows = d_out[..., rows, :]
        for columns in _blocks(rows.stop, block):
            p = (_scores(queries, keys, rows, columns) - log_sum[..., rows, :]).exp_()
            ds = (d_rows @ values[..., columns, :].mT - delta[..., rows, :]).mul_(p).mul_(1 / math.sqrt(q.shape[3]))
            dq[..., rows, :] += ds @ keys[..., columns, :]
            dk[..., columns, :] += (ds.mT @ queries[..., rows, :]).sum(dim=2)
            dv[..., columns, :] += (p.mT @ d_rows).sum(dim=2)
    return dq.reshape(q.shape), dk, dv


def _grouped(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q (B, K, G, T, head_dim); k and v (B, K, 1, T, head_dim), the 1 standing for every query head of the group."""
    batch, _, time, size = q.shape
    return q.reshape(batch, k.shape[1], -1, time, size), k[:, :, None], v[:, :, None]


def _blocks(time: int, block: int) -> Iterator[slice]:
    return (slice(start, min(start + block, time)) for start in range(0, time, block))


def _scores(queries: Tensor, keys: Tensor, rows: slice, columns: slice) -> Tensor:
    """q kᵀ / sqrt(head_dim) of a block, −∞ where a key is later than its query."""
    scores = queries[..., rows, :] @ keys[..., columns, :].mT / math.sqrt(queries.shape[-1])
    if columns.stop > rows.start + 1:  # the block touches the diagonal
        row = torch.arange(rows.start, rows.stop, device=scores.device)
        column = torch.arange(columns.start, columns.stop, device=scores.device)
        scores.masked_fill_(column > row[:, None], -math.inf)
    return scores
