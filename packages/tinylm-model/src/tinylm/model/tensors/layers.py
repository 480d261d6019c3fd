"""Linear and embedding, with their backwards, and the weights' two uses when embedding and head are tied.

A residual connection y = x + f(x) needs no code of its own: ∂x = ∂y + (what f's backward gives), one addition in place.
Not here: dropout (../arrays has it), the head's loss (loss.py). Next: norms.py.
"""

from __future__ import annotations

import torch
from torch import Tensor


def wide(x: Tensor) -> torch.dtype:
    """The type that sums of x's numbers are taken in: float32 at least, since 8 or 11 bits lose what is added last."""
    return torch.promote_types(x.dtype, torch.float32)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x Wᵀ + b, one kernel. x (N, in), weight (out, in), bias (out,) -> (N, out)."""
    return x @ weight.T if bias is None else torch.addmm(bias, x, weight.T)


def linear_backward(dy: Tensor, x: Tensor, weight: Tensor, d_weight: Tensor) -> Tensor:
    """∂x = ∂y W, returned;  ∂W = ∂yᵀ x, written into d_weight: y's entry (n, o) is Σᵢ x(n, i) W(o, i) + b(o)."""
    torch.mm(dy.T, x, out=d_weight)
    return dy @ weight


def bias_backward(dy: Tensor, d_bias: Tensor) -> None:
    """∂b = Σₙ ∂yₙ, written into d_bias: b is added to every row."""
    torch.sum(dy, 0, out=d_bias)  # torch adds 16-bit numbers up in float32


def embedding(ids: Tensor, table: Tensor) -> Tensor:
    """yₙ = E[idₙ]: a linear layer of one-hot rows. ids (N,), table (V, D) -> (N, D)."""
    return table.index_select(0, ids)


def embedding_backward(dy: Tensor, ids: Tensor, d_table: Tensor) -> None:
    """∂E[i] += Σ of ∂yₙ over the n with idₙ = i, in place: a tied head's part stands there already.

    Press and Wolf 2017: with tied weights E is used twice, and its gradient is the sum of both uses. On a GPU rows of
    one id are added in whatever order they finish, so the last bits differ from run to run.
    """
    if d_table.dtype == wide(d_table):
        d_table.index_add_(0, ids, dy)
    else:  # a frequent id has thousands of rows, and a 16-bit sum would stop growing
        total = d_table.to(wide(d_table)).index_add_(0, ids, dy.to(wide(dy)))
        d_table.copy_(total)
