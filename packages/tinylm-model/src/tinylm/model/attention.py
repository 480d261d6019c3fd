"""Attention over given queries, keys and values: the fast form and the one that shows its pattern.

Not here: projections and RoPE (transformer.py), remembered keys (cache.py). Next: cache.py.

Masks are boolean, True = may attend, broadcastable to (B, heads, T, keys). A window of w lets a query attend to its own
key and the w - 1 before it (Beltagy et al. 2020), counted in places of the batch, padding included, as transformers
counts them.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tinylm.model import kernels
from tinylm.model._dtypes import compute_dtype, wide


def causal_mask(queries: int, keys: int, device: torch.device, window: int | None = None) -> Tensor:
    """(T, keys): the queries are the last of the keys, and each sees the last `window` keys up to itself, or all."""
    mask = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return mask if window is None else mask.triu(keys - queries - window + 1)


def padding_mask(mask: Tensor, queries: int) -> Tensor:
    """(B, keys) with True = real token -> (B, 1, T, keys): causal, and padding is attended to by nobody but itself.

    A padded query keeps itself as its one key, so that its softmax has something to sum to: its output is meaningless
    but finite, and nothing real ever looks at it.
    """
    keys = mask.shape[1]
    causal = causal_mask(queries, keys, mask.device)
    itself = torch.eye(keys, dtype=torch.bool, device=mask.device)[keys - queries :]
    return ((causal & mask[:, None, :]) | itself)[:, None]


def document_mask(documents: Tensor) -> Tensor:
    """(B, T) numbers of documents -> (B, 1, T, T): causal, and each sees its own document only."""
    same = documents[:, :, None] == documents[:, None, :]
    return (causal_mask(same.shape[1], same.shape[1], documents.device) & same)[:, None]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, window: int | None = None) -> Tensor:
    """softmax(q kᵀ / sqrt(head_dim)) v (Vaswani et al. 2017, eq. 1), causal, within the window if there is one.

    q (B, heads, T, head_dim); k, v (B, kv_heads, keys, head_dim) with keys >= T, the queries being the last T of them.
    Returns (B, heads, T, head_dim). Without mask and window nothing of size T × keys is stored when T == keys.
    """
    if mask is None and q.shape[2] > 1 and kernels.chosen("attention", q):
        from tinylm.model.kernels.attention import flash_attention

        kind = compute_dtype(q)  # under autocast a norm's queries, or a cache's keys, may be of another type
        return flash_attention(q.to(kind), k.to(kind), v.to(kind), window)
    if window is not None:
        k, v, mask = _within(window, q.shape[2], k, v, mask)
    queries, keys = q.shape[2], k.shape[2]
    if mask is None and 1 < queries < keys:
        mask = causal_mask(queries, keys, q.device)
    causal = mask is None and queries > 1
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)


def attend_with_pattern(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, window: int | None = None
) -> tuple[Tensor, Tensor]:
    """The same as `attend`, step by step, and the pattern (B, heads, T, keys): each row sums to 1."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    if mask is None or window is not None:
        allowed = causal_mask(q.shape[2], k.shape[2], q.device, window)
        mask = allowed if mask is None else mask & allowed
    scores = (q @ k.mT / math.sqrt(q.shape[3])).masked_fill(~mask, -torch.inf)
    pattern = torch.softmax(scores, dim=-1, dtype=wide(q.dtype)).to(q.dtype)
    return pattern @ v, pattern


def _within(
    window: int, queries: int, k: Tensor, v: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keys, values and mask without the keys that no query's window reaches, and a mask for those between."""
    reach = queries + window - 1
    if k.shape[2] > reach:
        k, v = k[:, :, -reach:], v[:, :, -reach:]
        mask = None if mask is None else mask[..., -reach:]
    if queries > 1 and k.shape[2] > window:
        allowed = causal_mask(queries, k.shape[2], k.device, window)
        mask = allowed if mask is None else mask & allowed
    return k, v, mask
