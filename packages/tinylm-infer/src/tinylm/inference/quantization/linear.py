"""`QuantizedLinear`: takes the place of torch.nn.Linear, with weights of 8 or 4 bits.

The C++ rung where the kernels are installed, else the PyTorch rung; both give the same bits, and a token's result does
not depend on what else is in the batch. Not here: what is computed (reference.py), whole models (model.py). Next:
model.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tinylm.inference import kernels
from tinylm.inference.quantization import packing, reference
from tinylm.inference.quantization.weights import QuantizedWeight


class QuantizedLinear(nn.Module):
    """y = x Wᵀ + bias for x (..., inputs) of any float type, computed in float32. CPU only, without gradients.

    `memory`: where the packed weights go (uint8 of `packing.packed_bytes`), by default memory of its own.
    `instruction_set`: for tests; by default the one in use (kernels/).
    """

    def __init__(
        self,
        weight: QuantizedWeight,
        bias: Tensor | None = None,
        memory: Tensor | None = None,
        instruction_set: str | None = None,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.numbers.shape
        self.bits, self.grouped, self.minima = weight.bits, weight.grouped, weight.minima is not None
        self.bias = None if bias is None else bias.detach().float().contiguous()
        self.matrix: Any = None
        self._weight: QuantizedWeight | None = None
        self._packed: Tensor | None = None
        if not kernels.available():
            kernels._warn_once()
            self._weight = weight
            return
        self._packed = memory if memory is not None else packing.allocate([packing.packed_bytes(weight)])[0]
        packing.pack(weight, self._packed)
        self.matrix = kernels._compiled().Matrix(
            self._packed.numpy(),
            self.out_features,
            self.in_features,
            self.bits,
            self.grouped,
            self.minima,
            None if self.bias is None else self.bias.numpy(),
            instruction_set or kernels.instruction_set(),
        )

    def forward(self, x: Tensor) -> Tensor:
        rows = x.detach().reshape(-1, self.in_features).to(torch.float32).contiguous()
        if self._packed is None:
            y = reference.linear(rows, self.weight(), self.bias)
        else:
            y = torch.empty(len(rows), self.out_features)
            self.matrix.linear(rows.numpy(), y.numpy(), torch.get_num_threads())
        return y.view(*x.shape[:-1], self.out_features).to(x.dtype)

    @property
    def nbytes(self) -> int:
        """Of the matrix as it is kept, and the bias."""
        weight = self._weight
        parts = (
            [self._packed, self.bias] if weight is None else [weight.numbers, weight.scales, weight.minima, self.bias]
        )
        return sum(part.nbytes for part in parts if part is not None)

    def weight(self) -> QuantizedWeight:
        """The numbers and scales (unpacked anew at each call)."""
        if self._packed is None:
            assert self._weight is not None
            return self._weight
        shape = (self.out_features, self.in_features)
        return packing.unpack(self._packed, shape, self.bits, self.grouped, self.minima)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bits={self.bits}, bias={self.bias is not None}"
