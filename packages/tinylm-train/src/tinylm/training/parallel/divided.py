"""Each process keeps a part of every parameter, of its gradient and of its optimiser's state.

FSDP2 (ZeRO's third stage: Rajbhandari et al. 2020, https://arxiv.org/abs/1910.02054; Zhao et al. 2023): a block's
parameters are gathered when it computes and let go behind it; gradients are added up where their part is kept. With
tensor parallelism (tensor_parallel.py) the processes form a table: its rows share products, its columns share batches.
Next: replicated.py, which does without as long as a copy fits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard

from tinylm.model import Transformer, TransformerConfig
from tinylm.training.parallel import tensor_parallel
from tinylm.training.parallel.processes import Processes
from tinylm.training.spread import squares
from tinylm.training.strategy import LossFunction

if TYPE_CHECKING:
    from tinylm.training.config import TrainConfig


class Divided(Processes):
    """Fully sharded data parallel, tensor parallel, or both."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        self.tensor_ranks = config.tensor_parallel
        self.data_ranks = self.world_size // self.tensor_ranks
        self.mesh = init_device_mesh(
            self.kind.type, (self.data_ranks, self.tensor_ranks), mesh_dim_names=("data", "tensor")
        )
        self.data_rank = self.mesh.get_local_rank("data")
        self.data = self.mesh.get_group("data")
        self.sharders = dist.new_group(backend="gloo")  # of its own: checkpoints are written beside the training
        self._model: FSDPModule | None = None

    @property
    def description(self) -> str:
        """How many, and what they have."""
        ways = []
        if self.tensor_ranks > 1:
            ways.append(f"{self.tensor_ranks} that share each product (tensor parallel)")
        if self.data_ranks > 1:
            ways.append(f"{self.data_ranks} that share each batch and each parameter (FSDP)")
        return f"{self.world_size} processes: " + " times ".join(ways)

    def check(self, shape: TransformerConfig) -> None:
        """Heads and the MLP's width are divided whole."""
        if self.tensor_ranks > 1:
            tensor_parallel.check(shape, self.tensor_ranks, self.data_ranks)

    def divide(self, model: Transformer) -> None:
        """Products first, then what is left of each parameter, block by block."""
        alike: set[nn.Parameter] = set()
        if self.tensor_ranks > 1:
            alike = tensor_parallel.divide(model, self.mesh["tensor"], self.data_ranks)
        if self.data_ranks == 1:
            return
        for block in [*model.blocks, model]:
            # the model's own tables too are let go after use: what reads parameters then finds parts, always
            fully_shard(
                block,
                mesh=self.mesh["data"],
                reshard_after_forward=True,
                shard_placement_fn=_other_axis,
                ignored_params=alike,
            )
        register_fsdp_forward_method(model, "loss")
        assert isinstance(model, FSDPModule)
        self._model = model

    def wrap(self, model: Transformer) -> LossFunction:
        """The model's own, which now gathers and lets go."""
        return model.loss

    def accumulating(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Nothing is exchanged before the last part: until then gradients are kept whole."""
        if self._model is not None:
            self._model.set_requires_gradient_sync(last)
        return contextlib.nullcontext()

    def gradient_norm(self, parameters: Sequence[Tensor]) -> Tensor:
        """Each adds the squares of what is here."""
        total = squares([p.grad for p in parameters if p.grad is not None], self.world_size)
        dist.all_reduce(total)
        return torch.sqrt(total).float()


def _other_axis(parameter: nn.Parameter) -> Shard | None:
    """FSDP divides rows; where tensor parallelism has done so already, columns."""
    taken = isinstance(parameter, DTensor) and any(placement.is_shard(0) for placement in parameter.placements)
    return Shard(1) if taken and parameter.ndim > 1 else None
