"""Causal attention as batched products of matrices, multi-head and grouped, with its backward.

As ../arrays/attention.py, with two differences. The pattern is not kept: the backward makes it again from q, k and one
number a query. And it is made for a block of queries at a time, against the keys up to the block's end: half of the
pattern is hidden anyway, so half of the work goes, and a block's part of the pattern stays in the processor's cache.
The rows of a block are whole, which needs no online softmax. Not here: projections, norms and positions of q and k
(blocks.py). Next: loss.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from tinylm.model.tensors.activations import softmax_, softmax_backward_
from tinylm.model.tensors.layers import wide

BLOCK = 128  # queries; on a CPU 64 and 256 took the same time within 5 %, all at once a third more


def causal_bias(time: int, like: Tensor) -> Tensor:
    """(T, T): −∞ where a query would see a later key, 0 elsewhere; added to the scores, exp makes it 0."""
    return torch.full((time, time), -math.inf, dtype=like.dtype, device=like.device).triu_(1)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """s = q kᵀ / sqrt(head_dim),  p = softmax(s + causal),  y = p v (Vaswani et al. 2017, eq. 1), and L = ln Σ exp(s).

    q (B, H, T, head_dim); k, v (B, K, T, head_dim) where K divides H: each key/value head serves the G = H / K query
    heads of its group (Ainslie et al. 2023), K = H being the ordinary form; bias as causal_bias gives it. Returns y
    (B, H, T, head_dim) and L (B · K, G, T, 1). The queries of a group share their keys, so they are laid one below the
    other as queries of one head: one batched product for all of them, and no key is copied.
    """
    queries, keys, values = _grouped(q, k, v)
    y, log_sum = torch.empty_like(queries), queries.new_empty((*queries.shape[:3], 1), dtype=wide(q))
    for rows in _blocks(q.shape[2]):
        p, sums = softmax_(_scores(queries, keys, bias, rows))
        y[:, :, rows] = torch.bmm(p.to(q.dtype), values[:, : rows.stop]).view(y[:, :, rows].shape)
        log_sum[:, :, rows] = sums.view(log_sum[:, :, rows].shape)
    return y.view(q.shape), log_sum


def attention_backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, y: Tensor, log_sum: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """p = exp(s − L);  ∂v = pᵀ ∂y,  ∂p = ∂y vᵀ,  ∂s = p ⊙ (∂p − Σ p ∂p),  ∂q = ∂s k / sqrt(head_dim),  ∂k = ∂sᵀ q /
    sqrt(head_dim).

    Σⱼ pⱼ ∂pⱼ is Σ_d ∂y y of the row, since y = Σⱼ pⱼ vⱼ and ∂pⱼ = ∂y · vⱼ (Dao et al. 2022, eq. 4). The sum over a
    group's queries that ∂k and ∂v need is in the product over the rows of the group; that over blocks is an addition.
    """
    queries, keys, values = _grouped(q, k, v)
    d_out = dy.reshape(queries.shape)
    shift = (d_out * y.reshape(queries.shape)).sum(dim=-1, keepdim=True, dtype=wide(q))
    dq = torch.empty_like(queries)
    dk, dv = (torch.zeros(keys.shape, dtype=wide(q), device=q.device) for _ in range(2))
    for rows in _blocks(q.shape[2]):
        p = _scores(queries, keys, bias, rows).sub_(_flat(log_sum[:, :, rows])).exp_()
        d_rows = _flat(d_out[:, :, rows])
        dp = torch.bmm(d_rows, values[:, : rows.stop].mT).to(p.dtype)
        ds = softmax_backward_(dp, p, _flat(shift[:, :, rows])).mul_(1 / math.sqrt(q.shape[3])).to(q.dtype)
        dq[:, :, rows] = torch.bmm(ds, keys[:, : rows.stop]).view(dq[:, :, rows].shape)
        dk[:, : rows.stop] += torch.bmm(ds.mT, _flat(queries[:, :, rows]))
        dv[:, : rows.stop] += torch.bmm(p.to(q.dtype).mT, d_rows)
    return dq.view(q.shape), dk.view(k.shape).to(k.dtype), dv.view(v.shape).to(v.dtype)


def _grouped(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q (B · K, G, T, head_dim); k and v (B · K, T, head_dim)."""
    keys, values = k.reshape(-1, *k.shape[2:]), v.reshape(-1, *v.shape[2:])
    return q.reshape(len(keys), -1, *q.shape[2:]), keys, values


def _blocks(time: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK, time)) for start in range(0, time, BLOCK))


def _flat(block: Tensor) -> Tensor:
    """(B · K, G, rows, ...) -> (B · K, G · rows, ...)."""
    return block.flatten(1, 2)


def _scores(queries: Tensor, keys: Tensor, bias: Tensor, rows: slice) -> Tensor:
    """q kᵀ / sqrt(head_dim) + causal as (B · K, G · rows, keys) in a wide type: scale and sum are part of the
    product."""
    hidden = bias[rows, : rows.stop].repeat(queries.shape[1], 1)
    scale = 1 / math.sqrt(queries.shape[3])
    scores = torch.baddbmm(hidden, _flat(queries[:, :, rows]), keys[:, : rows.stop].mT, alpha=scale)
    return scores.to(wide(scores))
