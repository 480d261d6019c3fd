"""RoPE's scaling in a GGUF file: pairs for linear and YaRN, a tensor for Llama 3's.

llama.cpp keeps Llama 3's scaling as `rope_freqs.weight`, (head_dim / 2,): what each frequency θ is divided by,

    1 for many turns, f for few,  1 / ((1 - s) / f + s) between,  with s = (old θ / 2π - low) / (high - low),

old the old context and old θ / 2π the turns in it. Reading finds f, low, high and old again: s is a straight line in θ.
Not here: what a scaling is (rope_scaling.py). Source: convert_hf_to_gguf.py of llama.cpp. Next: metadata.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinylm.model._errors import ModelError
from tinylm.model.config import TransformerConfig
from tinylm.model.gguf.reader import FLOAT32, STRING, UINT32, Pair
from tinylm.model.rope_scaling import LinearScaling, Llama3Scaling, RopeScaling, YarnScaling

TENSOR = "rope_freqs.weight"
KEYS = {f"rope.scaling.{name}" for name in ("type", "factor", "original_context_length")}


def read_scaling(
    pairs: Mapping[str, Any], divisors: NDArray[np.float32] | None, theta: float, head_dim: int
) -> RopeScaling | None:
    """pairs: KEYS that the file has, by name. divisors: its `rope_freqs.weight`, if any."""
    factor: Any = pairs.get("rope.scaling.factor")  # the scaling checks it
    kind = pairs.get("rope.scaling.type", "none" if factor in (None, 0, 1) else "linear")  # as llama.cpp takes it
    if divisors is not None:
        if kind != "none":
            raise ModelError(f"wanted one kind of RoPE scaling, got {TENSOR} and a scaling {kind!r:.40}")
        return _llama3_of(divisors.astype(np.float64), theta, head_dim)
    if kind == "none":
        return None
    if kind == "linear":
        return LinearScaling(factor=factor)
    if kind == "yarn":
        return YarnScaling(
            factor=factor, original_max_position_embeddings=pairs.get("rope.scaling.original_context_length", 0)
        )
    raise ModelError(f"wanted rope.scaling.type none, linear or yarn, got {kind!r:.40}: not supported here")


def scaling_pairs(config: TransformerConfig) -> dict[str, Pair]:
    """The pairs of a linear scaling or YaRN; none for the others."""
    scaling = config.rope_scaling
    if isinstance(scaling, YarnScaling):
        plain = YarnScaling(
            factor=scaling.factor, original_max_position_embeddings=scaling.original_max_position_embeddings
        )
        if scaling != plain:
            raise ModelError("GGUF: wanted YaRN with its usual attention_factor, beta_fast, beta_slow and truncate")
        old = {"rope.scaling.original_context_length": Pair(UINT32, scaling.original_max_position_embeddings)}
    elif isinstance(scaling, LinearScaling):
        old = {}
    else:
        return {}
    return {
        "rope.scaling.type": Pair(STRING, scaling.rope_type),
        "rope.scaling.factor": Pair(FLOAT32, scaling.factor),
        **old,
    }


def llama3_divisors(config: TransformerConfig) -> NDArray[np.float32] | None:
    """`rope_freqs.weight` of a shape; None without Llama 3's scaling. ModelError where `read_scaling` would not find
    the scaling again."""
    scaling = config.rope_scaling
    if not isinstance(scaling, Llama3Scaling):
        return None
    divisors = _divisors(scaling, config.rope_theta, config.head_dim).astype(np.float32)
    try:
        _llama3_of(divisors.astype(np.float64), config.rope_theta, config.head_dim)
    except ModelError:
        raise ModelError(
            f"GGUF: wanted a Llama 3 scaling that {TENSOR} tells from others, got low_freq_factor="
            f"{scaling.low_freq_factor}, high_freq_factor={scaling.high_freq_factor}, original_max_position_embeddings="
            f"{scaling.original_max_position_embeddings} with heads of {config.head_dim}; use Hugging Face's files"
        ) from None
    return divisors


def _turns(theta: float, head_dim: int) -> NDArray[np.float64]:
    """(head_dim / 2,): turns a position, θ / 2π."""
    return 1 / theta ** (np.arange(0, head_dim, 2) / head_dim) / (2 * math.pi)


def _divisors(scaling: Llama3Scaling, theta: float, head_dim: int) -> NDArray[np.float64]:
    turns = scaling.original_max_position_embeddings * _turns(theta, head_dim)
    share = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    share = share.clip(0, 1)
    return np.asarray(1 / ((1 - share) / scaling.factor + share))


def _llama3_of(divisors: NDArray[np.float64], theta: float, head_dim: int) -> RopeScaling | None:
    """The scaling that gives these divisors; ModelError where none does. low is taken as 1: (low, high, old) and twice
    each of them are the same scaling."""
    if divisors.shape != (head_dim // 2,) or not np.isfinite(divisors).all() or divisors.min() < 1 - 1e-5:
        raise ModelError(f"wanted {TENSOR} to be {head_dim // 2} numbers of at least 1, got {divisors!r:.80}")
    factor = float(str(np.float32(divisors.max())))
    if factor == 1:
        return None
    guesses = [(1.0, 4.0, 8192.0)]  # Llama 3.1 to 3.3
    between = (divisors > 1 + 1e-5) & (divisors < factor * (1 - 1e-5))
    if between.sum() >= 2:
        share = (1 / divisors[between] - 1 / factor) / (1 - 1 / factor)
        slope, start = map(float, np.polyfit(_turns(theta, head_dim)[between], share, 1))
        if start < 0 < slope:
            guesses.append((1.0, round(1 - 1 / start, 3), slope * round(-1 / start, 3)))
    for low, high, old in guesses:
        scaling = Llama3Scaling(
            factor=factor, low_freq_factor=low, high_freq_factor=high, original_max_position_embeddings=round(old)
        )
        if np.allclose(_divisors(scaling, theta, head_dim), divisors, rtol=1e-4, atol=0):
            return scaling
    raise ModelError(f"wanted {TENSOR} to be Llama 3's scaling, got another: not supported here")
