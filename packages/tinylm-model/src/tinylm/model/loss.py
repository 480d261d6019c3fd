"""Cross-entropy of the head's logits, a chunk of rows at a time, so that the (tokens × vocabulary) logits never exist
whole.

Each chunk's gradient is computed while its logits are at hand (as in Liger kernel, Hsu et al. 2024); the backward
pass only scales. On CUDA kernels/cross_entropy.py does the same with a Triton kernel. Not here: the layers
(transformer.py). Next: transformer.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from tinylm.model import kernels
from tinylm.model._dtypes import compute_dtype, wide
from tinylm.model._graph import graph_is_kept

IGNORED = -100  # a target that counts for nothing
CHUNK_NUMBERS = 1 << 20  # logits per chunk of a small vocabulary: they stay in the processor's cache (see README)
CHUNK_BYTES = 2048  # a word, for a chunk of a large one: each passes over the whole head, which few rows do not repay
PASS_NUMBERS = 1 << 18  # logits that are turned into their gradient at once, in the processor's cache
COLUMNS = 8192  # words of the head at once in each product


class Tied:
    """A table that is embedding and head, whose gradient exists once: the head's, to which the looked-up rows' is
    added, instead of two tables and their sum.

    The head's backward always comes before the embedding's, since what was looked up leads to it.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight  # (V, D)
        self.gradient: Callable[[], Tensor] | None = None  # of the head, between the two backwards

    def look_up(self, ids: Tensor) -> Tensor:
        """ids (B, T) -> (B, T, D)."""
        apply: Callable[..., Tensor] = _LookUp.apply  # torch leaves it untyped
        return apply(self.weight, ids, self)


class _LookUp(torch.autograd.Function):
    """x = W[ids];  ∂W = the head's ∂W, and at row ids[n] Σ ∂xₙ, which is summed in float32 at least."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, tied: Tied) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.tied = tied
        return F.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (ids,), tied = ctx.saved_tensors, ctx.tied
        gradient = torch.zeros_like(tied.weight) if tied.gradient is None else tied.gradient()
        tied.gradient = None
        words, rows = ids.flatten(), upstream[0].flatten(0, -2)
        kind = wide(gradient.dtype)
        if gradient.dtype == kind:
            return gradient.index_add_(0, words, rows.to(kind)), None, None
        words, places = words.unique(return_inverse=True)  # each row's sum is rounded once
        gradient[words] = gradient[words].to(kind).index_add_(0, places, rows.to(kind)).to(gradient.dtype)
        return gradient, None, None


def tied_on_cpu(embed: torch.nn.Embedding) -> Tied | None:
    """For a plain embedding on the CPU that is to be trained: none that is compiled, spread over processes, or watched
    by hooks."""
    weight = embed.weight
    plain = type(weight) is torch.nn.Parameter and weight.device.type == "cpu" and not embed._forward_hooks
    wanted = plain and not embed._forward_pre_hooks and weight.requires_grad and torch.is_grad_enabled()
    return Tied(weight) if wanted and not torch.compiler.is_compiling() else None


def chunked_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, reduction: str, tied: Tied | None = None
) -> Tensor:
    """hidden (N, D), weight (V, D), targets (N,) int64 -> loss in nats: a scalar, or (N,) with reduction "none".

    Targets of -100 count for nothing. When all are ignored the mean is 0 (not 0/0) and every gradient is 0.
    tied: what looked up what led to `hidden`, if that is to give the weight its gradient.
    """
    if kernels.chosen("cross_entropy", hidden):
        from tinylm.model.kernels.cross_entropy import linear_cross_entropy

        return linear_cross_entropy(hidden, weight, targets, reduction)
    valid = targets != IGNORED
    if reduction == "none":
        return _rowwise(hidden, weight, targets)
    per_row = valid.to(wide(hidden.dtype))
    if reduction == "mean":
        per_row = per_row / valid.sum().clamp(min=1)
    apply: Callable[..., Tensor] = _FusedHead.apply  # torch leaves it untyped
    return apply(hidden, weight, targets.where(valid, 0), per_row, tied)


def _rows_per_chunk(vocab_size: int, dtype: torch.dtype) -> int:
    return max(CHUNK_BYTES // dtype.itemsize, CHUNK_NUMBERS // vocab_size, 1)


class _FusedHead(torch.autograd.Function):
    """loss = Σₙ sₙ · (logsumexp(zₙ) − zₙ[tₙ]) with z = h Wᵀ;  ∂loss/∂zₙ = sₙ · (softmax(zₙ) − onehot(tₙ)).

    s is applied to the narrow side of each product, D numbers a row instead of V. What waits for the backward is the
    smaller of two: the weight's gradient, or, with few rows, what z has become, from which it is computed then. With a
    tied table that is at the very end, when the activations have gone.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, per_row: Tensor, tied: Tied | None
    ) -> Tensor:
        wants_grad = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        kind, narrow = wide(hidden.dtype), compute_dtype(hidden)
        (count, width), vocabulary = hidden.shape, weight.shape[0]
        loss = torch.zeros((), dtype=kind, device=hidden.device)
        step = _rows_per_chunk(vocabulary, narrow)
        later = wants_grad and count <= step and count * narrow.itemsize <= width * kind.itemsize
        later = later and narrow != torch.float16  # whose range the loss's scale would leave
        grad_hidden = torch.empty_like(hidden) if wants_grad else None
        grad_weight = torch.empty_like(weight, dtype=kind) if wants_grad and not later else None
        matrix = weight if count <= step else weight.to(narrow)  # for several chunks cast once, for one by blocks
        for start in range(0, max(1, count), step):
            rows = slice(start, start + step)
            h, s = hidden[rows].to(narrow), per_row[rows]
            z = [h @ block.T for block in _blocks(matrix, narrow)]
            loss += _cross_entropy_(z, targets[rows], s, kind, wants_grad)
            if grad_hidden is not None:
                sums = torch.zeros(h.shape, dtype=kind, device=h.device)
                for some, block in zip(z, _blocks(matrix, narrow), strict=True):
                    sums += some @ block
                del some, block  # before the next product's
                grad_hidden[rows] = sums * s[:, None]
            if grad_weight is not None:
                _add_product_(grad_weight, z, h * s[:, None].to(narrow), first=start == 0)
            if not later:
                del z  # before the next chunk's
        keeps = narrow if later and tied is not None and tied.weight.grad_dtype is None else None
        ctx.tied, ctx.dtypes = tied, (keeps or kind, keeps or weight.dtype)
        ctx.save_for_backward(grad_hidden, grad_weight, *((h, per_row, *z) if later else ()))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight, *parts = ctx.saved_tensors
        (scale,) = upstream
        # In place, and handed over: a copy of the head's gradient is as large as the head. With retain_graph=True, for
        # a second backward pass, copies after all.
        kept = graph_is_kept()
        grad_hidden = scaled(grad_hidden, scale, kept)
        kind, dtype = ctx.dtypes

        def gradient() -> Tensor:
            if not parts:
                return scaled(grad_weight, scale, kept).to(dtype)
            h, s, *delta = parts
            if not kept:
                parts.clear()  # so that what _add_product_ is done with can go
            total = h.new_empty(sum(some.shape[1] for some in delta), h.shape[1], dtype=kind)
            _add_product_(total, delta, h * (s * scale)[:, None].to(h.dtype), first=True)
            cast: Tensor = total.to(dtype)
            return cast

        if ctx.tied is not None:
            ctx.tied.gradient = gradient
            return grad_hidden, None, None, None, None
        return grad_hidden, gradient(), None, None, None


def scaled(gradient: Tensor, scale: Tensor, copied: bool) -> Tensor:
    """gradient · scale, in place unless it is to be copied."""
    scale = scale.to(gradient.dtype)
    return gradient * scale if copied else gradient.mul_(scale)


def _blocks(weight: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    """COLUMNS words of the head (V, D) at a time, in `dtype`; casts all in one place, so each is gone with the next."""
    blocks = torch.split(weight, COLUMNS)
    if weight.dtype == dtype or torch.compiler.is_compiling():  # which finds places by itself
        yield from (some.to(dtype) for some in blocks)
        return
    place = torch.empty_like(blocks[0], dtype=dtype)
    for some in blocks:
        yield place[: len(some)].copy_(some)


def _cross_entropy_(z: list[Tensor], targets: Tensor, s: Tensor, kind: torch.dtype, wants_grad: bool) -> Tensor:
    """Σₙ sₙ (logsumexp(zₙ) − zₙ[tₙ]) of logits (N, V) in blocks of words; with wants_grad z becomes softmax(z) −
    onehot(t)."""
    loss = torch.zeros((), dtype=kind, device=s.device)
    sizes = [some.shape[1] for some in z]
    step = max(1, PASS_NUMBERS // sum(sizes))
    scratch = torch.empty(min(step, len(s)), sum(sizes), dtype=kind, device=s.device)
    for start in range(0, len(s), step):
        rows = slice(start, start + step)
        t = targets[rows, None]
        whole = scratch[: len(t)]
        pieces = torch.split(whole, sizes, dim=1)
        for piece, some in zip(pieces, z, strict=True):
            piece.copy_(some[rows])
        top, wanted = whole.amax(1, keepdim=True), whole.gather(1, t)
        total = whole.sub_(top).exp_().sum(1, keepdim=True)  # one exp a logit, for the loss and for the gradient
        loss += ((total.log() + top - wanted)[:, 0] * s[rows]).sum()
        if wants_grad:
            whole.div_(total).scatter_add_(1, t, torch.full_like(t, -1, dtype=kind))
            for piece, some in zip(pieces, z, strict=True):
                some[rows] = piece
    return loss


def _add_product_(total: Tensor, delta: list[Tensor], h: Tensor, first: bool) -> None:
    """total (V, D) += deltaᵀ h, of delta (N, V) in blocks of words, which are used up, and h (N, D); the first product
    is written, not added."""
    for words in torch.split(total, COLUMNS):
        some = delta.pop(0)
        if some.dtype == total.dtype:
            words.addmm_(some.T, h, beta=0 if first else 1)
        elif first:
            words.copy_(some.T @ h)
        else:
            words += some.T @ h


def _rowwise(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """(N,): one loss per row. Each row's upstream gradient is its own, so a chunk's logits are computed again in
    backward."""
    step = _rows_per_chunk(weight.shape[0], compute_dtype(hidden))

    def chunk(h: Tensor, w: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy((h @ w.T).to(wide(h.dtype)), t, ignore_index=IGNORED, reduction="none")

    pieces = [
        checkpoint(chunk, hidden[i : i + step], weight, targets[i : i + step], use_reentrant=False)
        for i in range(0, hidden.shape[0], step)
    ]
    return torch.cat(pieces) if pieces else hidden.new_zeros(0, dtype=wide(hidden.dtype))
