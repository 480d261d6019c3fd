"""Causal attention as products of matrices, multi-head and grouped, with its backward.

Second rung of the attention ladder: ../scalar/derived.py has it as loops, blocked_attention.py does without the (T, T)
pattern. Not here: projections, norms and positions of q and k (transformer.py). Next: loss.py.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from tinylm.model.arrays.activations import softmax, softmax_backward
from tinylm.model.arrays.layers import Array, dropout, dropout_backward

Saved = tuple[Array, Array | None]  # the pattern (B, K, G, T, T), and dropout's factors


@lru_cache(maxsize=32)
def causal_bias(time: int, dtype: np.dtype) -> Array:
    """(T, T): −∞ where a query would see a later key, 0 elsewhere; added to the scores, exp makes it 0."""
    bias = np.triu(np.full((time, time), -np.inf, dtype=dtype), 1)
    bias.flags.writeable = False  # remembered and shared
    return bias


def attention(
    q: Array, k: Array, v: Array, rate: float = 0.0, generator: np.random.Generator | None = None
) -> tuple[Array, Saved]:
    """s = q kᵀ / sqrt(head_dim),  p = softmax(s + causal),  y = p v (Vaswani et al. 2017, eq. 1).

    q (B, H, T, head_dim); k, v (B, K, T, head_dim) where K divides H: each key/value head serves the G = H / K query
    heads of its group (Ainslie et al. 2023), K = H being the ordinary form. Returns (B, H, T, head_dim), and what the
    backward needs. The queries of a group share their keys, so they are laid one below the other as G · T queries of
    one head: one product for all of them, and no key is copied. With a generator, the pattern has dropout of `rate`.
    """
    batch, heads, time, size = q.shape
    kv_heads = k.shape[1]
    scores = q.reshape(batch, kv_heads, -1, size) @ k.swapaxes(2, 3)
    scores *= 1 / math.sqrt(size)
    p = softmax(scores.reshape(batch, kv_heads, -1, time, time) + causal_bias(time, q.dtype))
    used, keep = dropout(p, rate, generator) if generator is not None else (p, None)
    y: Array = used.reshape(batch, kv_heads, -1, time) @ v
    return y.reshape(batch, heads, time, size), (p, keep)


def attention_backward(dy: Array, q: Array, k: Array, v: Array, saved: Saved) -> tuple[Array, Array, Array]:
    """∂v = pᵀ ∂y,  ∂p = ∂y vᵀ,  ∂s = p ⊙ (∂p − Σ p ∂p),  ∂q = ∂s k / sqrt(head_dim),  ∂k = ∂sᵀ q / sqrt(head_dim).

    The sum over a group's queries that ∂k and ∂v need is in the product over G · T rows.
    """
    p, keep = saved
    batch, kv_heads, _, time, _ = p.shape
    size = q.shape[3]
    rows = (batch, kv_heads, -1, size)
    used = p if keep is None else dropout_backward(p, keep)
    dy = dy.reshape(rows)
    dv = used.reshape(batch, kv_heads, -1, time).swapaxes(2, 3) @ dy
    dp = (dy @ v.swapaxes(2, 3)).reshape(p.shape)
    ds = softmax_backward(dp if keep is None else dropout_backward(dp, keep), p).reshape(batch, kv_heads, -1, time)
    ds *= 1 / math.sqrt(size)
    dk = ds.swapaxes(2, 3) @ q.reshape(rows)
    return (ds @ k).reshape(q.shape), dk, dv
