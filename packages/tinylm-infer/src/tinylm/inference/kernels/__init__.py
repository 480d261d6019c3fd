"""The C++ rung of inference: loads the compiled module `tinylm.inference._kernels`, or says that it is missing.

Its source stands in `src/kernels/` of the package's source; `packed.hpp` there describes the layout of the weights. The
fastest instruction set that the processor has is used; the environment's TINYLM_INSTRUCTION_SET names another one (amx,
avx512_bf16, avx512, avx2, portable: all give the same bits, but the first two with bfloat16 weights, whose sums have
another order). Where the package was installed without a compiler the module is missing: quantised weights then run on
the PyTorch rung (`quantization/reference.py`), and one warning says so at first use. Not here: what the kernels compute
(quantization/). Next: quantization/linear.py.
"""

from __future__ import annotations

import os
import warnings
from functools import cache
from importlib import import_module
from typing import Any

from tinylm.inference._errors import InferenceError

_VARIABLE = "TINYLM_INSTRUCTION_SET"


@cache
def _compiled() -> Any:
    """The compiled module, or None."""
    try:
        return import_module("tinylm.inference._kernels")
    except ImportError:
        return None


@cache
def _warn_once() -> None:
    warnings.warn(
        "tinylm-infer was installed without its compiled kernels: quantised weights run in PyTorch, many times slower; "
        "to get them, install a C++20 compiler and then tinylm-infer again",
        RuntimeWarning,
        stacklevel=2,
    )


def available() -> bool:
    """Whether the compiled kernels are installed."""
    return _compiled() is not None


def instruction_sets() -> list[str]:
    """Those compiled that this processor has, fastest first; empty without the kernels."""
    return list(_compiled().instruction_sets()) if available() else []


def instruction_set() -> str:
    """The one in use: the fastest, or the environment's. InferenceError for one that is not at hand."""
    at_hand = instruction_sets()
    wanted = os.environ.get(_VARIABLE) or at_hand[0]
    if wanted not in at_hand:
        raise InferenceError(f"{_VARIABLE}: wanted one of {', '.join(at_hand)} on this processor, got {wanted!r}")
    return wanted


def multiplies_bfloat16() -> bool:
    """Whether the instruction set in use has products of bfloat16: prompts then go through the kernels too."""
    return available() and instruction_set() in ("amx", "avx512_bf16")


def backend() -> str:
    """What `--version` says."""
    return f"kernels (C++, {instruction_set()})" if available() else "python (no compiled kernels)"
