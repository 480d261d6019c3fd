"""Which number types are computed in: matrix products in autocast's, where it is on, and long sums in float32 at least.

Not here: a checkpoint's types (checkpoint.py), what the kernels take (kernels/__init__.py). Next: norm.py.
"""

from __future__ import annotations

import torch
from torch import Tensor


def wide(dtype: torch.dtype) -> torch.dtype:
    """What sums of many numbers of this type are computed in: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type that matrix products take x in: autocast's if it is on, else x's own."""
    kind = x.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):  # torch raises for a device that cannot autocast
        return x.dtype
    return torch.get_autocast_dtype(kind)
