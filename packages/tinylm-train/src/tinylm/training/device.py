"""What a run computes with: precision, threads, and the peak that it is measured against.

Not here: which device it computes on (tinylm.model.device); several devices or hosts.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch


def pick_dtype(name: str, device: torch.device, seconds: Callable[[torch.dtype], float]) -> torch.dtype:
    """auto: bfloat16 where it is faster than float32, else float32.

    A GPU is asked whether it has bfloat16. A CPU is measured: first by a small matrix product, because a CPU without
    bfloat16 takes a hundred times as long; then by `seconds`, what the work itself takes in a precision.
    """
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device.type != "cpu" or _matmul_seconds(torch.float32) < _matmul_seconds(torch.bfloat16):
        return torch.float32
    return torch.bfloat16 if seconds(torch.bfloat16) < seconds(torch.float32) else torch.float32


def pick_threads(seconds: Callable[[], float]) -> int:
    """One thread, or as many as torch would take: what `seconds` of the work itself says. Sets it.

    Threads that wait for each other cost more than they bring where the work is small; a tie goes to one.
    """
    many = torch.get_num_threads()
    if many == 1:
        return 1
    together = seconds()
    torch.set_num_threads(1)
    if together < 0.95 * seconds():
        torch.set_num_threads(many)
    return torch.get_num_threads()


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product here and now: the measured peak that a model's FLOPs are a fraction of (MFU)."""
    size = 4096 if device.type == "cuda" else 1024
    return 2 * size**3 / _matmul_seconds(dtype, size, device)


def memory_free(device: torch.device) -> int | None:
    """Bytes that can still be taken on the device; None where nobody says."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's own, and free
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux
        return None


def memory_used(device: torch.device) -> int | None:
    """Bytes this process takes: on CUDA the most that tensors ever took, on a CPU what is resident now."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        return int(Path("/proc/self/statm").read_text("utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux
        return None


def _matmul_seconds(dtype: torch.dtype, size: int = 256, device: torch.device | None = None) -> float:
    """The fastest of five products of size × size matrices."""
    a = torch.ones(size, size, dtype=dtype, device=device)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        a @ a
        if a.is_cuda:
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def autocast(device: torch.device, dtype: torch.dtype) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """A context for the forward pass: weights stay float32, products are computed in `dtype`."""
    if dtype == torch.float32:
        return contextlib.nullcontext
    return lambda: torch.autocast(device.type, dtype=dtype)
