"""Which parameter gets which rule, rate and weight decay.

Weight decay is for the matrices of the blocks, and of its own for the embeddings and the head, whose rows that are not
in the batch are forgotten a little at every step. Gains and biases have none: they have no scale to keep small.
Not here: the rules (loop.py), the rates (config.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from tinylm.model import Transformer
from tinylm.training.config import TrainConfig
from tinylm.training.optimizers._base import Optimizer
from tinylm.training.optimizers.fused import SGD, Adam, AdamW, Lion, Muon


def optimizers_for(model: Transformer, config: TrainConfig) -> dict[str, Optimizer]:
    """Muon for the matrices of the blocks and AdamW for the rest; with another optimizer, that one for everything.

    Each group keeps its peak rate as "peak_lr". The keys are the names under which a checkpoint keeps their state.
    """
    matrices: list[Tensor] = []
    tables: list[Tensor] = []
    gains: list[Tensor] = []
    for name, parameter in model.named_parameters():
        inside = name.startswith("blocks.")
        (gains if parameter.ndim < 2 else matrices if inside else tables).append(parameter)
    rate, embedding_rate = config.learning_rate or 0.0, config.embedding_learning_rate or 0.0
    inner: dict[str, Any] = {"params": matrices, "lr": rate, "weight_decay": config.weight_decay or 0.0}
    outer: list[dict[str, Any]] = [
        {"params": tables, "lr": embedding_rate, "weight_decay": config.embedding_weight_decay},
        {"params": gains, "lr": embedding_rate, "weight_decay": 0.0},
    ]
    betas = (0.9, 0.95)
    optimizers: dict[str, Optimizer]
    if config.optimizer == "muon":
        optimizers = {"adamw": AdamW(outer, betas=betas), "muon": Muon([inner])}
    elif config.optimizer == "adamw":
        optimizers = {"adamw": AdamW([*outer, inner], betas=betas)}
    elif config.optimizer == "adam":
        optimizers = {"adam": Adam([*outer, inner], betas=betas)}
    elif config.optimizer == "lion":
        optimizers = {"lion": Lion([*outer, inner])}
    else:
        optimizers = {"sgd": SGD([*outer, inner], momentum=0.9)}
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def compute_products_in(dtype: torch.dtype, optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Muon's products in bfloat16 where the model's are, else in the weights' own precision (float16 has too small a
    range for them)."""
    for optimizer in optimizers:
        for group in optimizer.param_groups if isinstance(optimizer, Muon) else ():
            group["dtype"] = torch.bfloat16 if dtype == torch.bfloat16 else None
