"""What a forward pass is given, checked: ids, positions and masks; and positions counted where none are given.

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


def check_mask(ids: Tensor, mask: Tensor, start: int | None) -> None:
    """A mask is bool, (batch, cached + new tokens)."""
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
