"""Triton kernels: what a GPU is slow at in torch's own operations, computed in one pass over memory.

This file chooses: `chosen` says whether the model takes a kernel, `disabled` and the environment variable
TINYLM_KERNELS switch kernels off. One file a kernel, the readable reference beside it: rmsnorm.py, rope.py, swiglu.py,
attention.py (with attention_forward.py and attention_backward.py), cross_entropy.py. Triton is imported by these only.
Not here: kernels for AMD or for devices older than Ampere; sampling and quantised products. Next: rmsnorm.py.

    TINYLM_KERNELS=all              every kernel (as if it were not set)
    TINYLM_KERNELS=none             none: torch's own operations
    TINYLM_KERNELS=rmsnorm,rope     these and no others
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from torch import Tensor

from tinylm.model._errors import ModelError

NAMES = ("rmsnorm", "rope", "swiglu", "attention", "cross_entropy")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LIMITS = {"rmsnorm": 16384, "attention": 128}  # numbers along the last axis
_FUSED_BY_INDUCTOR = frozenset({"rmsnorm", "rope", "swiglu"})
_DEVICES = {"cuda"}  # tests add "cpu", where the interpreter stands in for the compiler


def _checked(names: tuple[str, ...], where: str) -> frozenset[str]:
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        raise ModelError(f"{where}: wanted names of {', '.join(NAMES)}, got {', '.join(map(repr, unknown))}")
    return frozenset(names)


def _from_environment(value: str) -> frozenset[str]:
    if value in ("all", "none"):
        return frozenset(NAMES if value == "all" else ())
    return _checked(tuple(name.strip() for name in value.split(",")), "TINYLM_KERNELS (all, none, or a list)")


_on = _from_environment(os.environ.get("TINYLM_KERNELS") or "all")
_missing = find_spec("triton") is None


@contextmanager
def disabled(*names: str) -> Iterator[None]:
    """Within it the named kernels (all, if none is named) are not chosen; for the whole process, not one thread.

    A backward pass uses the kernels of its forward pass, wherever it runs. Raises ModelError for an unknown name.
    """
    global _on
    before = _on
    _on = before - _checked(names or NAMES, "kernels.disabled")
    try:
        yield
    finally:
        _on = before


def chosen(name: str, x: Tensor) -> bool:
    """Whether the model computes `name` on x by its kernel: switched on, x on an NVIDIA GPU from Ampere on, in float32,
    bfloat16 or float16, its last axis within LIMITS, and Triton installed (if it is not, one warning says so).

    Within torch.compile RMSNorm, RoPE and SwiGLU are left to Inductor, which fuses them with their neighbours.
    """
    if name not in _on or x.device.type not in _DEVICES or x.dtype not in DTYPES:
        return False
    if x.shape[-1] > LIMITS.get(name, x.shape[-1]):
        return False
    if name in _FUSED_BY_INDUCTOR and torch.compiler.is_compiling():
        return False
    return not _missing_triton() and _new_enough(x.device)


def _missing_triton() -> bool:
    global _DEVICES
    if _missing:
        warnings.warn(
            "the kernels of tinylm.model need Triton, which is not installed: torch's own operations are used. "
            "pip install 'tinylm-model[triton]', or set TINYLM_KERNELS=none",
            stacklevel=4,
        )
        _DEVICES = set()  # said once
    return _missing


def _new_enough(device: torch.device) -> bool:
    if device.type == "cpu":
        return True
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)
