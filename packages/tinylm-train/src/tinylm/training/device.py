"""In which precision a run computes, and how it keeps its memory.

Not here: which device it computes on (tinylm.model.pick_device); several devices or hosts.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
import time
from collections.abc import Callable

import torch


def pick_dtype(name: str, device: torch.device, seconds: Callable[[torch.dtype], float]) -> torch.dtype:
    """auto: bfloat16 where it is faster than float32, else float32.

    A GPU is asked whether it has bfloat16. A CPU is measured: first by a small matrix product, because a CPU without
    bfloat16 takes a hundred times as long; then by `seconds`, what the work itself takes in a precision.
    """
    if name != "auto":
        return torch.float32 if name == "float32" else torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device.type != "cpu" or _matmul_seconds(torch.float32) < _matmul_seconds(torch.bfloat16):
        return torch.float32
    return torch.bfloat16 if seconds(torch.bfloat16) < seconds(torch.float32) else torch.float32


def _matmul_seconds(dtype: torch.dtype) -> float:
    """The fastest of five products of 256 × 256 matrices."""
    a = torch.ones(256, 256, dtype=dtype)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return min(times[1:])


def autocast(device: torch.device, dtype: torch.dtype) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """A context for the forward pass: weights stay float32, products are computed in `dtype`."""
    if dtype == torch.float32:
        return contextlib.nullcontext
    return lambda: torch.autocast(device.type, dtype=dtype)


def keep_freed_memory() -> None:
    """Tell glibc to keep large freed blocks instead of handing them back to the system.

    Each step frees and takes the same large activations; by default every one of them is a new mapping whose pages the
    kernel zeroes again. No other platform needs it, so elsewhere this does nothing.
    """
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD in malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, (1 << 31) - 1)
