"""The attention ladder as plain data: loops, matrices, blocks, blocks in torch, Triton.

No torch and no NumPy until work is made. Not here: the other ladders (ladder.py), timing and tables.
Next: kernels/attention.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HEADS, HEAD_DIM = 4, 16
Work = tuple[Any, ...]  # q, k, v and ∂y


def rungs() -> list[dict[str, Any]]:
    """Lowest first; the last only where Triton can run."""
    common: dict[str, Any] = {"component": "attention"}
    common |= {"ladder": "causal attention, forward and backward, 4 heads of 16"}
    common |= {"cost": _cost, "exact": lambda work: _attend_in_blocks(work)}  # the work is float64
    common |= {"make": _make_attention, "amount": lambda work: work[0].shape[2], "compare": relative, "unit": "tokens"}
    return [
        {
            **common,
            "rung": "loops",
            "module": "tinylm.model.scalar.derived",
            "change": "lists of floats, a sum for each score",
            "equals": None,
            "run": _attend_in_loops,
            "size": 64,
        },
        {
            **common,
            "rung": "matrices",
            "module": "tinylm.model.arrays.attention",
            "change": "a sum for each score took the time: q kᵀ, softmax and p v of all heads are one call each",
            "equals": "loops",
            "run": _attend_in_matrices,
            "size": 1024,
        },
        {
            **common,
            "rung": "blocks",
            "module": "tinylm.model.arrays.blocked_attention",
            "change": "passes over the (T, T) pattern took time and memory: a block at a time, later keys not at all",
            "equals": "matrices",
            "run": _attend_in_blocks,
            "size": 1024,
        },
        {
            **common,
            "rung": "blocks, torch",
            "module": "tinylm.model.tensors.blocked_attention",
            "change": "the same blocks in torch: no faster on one CPU core, but the same lines run on a GPU",
            "equals": "blocks",
            "make": lambda size: _make_warm(_attend_in_torch, size),
            "run": _attend_in_torch,
            "size": 1024,
        },
        *_triton(common),
    ]


def _triton(common: dict[str, Any]) -> list[dict[str, Any]]:
    """The kernels' rung, where it can run: on an NVIDIA GPU, or where TRITON_INTERPRET=1 asks for the interpreter."""
    interpreted = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
    gpu = Path("/proc/driver/nvidia/gpus").exists()
    if find_spec("triton") is None or not (interpreted or gpu):
        return []

    def attend(work: Work) -> dict[str, Any]:
        return _attend_in_triton(work, "cpu" if interpreted else "cuda")

    change = "each block's passes over memory took the time: one kernel forward and three backward; float32"
    if interpreted:
        change += "; here by Triton's interpreter in NumPy, which shows the result and not the speed"
    return [
        {
            **common,
            "rung": "Triton, interpreted" if interpreted else "Triton",
            "module": "tinylm.model.kernels.attention",
            "change": change,
            "equals": "blocks, torch",
            "make": lambda size: _make_warm(attend, size),
            "run": attend,
            "size": 128 if interpreted else 1024,
            "tolerance": 1e-5,
        }
    ]


def _cost(work: Work) -> tuple[float, float, str]:
    """The least: two products forward, five backward, below the diagonal; q, k, v, ∂y read, y and gradients written."""
    heads, time, head_dim = work[0].shape[1:]
    return 7.0 * heads * time * time * head_dim, 8.0 * sum(part.nbytes for part in work) / 4, "float64"


def _make_attention(size: int) -> Work:
    """q, k, v and ∂y (1, heads, size, head_dim) in float64."""
    import numpy as np

    return tuple(np.random.default_rng(0).standard_normal((4, 1, HEADS, size, HEAD_DIM)))


def _make_warm(attend: Callable[[Work], dict[str, Any]], size: int) -> Work:
    """The same, after a first call that loads torch and sets up its threads or compiles the kernels."""
    attend(_make_attention(2))
    return _make_attention(size)


def _attend_in_loops(work: Work) -> dict[str, Any]:
    from tinylm.model.scalar.derived import attention, attention_backward

    found: dict[str, Any] = {"y": [], "dq": [], "dk": [], "dv": []}
    for q, k, v, dy in zip(*(part[0].tolist() for part in work), strict=True):
        y, pattern = attention(q, k, v)
        for name, result in zip(found, (y, *attention_backward(dy, q, k, v, pattern)), strict=True):
            found[name].append(result)
    return {name: [heads] for name, heads in found.items()}


def _attend_in_matrices(work: Work) -> dict[str, Any]:
    from tinylm.model.arrays.attention import attention, attention_backward

    q, k, v, dy = work
    y, saved = attention(q, k, v)
    return dict(zip(("y", "dq", "dk", "dv"), (y, *attention_backward(dy, q, k, v, saved)), strict=True))


def _attend_in_blocks(work: Work) -> dict[str, Any]:
    from tinylm.model.arrays.blocked_attention import blocked_attention, blocked_attention_backward

    q, k, v, dy = work
    y, log_sum = blocked_attention(q, k, v)
    gradients = blocked_attention_backward(dy, q, k, v, y, log_sum)
    return dict(zip(("y", "dq", "dk", "dv"), (y, *gradients), strict=True))


def _attend_in_torch(work: Work) -> dict[str, Any]:
    import torch

    from tinylm.model.tensors.blocked_attention import blocked_attention, blocked_attention_backward

    q, k, v, dy = (torch.from_numpy(part) for part in work)
    y, log_sum = blocked_attention(q, k, v)
    gradients = blocked_attention_backward(dy, q, k, v, y, log_sum)
    return dict(zip(("y", "dq", "dk", "dv"), (y, *gradients), strict=True))


def _attend_in_triton(work: Work, device: str) -> dict[str, Any]:
    import torch

    from tinylm.model.kernels.attention import flash_attention

    q, k, v, dy = (torch.from_numpy(part).to(device, torch.float32) for part in work)
    y = flash_attention(q.requires_grad_(), k.requires_grad_(), v.requires_grad_())
    found = (y, *torch.autograd.grad(y, (q, k, v), dy))
    return {name: part.detach().cpu() for name, part in zip(("y", "dq", "dk", "dv"), found, strict=True)}


def relative(result: dict[str, Any], reference: dict[str, Any]) -> float:
    """Largest difference of any array over that array's largest number."""
    import numpy as np

    pairs = ((np.asarray(result[name]), np.asarray(reference[name])) for name in reference)
    return float(max(np.abs(a - b).max() / np.abs(b).max() for a, b in pairs))
