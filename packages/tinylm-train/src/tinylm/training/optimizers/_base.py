"""What every optimiser here shares: the checks, the closure, and which parameters have a gradient.

A rung says what happens to one group of parameters (`update_group`). Not here: any update rule (loop.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor

from tinylm.training._errors import TrainingError
from tinylm.training.spread import local

State = dict[str, Any]
Group = dict[str, Any]


class Optimizer(torch.optim.Optimizer):
    """torch.optim's interface. Raises TrainingError for a number out of range, here and for each group."""

    matrices_only = False

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch, and every number of the group is checked."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for name in ("lr", "weight_decay", "eps"):
            if name in group and not 0 <= group[name] < float("inf"):
                raise TrainingError(f"wanted {name} >= 0 and finite, got {group[name]}")
        for beta in group.get("betas", (group.get("momentum", 0),)):
            if not 0 <= beta < 1:
                raise TrainingError(f"wanted momentum and betas in [0, 1), got {beta}")
        for parameter in group["params"]:
            if self.matrices_only and parameter.ndim < 2:
                raise TrainingError(
                    f"wanted matrices for {type(self).__name__}, got a parameter of shape {tuple(parameter.shape)}"
                )

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient. As in torch, a closure computes the loss again and its value is
        returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
                if parameters:
                    # of a parameter that is spread over processes, the part that is here; its state is of that part
                    parts, gradients = [local(p) for p in parameters], [local(p.grad) for p in parameters]
                    self.update_group(parts, gradients, [self.state[p] for p in parameters], group)
        return loss

    def update_group(
        self, parameters: list[Tensor], gradients: list[Tensor], states: list[State], group: Group
    ) -> None:
        """The rule, in place, for parameters that all have a gradient; `states` are theirs, empty at first."""
        raise NotImplementedError
