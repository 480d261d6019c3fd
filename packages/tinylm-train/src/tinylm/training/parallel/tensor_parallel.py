"""A block's products divided over processes (Shoeybi et al. 2019, "Megatron-LM", https://arxiv.org/abs/1909.08053).

x W_q, W_k, W_v, W_gate and W_up by columns of the result, so that each process has some of the heads and some of the
MLP's width to itself; what follows, by rows, and the partial results are added up: one sum after attention and one
after the MLP, one each in the backward pass. Norms, embeddings and head are whole everywhere. Not here: batches
(divided.py).
"""

from __future__ import annotations

import functools

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from tinylm.model import Transformer, TransformerConfig
from tinylm.model.transformer import Block
from tinylm.training._errors import TrainingError

_BY_COLUMNS = ("attention.q", "attention.k", "attention.v", "mlp.gate", "mlp.up")
_BY_ROWS = ("attention.output", "mlp.down")


def check(shape: TransformerConfig, ways: int, data_ranks: int) -> None:
    """Raises TrainingError for a model that cannot be divided so many ways."""
    wanted = {"heads": shape.heads, "kv_heads": shape.kv_heads, "mlp_width": shape.mlp_width}
    uneven = [f"{name} {value}" for name, value in wanted.items() if value % ways]
    if uneven or shape.experts:
        raise TrainingError(
            f"wanted heads, kv_heads and mlp_width that --tensor-parallel {ways} divides, and no experts, got "
            f"{', '.join(uneven) or f'{shape.experts} experts'}"
        )
    if shape.width % data_ranks:  # FSDP divides columns where rows are divided already, and only evenly
        raise TrainingError(
            f"wanted a width that {data_ranks} processes can divide beside --tensor-parallel, got {shape.width}"
        )


def divide(model: Transformer, mesh: DeviceMesh, data_ranks: int) -> set[nn.Parameter]:
    """Divide the blocks of `model` in place. Returns the parameters that must stay whole: the gains of QK-norm."""
    group, alike = mesh.get_group(), set()
    for block in model.blocks:
        assert isinstance(block, Block)
        plan: dict[str, ParallelStyle] = dict.fromkeys(_BY_COLUMNS, ColwiseParallel())
        plan |= dict.fromkeys(_BY_ROWS, RowwiseParallel())
        present = {name: style for name, style in plan.items() if _has(block, name)}
        parallelize_module(block, mesh, present)
        for norm in (block.attention.q_norm, block.attention.k_norm):
            for gain in () if norm is None else norm.parameters():
                # All heads share it, and each process sees some of them: their gradients are added up here, and so
                # FSDP must leave it alone.
                add_up = functools.partial(_sum_of_heads, group=group, data_ranks=data_ranks)
                gain.register_hook(add_up)  # type: ignore[no-untyped-call]  # torch leaves it untyped
                alike.add(gain)
    return alike


def _has(block: nn.Module, name: str) -> bool:
    try:
        return isinstance(block.get_submodule(name), nn.Linear)
    except AttributeError:  # an MLP without a gate
        return False


def _sum_of_heads(gradient: Tensor, group: dist.ProcessGroup, data_ranks: int) -> Tensor:
    """Over all heads, and the mean over those that share a batch, as FSDP does for the others."""
    gradient = gradient.clone()
    dist.all_reduce(gradient, group=group if data_ranks == 1 else None)
    return gradient / data_ranks
