"""Which device a model computes on, and how its memory is kept: training and inference ask here, so that both do the
same.

Not here: the precision (tinylm.training.device), moving a model (`Transformer.to`, `Transformer.load`).
"""

from __future__ import annotations

import ctypes
import platform

import torch

from tinylm.model._errors import ModelError


def pick_device(name: str) -> torch.device:
    """ "auto": cuda, else mps, else cpu; otherwise torch's name of a device that is here, such as "cuda:1".

    Raises ModelError for one that is not.
    """
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    present = [kind for kind, there in here.items() if there]
    if name == "auto":
        return torch.device(present[0])
    if name.partition(":")[0] not in present:
        raise ModelError(
            f"wanted device {name!r}, got a machine with {', '.join(present)}: choose one of these, or auto"
        )
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # cuda:9 where there are fewer, cuda:first
        reason = str(error).partition("\n")[0]
        raise ModelError(f"wanted a device such as {present[0]} or {present[0]}:0, got {name!r}: {reason}") from None
    return torch.device(name)


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
