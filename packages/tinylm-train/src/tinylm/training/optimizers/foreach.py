"""The same rules, all parameters of a group at once: a call of a `torch._foreach_*` function for each line of loop.py.

What it saves is the calls: a model has some hundred parameters and each line was a call for each; on a GPU each was a
kernel besides. The numbers are those of the loop, operation by operation; only Muon's matrices of one shape are
multiplied as a stack, whose sums may be taken in another order. Equations: loop.py. Next: fused.py.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from tinylm.training.optimizers import loop
from tinylm.training.optimizers._base import Group, State
from tinylm.training.spread import divided_as, local, spread_as, whole

AT_ONCE = 1 << 22  # numbers of Muon's matrices in one stack: what is made of all of them would be twice the model


def _buffers(name: str, states: Iterable[State], parameters: Iterable[Tensor]) -> list[Tensor]:
    return [state.setdefault(name, torch.zeros_like(p)) for state, p in zip(states, parameters, strict=True)]


def count_steps(states: list[State]) -> list[int]:
    """The number of this update for each parameter, counted in its state."""
    for state in states:
        state["step"] = state.get("step", 0) + 1
    return [state["step"] for state in states]


class SGD(loop.SGD):
    def update_group(
        self, parameters: list[Tensor], gradients: list[Tensor], states: list[State], group: Group
    ) -> None:
        momentum = group["momentum"]
        directions = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
        if momentum:
            buffers = _buffers("momentum_buffer", states, parameters)
            torch._foreach_mul_(buffers, momentum)
            torch._foreach_add_(buffers, directions)
            ahead = group["nesterov"]
            directions = list(torch._foreach_add(directions, buffers, alpha=momentum)) if ahead else buffers
        torch._foreach_add_(parameters, directions, alpha=-group["lr"])


class Adam(loop.Adam):
    def update_group(
        self, parameters: list[Tensor], gradients: list[Tensor], states: list[State], group: Group
    ) -> None:
        means, squares = _buffers("exp_avg", states, parameters), _buffers("exp_avg_sq", states, parameters)
        steps = count_steps(states)
        beta1, beta2 = group["betas"]
        if self.decoupled:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        else:
            gradients = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - beta2)
        denominators = torch._foreach_div(squares, [1 - beta2**step for step in steps])
        torch._foreach_sqrt_(denominators)
        torch._foreach_add_(denominators, group["eps"])
        factors = [-group["lr"] / (1 - beta1**step) for step in steps]
        torch._foreach_addcdiv_(parameters, means, denominators, factors)


class AdamW(Adam, loop.AdamW):
    pass


class Lion(loop.Lion):
    def update_group(
        self, parameters: list[Tensor], gradients: list[Tensor], states: list[State], group: Group
    ) -> None:
        moments = _buffers("exp_avg", states, parameters)
        beta1, beta2 = group["betas"]
        directions = torch._foreach_lerp(moments, gradients, 1 - beta1)
        torch._foreach_sign_(directions)
        torch._foreach_lerp_(moments, gradients, 1 - beta2)
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, directions, alpha=-group["lr"])


class Muon(loop.Muon):
    def update_group(
        self, parameters: list[Tensor], gradients: list[Tensor], states: list[State], group: Group
    ) -> None:
        moments = _buffers("momentum_buffer", states, parameters)
        torch._foreach_lerp_(moments, gradients, 1 - group["momentum"])
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        # a matrix that is spread over processes is gathered, and of what comes out its part is taken
        spread = [parameter for parameter in group["params"] if parameter.grad is not None]
        for members in few_of_one_shape(spread):
            directions = [moments[i] for i in members]
            if group["nesterov"]:
                mine = [gradients[i] for i in members]
                directions = list(torch._foreach_lerp(mine, directions, group["momentum"]))
            wholes = [whole(spread_as(part, spread[i])) for part, i in zip(directions, members, strict=True)]
            rate = group["lr"] * loop.tall_scale(wholes[0])
            step = self.orthogonalize(torch.stack(wholes), group["steps"], group["dtype"]).mul_(-rate)
            moves = [local(divided_as(move, spread[i])) for move, i in zip(step.unbind(), members, strict=True)]
            torch._foreach_add_([parameters[i] for i in members], moves)

    def orthogonalize(self, stack: Tensor, steps: int, dtype: torch.dtype | None) -> Tensor:
        """(members, ..., rows, columns) -> the same shape, each matrix by itself."""
        return loop.orthogonalize(stack, steps, dtype)


def few_of_one_shape(tensors: list[Tensor]) -> list[list[int]]:
    """The places of the tensors that are stacked: those of one shape, AT_ONCE numbers or one tensor at a time."""
    groups: dict[object, list[int]] = {}
    for place, tensor in enumerate(tensors):
        groups.setdefault((tensor.shape, tensor.dtype, tensor.device), []).append(place)
    few: list[list[int]] = []
    for places in groups.values():
        several = max(1, AT_ONCE // max(1, tensors[places[0]].numel()))
        few += [places[start : start + several] for start in range(0, len(places), several)]
    return few


def of_one_device(tensors: list[Tensor]) -> dict[object, list[int]]:
    """The places of the tensors that one kernel can take together."""
    groups: dict[object, list[int]] = {}
    for place, tensor in enumerate(tensors):
        groups.setdefault((tensor.dtype, tensor.device), []).append(place)
    return groups
