"""Weights as small whole numbers: how a matrix is rounded to 8 or 4 bits, and what it is again afterwards.

    int8   one scale for each output (row):             w ≈ s q,             q from -127 to 127
    int4   one scale for each 32 inputs of an output:   w ≈ s (q - 8),       q from 0 to 15
           or with minima, as GGUF's Q4_1 keeps it:     w ≈ s q + m

Scales and minima are float16, as in GGUF. Activations are not rounded here (reference.py), and nothing is laid out for
the kernels (packing.py). Next: reference.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tinylm.inference._errors import InferenceError

GROUP = 32  # inputs that share a scale in int4
_LARGEST = 4e5  # a seventh of it is still a float16
_SHRINKS = 24  # scales tried for a group of int4
_ROWS = 1 << 22  # numbers rounded at a time: the intermediate tensors stay some tens of MB


@dataclass(frozen=True)
class QuantizedWeight:
    """numbers (outputs, inputs): int8, for 4 bits from 0 to 15. scales, minima (outputs, groups): float16; groups is 1,
    or the inputs divided by 32, rounded up."""

    numbers: Tensor
    scales: Tensor
    minima: Tensor | None = None
    bits: int = 8

    @property
    def grouped(self) -> bool:
        """Whether each 32 inputs have a scale of their own."""
        return self.bits == 4 or self.scales.shape[1] > 1

    @property
    def zero(self) -> int:
        """What is taken from a number before it is scaled."""
        return 8 if self.bits == 4 and self.minima is None else 0

    def dequantize(self) -> Tensor:
        """(outputs, inputs) float32."""
        inputs = self.numbers.shape[1]
        scales, minima = (None if t is None else self._spread(t.float(), inputs) for t in (self.scales, self.minima))
        assert scales is not None
        weight = (self.numbers.float() - self.zero) * scales
        return weight if minima is None else weight + minima

    def _spread(self, per_group: Tensor, inputs: int) -> Tensor:
        return per_group.repeat_interleave(GROUP, dim=1)[:, :inputs] if self.grouped else per_group


def round_weight(weight: Tensor, bits: int) -> QuantizedWeight:
    """(outputs, inputs) rounded to `bits` bits, 8 or 4, to nearest with the scale as float16 keeps it.

    InferenceError where a weight is no number, or too large for a float16 scale.
    """
    if not (weight.abs() <= _LARGEST).all():  # NaN is not
        raise InferenceError(f"quantisation wanted weights of at most {_LARGEST}, got NaN or larger ones")
    step = max(1, _ROWS // weight.shape[1])
    parts = [(_round_rows if bits == 8 else _round_groups)(rows.float()) for rows in torch.split(weight, step)]
    numbers, scales = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return QuantizedWeight(numbers, scales, None, bits)


def _divide(weight: Tensor, scales: Tensor) -> Tensor:
    """weight / scales, 0 where the scale is 0."""
    return weight / torch.where(scales == 0, torch.ones_like(scales), scales)


def _round_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    scales = (rows.abs().amax(dim=1, keepdim=True) / 127).half()
    numbers = _divide(rows, scales.float()).round_().clamp_(-127, 127)
    return numbers.to(torch.int8), scales


def _round_groups(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The scale of a group is the one, of `_SHRINKS`, with the least squared error.

    The number farthest from 0 becomes -8, with a scale of its own sign (as in GGUF's Q4_0), or a little more than that:
    a smaller scale clips it and serves the 31 others better.
    """
    outputs, inputs = rows.shape
    groups = -(-inputs // GROUP)
    w = torch.nn.functional.pad(rows, (0, groups * GROUP - inputs)).view(outputs, groups, GROUP)
    farthest = w.gather(2, w.abs().argmax(dim=2, keepdim=True))
    least = torch.full_like(farthest, torch.inf)
    best = torch.zeros_like(farthest)
    for i in range(_SHRINKS):
        scales = (farthest / -(7.0 + i * 3.0 / _SHRINKS)).half().float()
        error = ((_divide(w, scales).round_().clamp_(-8, 7) * scales) - w).square_().sum(dim=2, keepdim=True)
        better = error < least
        best, least = torch.where(better, scales, best), torch.where(better, error, least)
    numbers = _divide(w, best).round_().clamp_(-8, 7) + 8
    return numbers.view(outputs, -1)[:, :inputs].to(torch.int8).contiguous(), best.squeeze(2).half()
