"""Flash attention: softmax(q kᵀ / sqrt(head_dim)) v without the pattern, forward and backward; and its reference.

    Sᵢⱼ = qᵢ · kⱼ / sqrt(head_dim)        yᵢ = Σⱼ exp(Sᵢⱼ − Lᵢ) vⱼ        Lᵢ = ln Σⱼ exp(Sᵢⱼ)

over the keys j that query i sees: those not later than itself (causal; the queries are the last of the keys) and, with
a window, the last `window` of them, itself included. FlashAttention-2 (Dao 2023) over the online softmax of Milakov and
Gimelshein 2018; grouped queries (Ainslie et al. 2023); sequences of different lengths side by side without padding.

Memory traffic, B·H heads of T queries and keys of D numbers, M queries a block: forward reads B·H·T·D of q and, for
every block of queries, the keys and values that it sees, T/M · T·D (most of it from the L2 cache), and writes B·H·T·D
and one number a query (plain attention moves some B·H·T² numbers four times); backward the like, five products for two.
What it does not do: other masks than these (attention.py of the model has them), dropout, heads of more than 128
numbers, float32 products in TF32, Hopper's own copy engine. Next: attention_forward.py, attention_backward.py.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tinylm.model._errors import ModelError
from tinylm.model.kernels import LIMITS, _launch
from tinylm.model.kernels.attention_backward import backward
from tinylm.model.kernels.attention_forward import forward


def attention_reference(q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
    """What the kernels compute, in torch, pattern and all. Shapes as `flash_attention`. A query that sees no key gets
    zeros."""
    group, queries, keys = q.shape[1] // k.shape[1], q.shape[2], k.shape[2]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    distance = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)
    seen = ((distance >= 0) & (distance < (window or keys + 1))).to(q.device)
    scores = (q @ k.mT / math.sqrt(q.shape[3])).masked_fill(~seen, -torch.inf)
    return torch.softmax(scores, dim=-1).nan_to_num(0.0) @ v


def flash_attention(q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
    """q (B, H, T, head_dim); k, v (B, K, S, head_dim), K dividing H; of any strides -> (B, H, T, head_dim).

    Query i stands at position i + S − T and sees the keys up to its own, at most `window` of them (all, if None). A
    query that sees none (T > S) gets zeros. ModelError for shapes, types or devices that the kernels do not take.
    """
    _check(q, k, v, window, 4)
    y: Tensor = _FlashAttention.apply(q, k, v, None, None, q.shape[2], k.shape[2], window or 0)
    return y


def flash_attention_varlen(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int, window: int | None = None,
    key_starts: Tensor | None = None, longest_keys: int | None = None,
) -> Tensor:  # fmt: skip
    """For packed batches, which the model itself does not make: sequences of different lengths, one after the other,
    each attending within itself as `flash_attention` does.

    q (tokens, H, head_dim); k, v (key tokens, K, head_dim). `starts` (B + 1,) int32 on the same device, also known as
    cu_seqlens: sequence b is the tokens starts[b] to starts[b + 1]; sequences may be empty. `longest`: the length of
    the longest, or more. Where queries and keys differ in number, key_starts and longest_keys are those of the keys.
    What starts says is not read here, since that would wait for the device: it must rise from 0 to the tokens there
    are.
    """
    _check(q, k, v, window, 3)
    for name, found in (("starts", starts), ("key_starts", key_starts)):
        if found is None:
            continue
        if found.dtype != torch.int32 or found.shape != starts.shape or found.ndim != 1 or found.device != q.device:
            raise ModelError(
                f"attention: wanted {name} int32 (sequences + 1,) on {q.device}, got {found.dtype} "
                f"{tuple(found.shape)} on {found.device}"
            )
    if (key_starts is None) != (longest_keys is None) or (key_starts is None and len(q) != len(k)):
        raise ModelError("attention: wanted key_starts and longest_keys together, where queries and keys differ")
    if key_starts is not None:
        key_starts = key_starts.contiguous()
    dense = (x.transpose(0, 1)[None] for x in (q, k, v))
    y: Tensor = _FlashAttention.apply(
        *dense, starts.contiguous(), key_starts, longest, longest_keys if longest_keys is not None else longest,
        window or 0,
    )  # fmt: skip
    return y[0].transpose(0, 1)


class _FlashAttention(torch.autograd.Function):
    """All tensors (B, heads, tokens, head_dim); with lengths B is 1 and the sequences lie along the tokens."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, key_starts: Tensor | None,
        longest: int, longest_keys: int, window: int,
    ) -> Tensor:  # fmt: skip
        q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k, v))
        y: Tensor
        y, log_sum = forward(q, k, v, starts, key_starts, longest, window)
        ctx.save_for_backward(q, k, v, y, log_sum, starts, key_starts)
        ctx.sizes = longest, longest_keys, window
        return y

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        dq, dk, dv = backward(upstream[0], *ctx.saved_tensors, *ctx.sizes)
        return dq, dk, dv, None, None, None, None, None


def _check(q: Tensor, k: Tensor, v: Tensor, window: int | None, axes: int) -> None:
    _launch.check("attention", q, k, v)
    fits = q.ndim == k.ndim == axes and k.shape == v.shape and q.shape[-1] == k.shape[-1]
    heads = 1 if axes == 4 else -2
    if not fits or (axes == 4 and q.shape[0] != k.shape[0]) or k.shape[heads] == 0 or q.shape[heads] % k.shape[heads]:
        raise ModelError(
            "attention: wanted q (B, H, T, head_dim) and k, v (B, K, S, head_dim) with K dividing H (without B and "
            f"with tokens first for sequences of different lengths), got q {tuple(q.shape)}, k {tuple(k.shape)}, "
            f"v {tuple(v.shape)}"
        )
    if not 1 <= q.shape[-1] <= LIMITS["attention"]:
        raise ModelError(f"attention: wanted a head_dim of at most {LIMITS['attention']}, got {q.shape[-1]}")
    if window is not None and window < 1:
        raise ModelError(f"attention: wanted a window of at least 1 key, or None, got {window}")
