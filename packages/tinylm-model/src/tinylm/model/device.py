"""Which device a model computes on, and how its memory is kept: training and inference ask here, so that both do the
same.

Not here: the precision (tinylm.training.device), moving a model (`Transformer.to`, `Transformer.load`).
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from pathlib import Path

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


@functools.cache
def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks instead of handing them back to the system, in a heap with pages of 2 MB.

    Each step frees and takes the same large activations; by default every one of them is a new mapping whose pages the
    kernel zeroes again. And a matrix product reads rows that lie far apart: in pages of 4 KB each is another entry of
    the page table. A thread that glibc gives a heap of its own would have none of this, and heaps of 64 MB in which a
    few large blocks no longer fit side by side: so all threads share the one. To be called before the weights are made
    and threads begin; once is enough. Address space of half the machine's memory is asked for, none of which is taken
    until it is used. No other platform needs it, so elsewhere this does nothing.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, mmap_threshold, arena_max = -1, -3, -8  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX: malloc.h
    libc = ctypes.CDLL(None)
    libc.mallopt(arena_max, 1)
    libc.mallopt(mmap_threshold, 1 << 30)
    libc.mallopt(trim_threshold, -1)  # never
    if _address_space_is_free():
        _advise_large_pages(libc, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)


def _address_space_is_free() -> bool:
    """Whether asking for more of it than will be used takes nothing from anybody: no limit of this process, and no
    system that promises only what it has (vm.overcommit_memory = 2)."""
    import resource  # Unix only

    limits = (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    if any(resource.getrlimit(limit)[0] != resource.RLIM_INFINITY for limit in limits):
        return False
    try:
        return Path("/proc/sys/vm/overcommit_memory").read_text("ascii").strip() != "2"
    except OSError:
        return False


def _advise_large_pages(libc: ctypes.CDLL, size: int) -> None:
    """Let the heap grow by `size` bytes, ask for pages of 2 MB there, and free it all again: it stays the heap's."""
    block, page, huge_pages = 1 << 29, 1 << 21, 14  # a block below the threshold of mappings; MADV_HUGEPAGE
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    blocks = [libc.malloc(block) for _ in range(size // block)]
    for start in filter(None, blocks):
        first = -start % page
        libc.madvise(start + first, (block - first) // page * page, huge_pages)
        libc.free(start)
