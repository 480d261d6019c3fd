"""Tensors that are spread over processes: the part that is here, all of it, and the way from one to the other.

torch's DTensor says over which processes a tensor is spread, and along which of its axes. Update rules that take each
number by itself work on the part that is here; what needs the whole (Muon's matrices, a checkpoint's model) asks for
it, and then every process has to ask, in the same order. A tensor that is not spread is its own part and its own whole.
Not here: who spreads (parallel/).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def local(tensor: Tensor) -> Tensor:
    """The part of `tensor` that is here; it shares its memory."""
    with torch.no_grad():
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of `tensor`, on every process."""
    with torch.no_grad():
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread_as(part: Tensor, like: Tensor) -> Tensor:
    """What `part` is here the part of, when that is spread as `like` is."""
    if not isinstance(like, DTensor):
        return part
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def divided_as(tensor: Tensor, like: Tensor) -> Tensor:
    """Of the whole `tensor`, the part that is here when it is spread as `like` is. Nothing is sent."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def squares(tensors: Sequence[Tensor], processes: int) -> Tensor:
    """This process's share of Σ t² over all numbers of `tensors`: the shares of all `processes` add up to it.

    What several processes hold alike is shared out among them.
    """
    total = torch.zeros((), dtype=torch.float64, device=local(tensors[0]).device if tensors else None)
    for tensor in tensors:
        pieces = 1
        if isinstance(tensor, DTensor):
            for axis, placement in enumerate(tensor.placements):
                pieces *= 1 if placement.is_replicate() else tensor.device_mesh.size(axis)
        total += local(tensor).double().square().sum() * pieces / processes
    return total
