"""LayerNorm and RMSNorm over the last axis, with their backwards. QK-norm is RMSNorm over each head's numbers.

Not here: where they stand in a block (transformer.py). Next: activations.py.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from tinylm.model.arrays.layers import Array

Saved = tuple[Array, Array]  # x̂ and r


@lru_cache(maxsize=32)
def _shares(size: int, dtype: np.dtype) -> Array:
    return np.full((size, 1), 1 / size, dtype)


def mean(x: Array) -> Array:
    """Over the last axis, which stays with length 1: a product with a column of 1/D, which on small arrays takes half
    the time of a sum and a quarter of x.mean."""
    product: Array = x @ _shares(x.shape[-1], x.dtype)
    return product


def sum_of_rows(x: Array) -> Array:
    """(..., D) -> (D,)."""
    total: Array = np.add.reduce(x if x.ndim == 2 else x.reshape(-1, x.shape[-1]), axis=0)
    return total


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> tuple[Array, Saved]:
    """x̂ = r (x − mean(x)) with r = 1 / sqrt(variance(x) + eps),  y = x̂ ⊙ w + b (Ba et al. 2016). x (..., D)."""
    centred = x - mean(x)
    r = 1 / np.sqrt(mean(centred * centred) + eps)
    centred *= r
    return centred * weight + bias, (centred, r)


def layer_norm_backward(dy: Array, weight: Array, saved: Saved) -> tuple[Array, Array, Array]:
    """With ∂x̂ = ∂y ⊙ w:  ∂x = r (∂x̂ − mean(∂x̂) − x̂ mean(∂x̂ ⊙ x̂)),  ∂w = Σ ∂y ⊙ x̂,  ∂b = Σ ∂y over the rows.

    Moving x along the ones changes only the mean, along x̂ only the variance, and both are normalised away: ∂x̂ loses its
    parts along the two.
    """
    normal, r = saved
    d_normal = dy * weight
    dx = d_normal - normal * mean(d_normal * normal)
    dx -= mean(d_normal)
    dx *= r
    return dx, sum_of_rows(dy * normal), sum_of_rows(dy)


def rms_norm(x: Array, weight: Array, eps: float) -> tuple[Array, Saved]:
    """x̂ = r x with r = 1 / sqrt(mean(x²) + eps),  y = x̂ ⊙ w (Zhang and Sennrich 2019). x (..., D)."""
    r = 1 / np.sqrt(mean(x * x) + eps)
    normal = x * r
    return normal * weight, (normal, r)


def rms_norm_backward(dy: Array, weight: Array, saved: Saved) -> tuple[Array, Array]:
    """With ∂x̂ = ∂y ⊙ w:  ∂x = r (∂x̂ − x̂ mean(∂x̂ ⊙ x̂)),  ∂w = Σ ∂y ⊙ x̂ over the rows."""
    normal, r = saved
    d_normal = dy * weight
    dx = d_normal - normal * mean(d_normal * normal)
    dx *= r
    return dx, sum_of_rows(dy * normal)
