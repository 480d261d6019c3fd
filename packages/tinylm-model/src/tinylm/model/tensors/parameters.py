"""All parameters of a model, or all their gradients, in one vector; each name a view of its part.

So an optimiser's step is a few kernels on one vector, and matrices that take the same input (q, k, v; gate, up) lie one
below the other and are used as one. Not here: files (transformer.py's load). Next: blocks.py.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class Parameters(dict[str, Tensor]):
    """name -> tensor, all of them views of `flat`. Begins as zeros."""

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, device: torch.device | str | None
    ) -> None:
        names = sorted(shapes, key=lambda name: name.endswith("bias"))  # the order stays, but weights before biases
        sizes = [math.prod(shapes[name]) for name in names]
        self.flat = torch.zeros(sum(sizes), dtype=dtype, device=device)
        starts = [0, *itertools.accumulate(sizes)]
        self._parts = dict(zip(names, itertools.pairwise(starts), strict=True))
        super().__init__({name: self.flat[slice(*self._parts[name])].view(shapes[name]) for name in names})

    def joined(self, names: Sequence[str]) -> Tensor:
        """Parameters that stand one after the other, as one matrix or vector."""
        whole = self.flat[self._parts[names[0]][0] : self._parts[names[-1]][1]]
        return whole.view(-1, *self[names[0]].shape[1:])
