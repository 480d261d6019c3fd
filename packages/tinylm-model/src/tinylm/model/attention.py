"""Attention over given queries, keys and values: the fast form and the one that shows its pattern.

Not here: projections and RoPE (transformer.py), remembered keys (cache.py). Next: cache.py.

Masks are boolean, True = may attend, broadcastable to (B, heads, T, keys). A window of w lets a query attend to its own
key and the w - 1 before it (Beltagy et al. 2020), counted in places of the batch, padding included, as transformers
counts them.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tinylm.model import kernels
from tinylm.model._dtypes import compute_dtype, wide

BLOCK = 256  # queries of a block in the backward by hand
PATTERNS = 1 << 20  # numbers of a pattern for each thread: a few of them stay in the processor's cache


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
    if causal and _by_hand(q):
        apply: Callable[..., Tensor] = _AttentionOnCPU.apply  # torch leaves it untyped
        return apply(*(x.to(compute_dtype(q)) for x in (q, k, v)))
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)


def _by_hand(q: Tensor) -> bool:
    """In 16 bits torch's backward on the CPU takes twice as long as products of whole patterns; in float32 half."""
    sixteen = compute_dtype(q) == torch.bfloat16 and q.device.type == "cpu" and not torch.compiler.is_compiling()
    return sixteen and q.requires_grad and torch.is_grad_enabled()


class _AttentionOnCPU(torch.autograd.Function):
    """torch's blocked forward; the backward by hand, for BLOCK queries with the keys up to the last of them.

    s = q kᵀ / sqrt(head_dim),  p = softmax(s):  ∂v = pᵀ ∂y,  ∂p = ∂y vᵀ,  ∂s = p ⊙ (∂p − Σ p ∂p),
    ∂q = ∂s k / sqrt(head_dim),  ∂k = ∂sᵀ q / sqrt(head_dim), the last two and ∂v summed over a group's queries.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        grouped = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, ...]:
        q, k, v = ctx.saved_tensors
        batch, heads, time, size = q.shape
        group, scale = heads // k.shape[1], 1 / math.sqrt(size)
        keys, values = (x.repeat_interleave(group, dim=1).flatten(0, 1) for x in (k, v))
        queries, d_y = q.flatten(0, 1), upstream[0].flatten(0, 1)
        dq = torch.empty_like(queries)
        once = time <= BLOCK and group == 1  # nothing is summed
        dk, dv = (torch.zeros(keys.shape, dtype=q.dtype if once else wide(q.dtype)) for _ in range(2))
        several = max(1, PATTERNS // min(time, BLOCK) ** 2) * torch.get_num_threads()
        for start in range(0, time, BLOCK):
            stop = min(start + BLOCK, time)
            hidden = queries.new_full((stop - start, stop), -torch.inf).triu_(start + 1)
            for first in range(0, batch * heads, several):
                some = slice(first, first + several)
                rows, d_rows, seen = queries[some, start:stop], d_y[some, start:stop], keys[some, :stop]
                p = torch.softmax(torch.baddbmm(hidden, rows, seen.mT, alpha=scale), dim=-1)
                ds = torch._softmax_backward_data(torch.bmm(d_rows, values[some, :stop].mT), p, -1, q.dtype)
                _add_product_(dv[some, :stop], p.mT, d_rows, 1.0, once)
                _add_product_(dk[some, :stop], ds.mT, rows, scale, once)
                _add_product_(dq[some, start:stop], ds, seen, scale, True)
        if not once:
            dk, dv = (x.view(batch, -1, group, time, size).sum(dim=2).to(q.dtype) for x in (dk, dv))
        return dq.view(q.shape), dk.view(k.shape), dv.view(v.shape)


def _add_product_(total: Tensor, a: Tensor, b: Tensor, scale: float, first: bool) -> None:
    """total += scale · a b, of stacks of matrices; the first product is written, not added."""
    if first:
        torch.baddbmm(total, a, b, beta=0, alpha=scale, out=total)
    else:
        total.add_(torch.bmm(a, b), alpha=scale)


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
