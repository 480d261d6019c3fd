"""What every kernel's wrapper asks before a launch. Not here: which kernels the model takes (__init__.py)."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
import triton
from torch import Tensor

from tinylm.model._errors import ModelError
from tinylm.model.kernels import DTYPES

INTERPRETED = bool(triton.knobs.runtime.interpret)  # Triton asks once, when a kernel is decorated


def check(name: str, *tensors: Tensor) -> None:
    """All on one device that Triton can run on, of one type that it takes; ModelError otherwise."""
    first = tensors[0]
    for x in tensors:
        if x.dtype not in DTYPES:
            raise ModelError(f"{name}: wanted float32, bfloat16 or float16, got {x.dtype}")
        if x.device != first.device or x.dtype != first.dtype:
            raise ModelError(
                f"{name}: wanted tensors of one device and type, got {first.device} {first.dtype} and "
                f"{x.device} {x.dtype}"
            )
    if first.device.type == "cuda":
        return
    if first.device.type != "cpu" or not INTERPRETED:
        raise ModelError(
            f"{name}: wanted tensors on a CUDA device (or TRITON_INTERPRET=1 set at the start, for a slow run on the "
            f"CPU), got {first.device}"
        )
    if first.dtype == torch.bfloat16:
        raise ModelError(f"{name}: Triton's interpreter computes bfloat16 wrongly; use float32 or float16 on the CPU")


def on(x: Tensor) -> AbstractContextManager[object]:
    """Around a launch: Triton launches on the current GPU, which need not be the one that x is on."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def heads_like(x: Tensor) -> Tensor:
    """Room for a result of x's shape (B, heads, T, head_dim), in memory (B, T, heads, head_dim): how the projections
    write and attention reads."""
    batch, heads, time, size = x.shape
    return torch.empty((batch, time, heads, size), dtype=x.dtype, device=x.device).transpose(1, 2)


def rows_of(x: Tensor) -> Tensor:
    """(..., size) -> (rows, size) with neighbours in memory along the last axis; a copy only where that needs one."""
    x = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return x if x.stride(1) == 1 else x.contiguous()
