"""The head and its loss fused: hidden states in, cross-entropy and its gradients out, the logits never whole.

    z = h Wᵀ        loss = Σₙ sₙ (ln Σⱼ exp(zₙⱼ) − zₙ[tₙ])        ∂loss/∂zₙ = sₙ (softmax(zₙ) − onehot(tₙ))

A chunk of rows at a time: the product z is torch's (a vendor library's, which no kernel of ours would beat), the kernel
turns z into its own gradient in place, and two more products give ∂h and ∂W. The idea is Liger Kernel's (Hsu et al.
2024); the running maximum and sum are the online softmax of Milakov and Gimelshein 2018.

Memory traffic of the kernel for N rows of V logits: reads 2·N·V and writes N·V, the second reading from the L2 cache as
long as the rows in flight fit there; torch's log_softmax, exp and scatter move about nine times N·V, in float32.
Memory: one chunk of CHUNK_NUMBERS logits. What it does not do: keep the logits in registers and compute them again in
the backward pass (Wijmans et al. 2024 need no chunk at all, for a third more products); label smoothing.
Next: ../loss.py, the same for the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from tinylm.model._dtypes import compute_dtype
from tinylm.model._errors import ModelError
from tinylm.model._graph import graph_is_kept
from tinylm.model.kernels import _launch
from tinylm.model.loss import IGNORED, scaled

CHUNK_NUMBERS = 1 << 27  # logits of a chunk: 256 MiB in bfloat16, 2,670 rows of GPT-2's vocabulary
ALIGNED = 64  # numbers that a row of logits begins at a multiple of
BLOCK = 4096  # logits of a row that a program holds at once


def cross_entropy_reference(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """What the kernel computes, in torch: logits (N, V), targets (N,) -> each row's loss in nats and ∂loss/∂logits.

    Rows whose target is -100 have neither.
    """
    valid = (targets != IGNORED)[:, None]
    at = targets.where(valid[:, 0], 0)[:, None]
    log_p = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)
    gradient = log_p.exp().scatter_add(1, at, -torch.ones_like(log_p)) * valid
    return -(log_p.gather(1, at) * valid)[:, 0], gradient.to(logits.dtype)


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, reduction: str) -> Tensor:
    """hidden (N, D), weight (V, D), targets (N,) int64 -> loss in nats: a scalar, or (N,) with reduction "none".

    The products are in hidden's type (autocast's, where it is on), sums and the loss in float32. Targets of -100 count
    for nothing; when all are ignored the mean is 0 and every gradient is 0. A target outside the vocabulary makes loss
    and gradients NaN (refusing it would wait for the device). ModelError for shapes or a reduction that do not fit.
    """
    hidden = hidden.to(compute_dtype(hidden))
    _launch.check("cross_entropy", hidden)
    if reduction not in ("mean", "sum", "none"):
        raise ModelError(f"cross_entropy: wanted reduction 'mean', 'sum' or 'none', got {reduction!r}")
    if hidden.ndim != 2 or weight.shape[1:] != hidden.shape[1:] or targets.shape != hidden.shape[:1]:
        raise ModelError(
            f"cross_entropy: wanted hidden (N, D), weight (V, D) and targets (N,), got {tuple(hidden.shape)}, "
            f"{tuple(weight.shape)} and {tuple(targets.shape)}"
        )
    if reduction == "none":
        rows: Tensor = _Rows.apply(hidden, weight, targets)
        return rows
    valid = targets != IGNORED
    per_row = valid.to(torch.float32)
    if reduction == "mean":
        per_row = per_row / valid.sum().clamp(min=1)
    loss: Tensor = _Total.apply(hidden, weight, targets, per_row)
    return loss


class _Total(torch.autograd.Function):
    """Σₙ sₙ lossₙ: both gradients are ready when the forward pass ends, and the backward pass only scales them."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, per_row: Tensor) -> Tensor:
        if not any(ctx.needs_input_grad[:2]):
            losses: Tensor = rows_forward(hidden, weight, targets)
            return (losses * per_row).sum()
        losses, grad_hidden, grad_weight = rows_with_gradients(hidden, weight, targets, per_row)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return (losses * per_row).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        (scale,), kept = upstream, graph_is_kept()  # in place and handed over, as in ../loss.py
        return scaled(grad_hidden, scale, kept), scaled(grad_weight, scale, kept), None, None


