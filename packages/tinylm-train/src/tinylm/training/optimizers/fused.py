"""The same rules with fewer passes over memory: what the trainer uses.

A foreach line reads and writes every number; Adam has eight such lines. torch's fused kernels read a parameter, its
gradient and its moments once and write them once (CPU, CUDA, MPS). Muon's time is its matrix products: baddbmm adds and
scales inside the product, five passes fewer an iteration. Lion has no kernel in torch: its foreach form stays.
The numbers are the loop's up to the rounding of an operation. Equations: loop.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from tinylm.training.optimizers import foreach, loop
from tinylm.training.optimizers._base import Group, State
from tinylm.training.optimizers.foreach import Lion as Lion  # the top rung of Lion is the one below


def _kernels_take(parameters: list[Tensor]) -> bool:
    return all(p.device.type in ("cpu", "cuda", "mps") and p.is_floating_point() for p in parameters)


class SGD(foreach.SGD):
    def update_group(
        self, parameters: list[Tensor], gradients: list[Tensor], states: list[State], group: Group
    ) -> None:
        if not _kernels_take(parameters):
            super().update_group(parameters, gradients, states, group)
            return
        buffers: list[Tensor | None] = [state.get("momentum_buffer") for state in states]
        fresh = [place for place, buffer in enumerate(buffers) if buffer is None]
        if group["momentum"]:
            for place in fresh:
                buffers[place] = states[place]["momentum_buffer"] = torch.zeros_like(parameters[place])
        sgd(
            parameters,
            gradients,
            buffers,
            foreach=False,
            fused=True,
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=0.0,
            nesterov=group["nesterov"],
            maximize=False,
        )


class Adam(foreach.Adam):
    def update_group(
        self, parameters: list[Tensor], gradients: list[Tensor], states: list[State], group: Group
    ) -> None:
        if not _kernels_take(parameters):
            super().update_group(parameters, gradients, states, group)
            return
        for state, parameter in zip(states, parameters, strict=True):
            if not state:
                state |= {"step": 0, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
        for members in foreach.of_one_device(parameters).values():
            self._kernel(
                [parameters[i] for i in members], [gradients[i] for i in members], [states[i] for i in members], group
            )

    def _kernel(self, parameters: list[Tensor], gradients: list[Tensor], states: list[State], group: Group) -> None:
        beta1, beta2 = group["betas"]
        done = torch.tensor([float(s["step"]) for s in states], device=parameters[0].device)  # the kernel adds one
        options: dict[str, Any] = {
            "foreach": False,
            "fused": True,
            "amsgrad": False,
            "beta1": beta1,
            "beta2": beta2,
            "lr": group["lr"],
            "weight_decay": group["weight_decay"],
            "eps": group["eps"],
            "maximize": False,
        }
        rule = adamw if self.decoupled else adam
        means, squares = [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]
        rule(parameters, gradients, means, squares, [], list(done.unbind()), **options)
        foreach.count_steps(states)


class AdamW(Adam, loop.AdamW):
    pass


class Muon(foreach.Muon):
    def orthogonalize(self, stack: Tensor, steps: int) -> Tensor:
        """As loop.orthogonalize: b A + c A² and a X + (…) X are one product each."""
        a, b, c = loop.QUINTIC
        flat = stack.flatten(0, -3)
        tall = flat.size(-2) > flat.size(-1)
        x = flat.mT if tall else flat
        x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
        for _ in range(steps):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return (x.mT if tall else x).reshape(stack.shape)
