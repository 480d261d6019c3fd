"""All parameters of a model, or all their gradients, in one vector; each name a view of its part.

So an optimiser's step is a few operations on one vector, and matrices that take the same input (q, k, v; gate, up) lie
one below the other and are used as one. Not here: files (checkpoint.py). Next: blocks.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from tinylm.model.arrays.layers import Array


class Parameters(dict[str, Array]):
    """name -> array, all of them views of `flat`. Begins as zeros."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype) -> None:
        names = sorted(shapes, key=lambda name: name.endswith("bias"))  # the order stays, but weights before biases
        sizes = [math.prod(shapes[name]) for name in names]
        ends = np.cumsum(sizes).tolist()
        self.flat: Array = np.zeros(ends[-1], dtype)
        self._parts = {name: slice(end - size, end) for name, end, size in zip(names, ends, sizes, strict=True)}
        super().__init__({name: self.flat[self._parts[name]].reshape(shapes[name]) for name in names})

    def joined(self, names: Sequence[str]) -> Array:
        """Parameters that stand one after the other, as one matrix or vector."""
        whole = self.flat[self._parts[names[0]].start : self._parts[names[-1]].stop]
        return whole.reshape(-1, *self[names[0]].shape[1:])
