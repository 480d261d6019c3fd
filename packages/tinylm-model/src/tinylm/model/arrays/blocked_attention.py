"""Causal attention a block of queries and keys at a time, without ever holding the (T, T) pattern.

Third rung of the attention ladder: the same result as attention.py with memory that grows with T, not T². The online
softmax of Milakov and Gimelshein 2018 and its use in FlashAttention (Dao et al. 2022, algorithms 1 and 4; Dao 2023).
What it does not do: dropout, and speed: the point of blocks is that they fit into a GPU's fast memory, and the kernels
do there what this file does here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from tinylm.model.arrays.layers import Array

BLOCK = 64  # queries, and keys, of a block


def blocked_attention(q: Array, k: Array, v: Array, block: int = BLOCK) -> tuple[Array, Array]:
    """y = softmax(q kᵀ / sqrt(head_dim) + causal) v, and the logarithm of each row's sum L = ln Σⱼ exp(sⱼ).

    q (B, H, T, head_dim); k, v (B, K, T, head_dim), K dividing H. Returns y (B, H, T, head_dim) and L (B, K, G, T, 1).

    For a block of queries, the blocks of keys are met one after the other, and three things are kept: the largest score
    so far m, the sum so far l = Σ exp(s − m), and the output so far o = Σ exp(s − m) v. When a larger score m' turns
    up, l and o are multiplied by exp(m − m'), as if m' had been taken off from the beginning. At the end y = o / l.
    """
    queries, keys, values = _grouped(q, k, v)
    y, log_sum = np.empty_like(queries), np.empty_like(queries[..., :1])
    for rows in _blocks(q.shape[2], block):
        top: Array | float = -np.inf
        total: Array | float = 0.0
        out: Array | float = 0.0
        for columns in _blocks(rows.stop, block):  # later keys are hidden from every query of the block
            scores = _scores(queries, keys, rows, columns)
            new_top = np.maximum(top, scores.max(axis=-1, keepdims=True))
            p = np.exp(scores - new_top)
            rescale = np.exp(top - new_top)
            total = total * rescale + p.sum(axis=-1, keepdims=True)
            out = out * rescale + p @ values[..., columns, :]
            top = new_top
        y[..., rows, :] = out / total
        log_sum[..., rows, :] = top + np.log(total)
    return y.reshape(q.shape), log_sum


def blocked_attention_backward(
    dy: Array, q: Array, k: Array, v: Array, y: Array, log_sum: Array, block: int = BLOCK
) -> tuple[Array, Array, Array]:
    """attention_backward's equations, with each block of the pattern computed again from L: p = exp(s − L).

    Σⱼ pⱼ ∂pⱼ, which softmax's derivative takes off, is Σ_d ∂y y of the row, since y = Σⱼ pⱼ vⱼ and ∂pⱼ = ∂y · vⱼ: one
    number a row, known before any block.
    """
    queries, keys, values = _grouped(q, k, v)
    d_out = dy.reshape(queries.shape)
    shift = (d_out * y.reshape(queries.shape)).sum(axis=-1, keepdims=True)
    dq = np.zeros_like(queries)
    dk, dv = np.zeros_like(k), np.zeros_like(v)
    scale = 1 / math.sqrt(q.shape[3])
    for rows in _blocks(q.shape[2], block):
        for columns in _blocks(rows.stop, block):
            p = np.exp(_scores(queries, keys, rows, columns) - log_sum[..., rows, :])
            d_rows = d_out[..., rows, :]
            ds = p * (d_rows @ values[..., columns, :].swapaxes(-1, -2) - shift[..., rows, :]) * scale
            dq[..., rows, :] += ds @ keys[..., columns, :]
            # keys and values serve every query head of their group: the sum over axis 2
            dk[..., columns, :] += (ds.swapaxes(-1, -2) @ queries[..., rows, :]).sum(axis=2)
            dv[..., columns, :] += (p.swapaxes(-1, -2) @ d_rows).sum(axis=2)
    return dq.reshape(q.shape), dk, dv


def _grouped(q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
    """q (B, K, G, T, head_dim); k and v (B, K, 1, T, head_dim), the 1 standing for every query head of the group."""
    batch, _, time, size = q.shape
    return q.reshape(batch, k.shape[1], -1, time, size), k[:, :, None], v[:, :, None]


def _blocks(time: int, block: int) -> Iterator[slice]:
    return (slice(start, min(start + block, time)) for start in range(0, time, block))


def _scores(queries: Array, keys: Array, rows: slice, columns: slice) -> Array:
    """q kᵀ / sqrt(head_dim) of a block, −∞ where a key is later than its query."""
    scores: Array = queries[..., rows, :] @ keys[..., columns, :].swapaxes(-1, -2) / math.sqrt(queries.shape[-1])
    if columns.stop > rows.start + 1:  # the block touches the diagonal
        later = np.arange(columns.start, columns.stop) > np.arange(rows.start, rows.stop)[:, None]
        scores[..., later] = -np.inf
    return scores
