"""A run's state copied into memory of its own, so that it can be written while training goes on; and put back.

Not here: the files (checkpoint.py, _state_files.py), when a copy is taken (trainer.py).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tinylm.model import Transformer
from tinylm.training.spread import local, spread_as, whole

WEIGHTS = "weights."  # prefix of the weights proper beside the optimisers' tensors
Optimizers = Mapping[str, torch.optim.Optimizer]


class Snapshot:
    """A run's state in memory of its own, kept from one checkpoint to the next so that it is allocated once.

    publishes: whether this process writes the model, and so has all of it."""

    def __init__(self, model: Transformer, publishes: bool = True) -> None:
        with torch.device("meta"):
            self.model = Transformer(model.config)  # what is published
        if publishes:
            self.model = self.model.to_empty(device="cpu")
        self.publishes = publishes
        self.tensors: dict[str, Tensor] = {}
        self.numbers: dict[str, float] = {}
        self.rng = ""

    def take(self, model: Transformer, optimizers: Optimizers, average: Mapping[str, Tensor] | None) -> None:
        """Copy everything; `average`: the averaged weights, by name, which are then what is published. All processes
        that have a part of the model together."""
        tensors, self.numbers = flatten(model, optimizers)
        weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
        if average is not None:
            tensors |= {f"{WEIGHTS}{name}": weight for name, weight in weights.items()}
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                all_of_it = whole((average or weights)[name])
                if self.publishes:
                    parameter.copy_(all_of_it)
        self.tensors = {name: self.tensors.get(name, torch.empty(0)) for name in tensors}
        for name, tensor in tensors.items():
            mine = self.tensors[name]
            if mine.shape != tensor.shape or mine.dtype != tensor.dtype:
                self.tensors[name] = tensor.to("cpu", copy=True)
            else:
                local(mine).copy_(local(tensor))
        self.rng = base64.b64encode(torch.get_rng_state().numpy().tobytes()).decode()


def put_back(
    model: Transformer, optimizers: Optimizers, tensors: Mapping[str, Tensor], numbers: Mapping[str, float], rng: str
) -> None:
    """The optimisers and the RNG as they were; tensors: this process's parts, by name."""
    device = local(next(model.parameters())).device
    torch.set_rng_state(torch.frombuffer(bytearray(base64.b64decode(rng)), dtype=torch.uint8))
    for name, optimizer in optimizers.items():
        optimizer.state.clear()
        for parameter_name, parameter in named(model, optimizer):
            prefix = f"{name}.{parameter_name}."
            entry: dict[str, Any] = {
                key.removeprefix(prefix): value.to(device) for key, value in tensors.items() if key.startswith(prefix)
            }
            entry |= {key.removeprefix(prefix): value for key, value in numbers.items() if key.startswith(prefix)}
            if entry:
                optimizer.state[parameter] = entry


def parameters_of(names: Mapping[str, Any], model: Transformer, optimizers: Optimizers) -> dict[str, Tensor]:
    """Which parameter each of the tensors' names is of."""
    found: dict[str, Tensor] = {f"{WEIGHTS}{name}": parameter for name, parameter in model.named_parameters()}
    for name, optimizer in optimizers.items():
        for parameter_name, parameter in named(model, optimizer):
            prefix = f"{name}.{parameter_name}."
            found |= {key: parameter for key in names if key.startswith(prefix)}
    return found


def named(model: Transformer, optimizer: torch.optim.Optimizer) -> list[tuple[str, torch.nn.Parameter]]:
    """The model's parameters that are this optimiser's."""
    mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return [(name, parameter) for name, parameter in model.named_parameters() if id(parameter) in mine]


def flatten(model: Transformer, optimizers: Optimizers) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Optimiser state as {"muon.blocks.0.mlp.up.weight.momentum_buffer": tensor} and the same for plain numbers."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, float] = {}
    for name, optimizer in optimizers.items():
        for parameter_name, parameter in named(model, optimizer):
            for key, value in optimizer.state[parameter].items():
                full_name = f"{name}.{parameter_name}.{key}"
                if isinstance(value, Tensor):
                    tensors[full_name] = spread_as(value, parameter)
                else:
                    numbers[full_name] = value
    return tensors, numbers
