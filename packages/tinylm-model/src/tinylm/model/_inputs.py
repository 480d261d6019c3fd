"""What a forward pass is given, checked: ids, targets, positions and masks; and positions counted where none are given.

Not here: the forward pass (transformer.py). Next: transformer.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tinylm.model._errors import ModelError


def count_positions(ids: Tensor, mask: Tensor | None, start: int | None, context: int) -> Tensor:
    """Counted on from the `start` tokens that are cached, or the real tokens of the mask counted."""
    if start is None:
        raise ModelError("positions: this cache has no single length, so wanted positions=(B, T), got None")
    if mask is not None:
        return (mask.cumsum(dim=1) - 1).clamp(min=0)[:, start:]
    end = start + ids.shape[1]
    if end > context:
        raise ModelError(
            f"sequence: wanted at most {context} tokens (the context), got {end}; shorten it, or make a model with a "
            "longer context"
        )
    return torch.arange(start, end, device=ids.device)


def split_documents(targets: Tensor) -> tuple[Tensor, Tensor]:
    """targets (B, T), -100 where a document ends -> the number of each place's document and its position in it."""
    ends = targets == -100
    numbers = ends.cumsum(dim=1) - ends.to(torch.int64)
    places = torch.arange(targets.shape[1], device=targets.device).expand_as(targets)
    behind = torch.where(ends, places + 1, 0).cummax(dim=1).values  # where the next document begins
    starts = torch.nn.functional.pad(behind[:, :-1], (1, 0))
    return numbers, places - starts


def check_whole(name: str, values: Tensor) -> None:
    """Types that torch looks up by."""
    if not isinstance(values, Tensor):
        raise ModelError(f"{name}: wanted a tensor of whole numbers, got a {type(values).__name__}; use torch.tensor")
    if values.dtype not in (torch.int64, torch.int32):
        raise ModelError(f"{name}: wanted whole numbers (int64 or int32), got {values.dtype}")


def check_ids(ids: Tensor) -> None:
    """At least one whole number, (batch, time)."""
    check_whole("ids", ids)
    if ids.ndim != 2 or 0 in ids.shape:
        raise ModelError(f"ids: wanted shape (batch, time), at least one of each, got {tuple(ids.shape)}")


def check_positions(ids: Tensor, positions: Tensor) -> None:
    """Whole numbers, (time,) or (batch, time)."""
    check_whole("positions", positions)
    batch, time = ids.shape
    if positions.shape not in ((time,), (1, time), (batch, time)):
        raise ModelError(f"positions: wanted shape {(time,)} or {(batch, time)}, got {tuple(positions.shape)}")


def places(at: Tensor, ids: Tensor) -> Tensor:
    """`logits_at` as places from 0 on, (len,) or (batch, len)."""
    check_whole("logits_at", at)
    batch, time = ids.shape
    if at.ndim not in (1, 2) or (at.ndim == 2 and at.shape[0] != batch):
        raise ModelError(f"logits_at: wanted shape (len,) or ({batch}, len), got {tuple(at.shape)}")
    at = at.to(torch.int64)
    at = at.where(at >= 0, at + time)
    check_range("logits_at", at, time, "the places of ids")
    return at


def check_mask(ids: Tensor, mask: Tensor, start: int | None) -> None:
    """A mask is bool, (batch, cached + new tokens)."""
    if not isinstance(mask, Tensor):
        raise ModelError(f"mask: wanted a tensor of bool, got a {type(mask).__name__}; use torch.tensor")
    batch, time = ids.shape
    keys = mask.shape[-1] if start is None else start + time
    if mask.shape != (batch, keys) or keys < time or mask.dtype != torch.bool:
        raise ModelError(
            f"mask: wanted bool of shape {(batch, keys)} (batch, cached + new tokens), "
            f"got {mask.dtype} of shape {tuple(mask.shape)}"
        )


def check_range(name: str, values: Tensor, limit: int, what: str) -> None:
    """0 to limit - 1. On the CPU only: elsewhere it would wait for the device, and torch.compile would have to stop."""
    if torch.compiler.is_compiling() or values.device.type != "cpu" or values.numel() == 0:
        return
    low, high = (int(v) for v in values.aminmax())
    if low < 0 or high >= limit:
        raise ModelError(f"{name}: wanted 0 to {limit - 1} ({what}), got {low if low < 0 else high}")
