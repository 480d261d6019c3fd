"""AdamW and Muon by hand, with torch.optim's interface.

AdamW scales each number of the gradient by its own history. Muon looks at a weight matrix as a whole: it replaces the
momentum by the nearest orthogonal matrix, so that every direction of the matrix moves equally far. Muon is for the
weight matrices inside the blocks; embeddings, the head and the gains of norms take AdamW.
Not here: the fused forms; the rates themselves (config.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor

from tinylm.model import Transformer
from tinylm.training._errors import TrainingError
from tinylm.training.config import TrainConfig


class _Optimizer(torch.optim.Optimizer):
    """What the two share: checks, the closure, and a step that is a plain loop over the parameters."""

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
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self.update(parameter, parameter.grad, self.state[parameter], group)
        return loss

    def update(self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        """One parameter's rule, in place."""
        raise NotImplementedError


class AdamW(_Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101, algorithm 2).

    m ← β₁ m + (1 − β₁) g;  v ← β₂ v + (1 − β₂) g²;  θ ← θ − lr (m̂ / (√v̂ + ε) + λ θ),
    with m̂ = m / (1 − β₁ᵗ) and v̂ = v / (1 − β₂ᵗ), which undo the start from zero.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def update(self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        correction1, correction2 = 1 - beta1 ** state["step"], 1 - beta2 ** state["step"]
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        denominator = (square / correction2).sqrt_().add_(group["eps"])
        parameter.addcdiv_(mean, denominator, value=-group["lr"] / correction1)


# The quintic's coefficients (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/): a steep slope at zero, so
# that small singular values grow fast; five steps bring all of them to about 0.7..1.2.
_QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly: U Vᵀ where `matrix` (..., m, n) is U S Vᵀ.

    Newton-Schulz: X ← a X + (b A + c A²) X with A = X Xᵀ maps each singular value s to a s + b s³ + c s⁵.
    It works on the shorter side, which makes A small.
    """
    a, b, c = _QUINTIC
    tall = matrix.size(-2) > matrix.size(-1)
    x = matrix.mT if tall else matrix
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    orthogonal: Tensor = x.mT if tall else x
    return orthogonal


class Muon(_Optimizer):
    """MomentUm Orthogonalised by Newton-Schulz (Jordan et al. 2024). Parameters must be matrices, or stacks of them.

    m ← μ m + (1 − μ) g;  θ ← (1 − lr λ) θ − lr √max(1, rows / columns) · orthogonalize(Nesterov's (1 − μ) g + μ m).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        steps: int = 5,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay, "steps": steps}
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; the parameters must be matrices."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if not isinstance(group["steps"], int) or group["steps"] < 1:
            raise TrainingError(f"wanted at least one Newton-Schulz step, got {group['steps']}")
        for parameter in group["params"]:
            if parameter.ndim < 2:
                raise TrainingError(f"wanted matrices for Muon, got a parameter of shape {tuple(parameter.shape)}")

    def update(self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        direction = gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
        direction = orthogonalize(direction, group["steps"])
        rows, columns = parameter.shape[-2:]
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(direction, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)


def optimizers_for(model: Transformer, config: TrainConfig) -> dict[str, AdamW | Muon]:
    """Muon for the matrices of the blocks, AdamW for the rest; with optimizer "adamw", AdamW for everything.

    Weight decay is for matrices only: gains and biases have no scale to keep small. Each group keeps its peak rate.
    """
    matrices: list[Tensor] = []
    rest: list[Tensor] = []
    for name, parameter in model.named_parameters():
        (matrices if name.startswith("blocks.") and parameter.ndim > 1 else rest).append(parameter)
    rate, embedding_rate = config.learning_rate or 0.0, config.embedding_learning_rate or 0.0
    optimizers: dict[str, AdamW | Muon] = {"adamw": AdamW(rest, lr=embedding_rate, betas=(0.9, 0.95), weight_decay=0.0)}
    if config.optimizer == "muon":
        optimizers["muon"] = Muon(matrices, lr=rate, weight_decay=config.weight_decay)
    else:
        group = {"params": matrices, "lr": rate, "weight_decay": config.weight_decay}
        optimizers["adamw"].add_param_group(group)
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers
