"""Quantised weights in the layout of the kernels and back; `src/kernels/packed.hpp` describes it.

16 outputs stand side by side, so that one vector instruction works on all of them. Next: linear.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tinylm.inference import kernels
from tinylm.inference.quantization.weights import GROUP, QuantizedWeight

_LANES, _ALIGN = 16, 64


def packed_bytes(weight: QuantizedWeight) -> int:
    """How many bytes `pack` fills."""
    outputs, inputs = weight.numbers.shape
    size: int = kernels._compiled().packed_bytes(
        outputs, inputs, weight.bits, weight.grouped, weight.minima is not None
    )
    return size


def allocate(sizes: Sequence[int]) -> list[Tensor]:
    """One piece of memory, in the system's large pages, cut into uint8 tensors of these sizes.

    In the order of use: a kernel asks for weights ahead of where it is, and so reaches into the next matrix.
    """
    memory = torch.from_numpy(kernels._compiled().allocate(sum(sizes)))
    return list(torch.split(memory, list(sizes)))


def pack(weight: QuantizedWeight, out: Tensor) -> None:
    """Fill `out`, uint8 zeros of `packed_bytes`."""
    scales, minima = (
        None if t is None else t.contiguous().view(torch.uint16).numpy() for t in (weight.scales, weight.minima)
    )
    kernels._compiled().pack(
        weight.numbers.contiguous().numpy(), scales, minima, weight.bits, weight.grouped, out.numpy()
    )


def unpack(data: Tensor, shape: tuple[int, int], bits: int, grouped: bool, minima: bool) -> QuantizedWeight:
    """The inverse of `pack`."""
    outputs, inputs = shape
    blocks, columns = -(-outputs // _LANES), -(-inputs // GROUP) * GROUP
    groups = columns // GROUP if grouped else 1
    rows = data.view(blocks, -1)
    size = -(-groups * _LANES * 2 // _ALIGN) * _ALIGN
    halves = [
        rows[:, at : at + groups * _LANES * 2].contiguous().view(torch.float16).view(blocks, groups, _LANES)
        for at in range(0, size * (1 + minima), size)
    ]
    per_group = [half.transpose(1, 2).reshape(-1, groups)[:outputs].contiguous() for half in halves]
    tiles = rows[:, size * (1 + minima) :].reshape(blocks, -1, _LANES, 4).transpose(1, 2)
    if bits == 8:
        numbers = tiles.reshape(-1, columns) ^ 0x80
    else:
        numbers = torch.stack((tiles & 15, tiles >> 4), dim=3).reshape(-1, columns)
    numbers = numbers[:outputs, :inputs].contiguous().view(torch.int8)
    return QuantizedWeight(numbers, per_group[0], per_group[1] if minima else None, bits)
