"""GELU, SiLU, SwiGLU, squared ReLU and softmax, with their backwards.

Not here: the matrices around them (transformer.py). Next: positions.py.
"""

from __future__ import annotations

import math

import numpy as np

from tinylm.model.arrays.layers import Array

_C, _A = math.sqrt(2 / math.pi), 0.044715


def gelu(x: Array) -> tuple[Array, Array]:
    """y = x s with s = ½ (1 + tanh(c (x + a x³))), c = sqrt(2/π), a = 0.044715 (Hendrycks and Gimpel 2016). Also s."""
    s = 0.5 * (1 + np.tanh(x * (_C + (_C * _A) * (x * x))))
    return x * s, s


def gelu_backward(dy: Array, x: Array, s: Array) -> Array:
    """∂x = ∂y ⊙ (s + x s'), s' = 2 s (1 − s) c (1 + 3 a x²): the product rule, and ½ (1 + tanh u) = σ(2u), whose slope
    is 2 σ (1 − σ)."""
    slope: Array = s + x * s * (1 - s) * (2 * _C + (6 * _C * _A) * (x * x))
    return dy * slope


def sigmoid(x: Array) -> Array:
    """1 / (1 + e⁻ˣ), as ½ (1 + tanh(x/2)), which cannot overflow."""
    s: Array = 0.5 * (1 + np.tanh(0.5 * x))
    return s


def silu(x: Array) -> Array:
    """y = x σ(x) (Hendrycks and Gimpel 2016; "swish")."""
    return x * sigmoid(x)


def silu_backward(dy: Array, x: Array) -> Array:
    """∂x = ∂y ⊙ σ (1 + x (1 − σ)): σ' = σ (1 − σ)."""
    s = sigmoid(x)
    dx: Array = dy * (s * (1 + x * (1 - s)))
    return dx


def swiglu(gate: Array, up: Array) -> Array:
    """y = SiLU(gate) ⊙ up (Shazeer 2020)."""
    return silu(gate) * up


def swiglu_backward(dy: Array, gate: Array, up: Array) -> tuple[Array, Array]:
    """∂gate = SiLU'(gate) ⊙ (∂y ⊙ up),  ∂up = ∂y ⊙ SiLU(gate)."""
    return silu_backward(dy * up, gate), dy * silu(gate)


def relu_squared(x: Array) -> Array:
    """y = max(x, 0)² (So et al. 2021, Primer)."""
    positive = np.maximum(x, 0)
    return positive * positive


def relu_squared_backward(dy: Array, x: Array) -> Array:
    """∂x = 2 ∂y ⊙ max(x, 0)."""
    return 2 * dy * np.maximum(x, 0)


def softmax(scores: Array) -> Array:
    """p = exp(s) / Σ exp(s) over the last axis; the largest is taken off first, so that exp cannot overflow."""
    p: Array = np.exp(scores - scores.max(axis=-1, keepdims=True))
    p /= np.add.reduce(p, axis=-1, keepdims=True)
    return p


def softmax_backward(dp: Array, p: Array) -> Array:
    """∂s = p ⊙ (∂p − Σⱼ pⱼ ∂pⱼ): raising every score alike changes nothing, so the mean of ∂p has no effect."""
    ds: Array = p * (dp - np.add.reduce(p * dp, axis=-1, keepdims=True))
    return ds
