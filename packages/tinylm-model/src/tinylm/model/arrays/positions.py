"""Rotary positions: queries and keys turned by an angle that grows with their place (Su et al. 2021, eq. 34).

Learned positions are an embedding (layers.py). Not here: scaled forms of RoPE. Next: attention.py.
"""

from __future__ import annotations

import numpy as np

from tinylm.model.arrays.layers import Array


def rotations(time: int, head_dim: int, theta: float, dtype: np.dtype) -> tuple[Array, Array]:
    """Cosines and sines (T, head_dim / 2) of the angles t · θ^(−2i / head_dim), computed in float64."""
    frequencies = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    angles = np.arange(time)[:, None] * frequencies
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


def rope(x: Array, cos: Array, sin: Array) -> Array:
    """Each pair (a, b) = (x[i], x[i + head_dim / 2]) becomes (a cos − b sin, b cos + a sin). x (..., T, head_dim).

    A query turned by t and a key turned by s have a product that depends on t − s only. Hugging Face's half-split
    layout of the pairs.
    """
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return np.concatenate((a * cos - b * sin, b * cos + a * sin), axis=-1)


def rope_backward(dy: Array, cos: Array, sin: Array) -> Array:
    """∂x = Rᵀ ∂y: a rotation's transpose is the rotation back."""
    return rope(dy, cos, -sin)
