"""Linear, embedding and dropout, with their backwards.

A residual connection y = x + f(x) needs no code of its own: ∂x = ∂y + (what f's backward gives), one addition.
Not here: the head's loss (loss.py). Next: norms.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """y = x Wᵀ + b. x (N, in), weight (out, in) as torch keeps it, bias (out,) -> (N, out)."""
    y: Array = x @ weight.T
    if bias is not None:
        y += bias
    return y


def linear_backward(dy: Array, x: Array, weight: Array) -> tuple[Array, Array]:
    """∂x = ∂y W,  ∂W = ∂yᵀ x: y's entry (n, o) is Σᵢ x(n, i) W(o, i) + b(o)."""
    return dy @ weight, dy.T @ x


def bias_backward(dy: Array) -> Array:
    """∂b = Σₙ ∂yₙ: b is added to every row. add.reduce is what dy.sum calls, without its Python part."""
    total: Array = np.add.reduce(dy, axis=0)
    return total


def embedding(ids: Array, table: Array) -> Array:
    """yₙ = E[idₙ]: a linear layer of one-hot rows. ids (N,), table (V, D) -> (N, D)."""
    return table[ids]


def embedding_backward(dy: Array, ids: Array, d_table: Array) -> None:
    """∂E[i] += Σ of ∂yₙ over the n with idₙ = i, in place: a tied head's part stands there already.

    Press and Wolf 2017: with tied weights E is used twice, and its gradient is the sum of both uses. np.add.at and not
    d_table[ids] += dy, which would count an id once however often it occurs.
    """
    np.add.at(d_table, ids, dy)


def dropout(x: Array, rate: float, generator: np.random.Generator) -> tuple[Array, Array]:
    """y = x ⊙ k where k is 0 with probability `rate` and else 1 / (1 − rate), so that E[y] = x. Also k.

    Srivastava et al. 2014, scaled in training so that nothing changes at inference.
    """
    keep = (generator.random(x.shape) >= rate).astype(x.dtype) / np.asarray(1 - rate, x.dtype)
    return x * keep, keep


def dropout_backward(dy: Array, keep: Array) -> Array:
    """∂x = ∂y ⊙ k: what was dropped had no part in the loss."""
    return dy * keep
