"""The update rules as the papers write them: a plain loop over the parameters, one rule a class.

SGD and Adam follow the gradient; AdamW takes weight decay out of the gradient; Lion keeps only signs; Muon looks at a
weight matrix as a whole: it replaces the momentum by the nearest orthogonal matrix, so that every direction of the
matrix moves equally far. The lowest rung: foreach.py does the same to all parameters at once, fused.py in one kernel.
Not here: which parameter gets which rule (parameter_groups.py); the rates (config.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from tinylm.training._errors import TrainingError
from tinylm.training.optimizers._base import Group, Optimizer, State


class _Loop(Optimizer):
    """One parameter after the other."""

    def update_group(
        self, parameters: list[Tensor], gradients: list[Tensor], states: list[State], group: Group
    ) -> None:
        for parameter, gradient, state in zip(parameters, gradients, states, strict=True):
            self.update(parameter, gradient, state, group)

    def update(self, parameter: Tensor, gradient: Tensor, state: State, group: Group) -> None:
        """One parameter's rule, in place."""
        raise NotImplementedError


class SGD(_Loop):
    """Stochastic gradient descent with momentum (Polyak 1964) and Nesterov's look-ahead (Sutskever et al. 2013).

    g ← g + λ θ;  b ← μ b + g (b ← g at first);  θ ← θ − lr b, or with nesterov θ ← θ − lr (g + μ b).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        super().__init__(params, defaults)

    def update(self, parameter: Tensor, gradient: Tensor, state: State, group: Group) -> None:
        momentum = group["momentum"]
        gradient = gradient.add(parameter, alpha=group["weight_decay"])
        if momentum:
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            buffer = state["momentum_buffer"].mul_(momentum).add_(gradient)
            gradient = gradient.add(buffer, alpha=momentum) if group["nesterov"] else buffer
        parameter.add_(gradient, alpha=-group["lr"])


class Adam(_Loop):
    """Adam (Kingma and Ba 2015, https://arxiv.org/abs/1412.6980, algorithm 1): each number by its own history.

    g ← g + λ θ;  m ← β₁ m + (1 − β₁) g;  v ← β₂ v + (1 − β₂) g²;  θ ← θ − lr m̂ / (√v̂ + ε),
    with m̂ = m / (1 − β₁ᵗ) and v̂ = v / (1 − β₂ᵗ), which undo the start from zero.
    """

    decoupled = False  # weight decay is part of the gradient

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def update(self, parameter: Tensor, gradient: Tensor, state: State, group: Group) -> None:
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        if self.decoupled:
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
        else:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
        mean = state["exp_avg"].lerp_(gradient, 1 - beta1)
        square = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        denominator = (square / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
        parameter.addcdiv_(mean, denominator, value=-group["lr"] / (1 - beta1 ** state["step"]))


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101, algorithm 2).

    θ ← (1 − lr λ) θ − lr m̂ / (√v̂ + ε), with m̂ and v̂ as in Adam, of the gradient alone.
    """

    decoupled = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)


class Lion(_Loop):
    """EvoLved Sign Momentum (Chen et al. 2023, https://arxiv.org/abs/2302.06675, algorithm 2).

    θ ← (1 − lr λ) θ − lr sign(β₁ m + (1 − β₁) g);  m ← β₂ m + (1 − β₂) g.  One buffer; lr about a tenth of Adam's.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    def update(self, parameter: Tensor, gradient: Tensor, state: State, group: Group) -> None:
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter)
        beta1, beta2 = group["betas"]
        direction = state["exp_avg"].lerp(gradient, 1 - beta1).sign_()
        state["exp_avg"].lerp_(gradient, 1 - beta2)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(direction, alpha=-group["lr"])


# The quintic's coefficients (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/): a steep slope at zero, so
# that small singular values grow fast; five steps bring all of them to about 0.7..1.2.
QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrix: Tensor, steps: int = 5, dtype: torch.dtype | None = None) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly: U Vᵀ where `matrix` (..., m, n) is U S Vᵀ.

    Newton-Schulz: X ← a X + (b A + c A²) X with A = X Xᵀ maps each singular value s to a s + b s³ + c s⁵.
    It works on the shorter side, which makes A small. dtype: of the products, the matrix's own if None; bfloat16 is
    enough (Jordan et al. 2024), since the singular values come out between 0.7 and 1.2 in any case.
    """
    a, b, c = QUINTIC
    tall = matrix.size(-2) > matrix.size(-1)
    x = matrix.mT if tall else matrix
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(dtype or matrix.dtype)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    orthogonal: Tensor = (x.mT if tall else x).to(matrix.dtype)
    return orthogonal


class Muon(_Loop):
    """MomentUm Orthogonalised by Newton-Schulz (Jordan et al. 2024). Parameters must be matrices, or stacks of them.

    m ← μ m + (1 − μ) g;  θ ← (1 − lr λ) θ − lr √max(1, rows / columns) · orthogonalize(Nesterov's (1 − μ) g + μ m).
    dtype: of orthogonalize's products.
    """

    matrices_only = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        steps: int = 5,
        dtype: torch.dtype | None = None,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "steps": steps, "dtype": dtype})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; the parameters must be matrices."""
        super().add_param_group(param_group)
        steps = self.param_groups[-1]["steps"]
        if not isinstance(steps, int) or steps < 1:
            raise TrainingError(f"wanted at least one Newton-Schulz step, got {steps}")

    def update_group(
        self, parameters: list[Tensor], gradients: list[Tensor], states: list[State], group: Group
    ) -> None:
        """As every rule here; TrainingError for a matrix that is divided over processes, of which only a part is
        here."""
        if any(isinstance(parameter, DTensor) for parameter in group["params"]):
            raise TrainingError(
                "wanted whole matrices for this rung of Muon, got one that is divided over processes: "
                "tinylm.training.Muon gathers it"
            )
        super().update_group(parameters, gradients, states, group)

    def update(self, parameter: Tensor, gradient: Tensor, state: State, group: Group) -> None:
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        direction = gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
        direction = orthogonalize(direction, group["steps"], group["dtype"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(direction, alpha=-group["lr"] * tall_scale(parameter))


def tall_scale(matrix: Tensor) -> float:
    """√max(1, rows / columns): an orthogonal matrix with more rows than columns changes each output less."""
    rows, columns = matrix.shape[-2:]
    return float(max(1.0, rows / columns) ** 0.5)