class _Rows(torch.autograd.Function):
    """Each row's loss: its upstream gradient is known in the backward pass only, so the logits are computed again."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight, targets)
        losses: Tensor = rows_forward(hidden, weight, targets)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        _, grad_hidden, grad_weight = rows_with_gradients(*ctx.saved_tensors, upstream[0])
        return grad_hidden, grad_weight, None


@torch.library.custom_op("tinylm_model::cross_entropy_rows", mutates_args=())
def rows_forward(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """-> each row's loss (N,), float32."""
    losses = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
    head = weight.to(hidden.dtype)
    for rows, logits in _chunks(hidden, head):
        _softmax(logits, targets[rows], losses[rows], False)
    return losses


@torch.library.custom_op("tinylm_model::cross_entropy_gradients", mutates_args=())
def rows_with_gradients(
    hidden: Tensor, weight: Tensor, targets: Tensor, per_row: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """-> each row's loss (N,), and the gradients of Σₙ per_rowₙ lossₙ for hidden and weight."""
    losses = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
    grad_hidden = torch.empty(hidden.shape, dtype=hidden.dtype, device=hidden.device)
    grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
    head = weight.to(hidden.dtype)
    for rows, logits in _chunks(hidden, head):
        _softmax(logits, targets[rows], losses[rows], True)
        # s is applied to the narrow side of each product, D numbers a row instead of V
        grad_hidden[rows] = (logits @ head) * per_row[rows, None]
        grad_weight += logits.T @ (hidden[rows] * per_row[rows, None].to(hidden.dtype))
    return losses, grad_hidden, grad_weight.to(weight.dtype)


@rows_forward.register_fake
def _(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return hidden.new_empty(hidden.shape[0], dtype=torch.float32)


@rows_with_gradients.register_fake
def _(hidden: Tensor, weight: Tensor, targets: Tensor, per_row: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    losses = hidden.new_empty(hidden.shape[0], dtype=torch.float32)
    return losses, hidden.new_empty(hidden.shape), weight.new_empty(weight.shape)


def _chunks(hidden: Tensor, head: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The rows of each chunk and their logits, all in one buffer. Its rows begin at multiples of 64 numbers: with
    GPT-2's 50,257 words they would else begin anywhere, and neither the kernel nor a product could read 16 bytes at
    once."""
    step = max(1, CHUNK_NUMBERS // head.shape[0])
    step = step // 128 * 128 or step
    room = triton.cdiv(head.shape[0], ALIGNED) * ALIGNED
    buffer = hidden.new_empty(min(step, hidden.shape[0]), room)
    for start in range(0, hidden.shape[0], step):
        rows = slice(start, min(start + step, hidden.shape[0]))
        logits = buffer[: rows.stop - start, : head.shape[0]]
        yield rows, torch.mm(hidden[rows], head.T, out=logits)


def _softmax(logits: Tensor, targets: Tensor, losses: Tensor, gradient: bool) -> None:
    """Fill losses (n,), and with `gradient` turn logits (n, V) into ∂loss/∂logits in place."""
    rows, size = logits.shape
    room = logits.stride(0)
    block = min(BLOCK, triton.next_power_of_2(room))
    with _launch.on(logits):
        _rows_kernel[(rows,)](logits, targets, losses, size, room, gradient, IGNORED, block, num_warps=8)


@triton.jit
def _rows_kernel(
    logits, targets, losses, size, room, GRADIENT: tl.constexpr, IGNORED: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    base = logits + row * room
    target = tl.load(targets + row)
    valid = target != IGNORED
    inside = (target >= 0) & (target < size)
    z_target = tl.load(base + tl.where(inside, target, 0)).to(tl.float32)
    top = tl.full((), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)  # a sum for each lane, added up at the end
    for start in range(0, room, BLOCK):
        column = start + tl.arange(0, BLOCK)
        z = tl.load(base + column, mask=column < room, other=0.0).to(tl.float32)
        z = tl.where(column < size, z, -float("inf"))
        higher = tl.maximum(top, tl.max(z, axis=0))
        total = total * tl.exp(top - higher) + tl.exp(z - higher)
        top = higher
    log_sum = top + tl.log(tl.sum(total, axis=0))
    log_sum = tl.where(inside | (target == IGNORED), log_sum, float("nan"))  # and with it the loss and its gradient
    tl.store(losses + row, tl.where(valid, log_sum - z_target, 0.0))
    if GRADIENT:
        tl.debug_barrier()  # every thread has read z_target before one of them overwrites it
        for start in range(0, room, BLOCK):
            column = start + tl.arange(0, BLOCK)
            z = tl.load(base + column, mask=column < room, other=0.0).to(tl.float32)
            z = tl.where(column < size, z, -float("inf"))
            p = tl.exp(z - log_sum) - tl.where(column == target, 1.0, 0.0)
            tl.store(base + column, tl.where(valid, p, 0.0).to(logits.dtype.element_ty), mask=column < room)
