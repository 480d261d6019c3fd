"""The same rules with fewer passes over memory: what the trainer uses.

A foreach line reads and writes every number; Adam has eight such lines. torch's fused kernels read a parameter, its
gradient and its moments once and write them once (CPU, CUDA, MPS). A gradient in 16 bits, which they do not take, is
widened a block at a time, in the cache. Muon's time is its matrix products: baddbmm adds and
scales inside the product, five passes fewer an iteration. Lion has no kernel in torch: its lines go over blocks that
stay in the cache from one line to the next, so that memory is still read and written once.
The numbers are the loop's up to the rounding of an operation. Equations: loop.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from tinylm.training.optimizers import foreach, loop
from tinylm.training.optimizers._base import Group, State

_BLOCK = 65536  # numbers for each thread: four blocks of them are 1 MB, and a call costs less than its work


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
    """`gradient_factor`: of the next update's gradients, which the kernel multiplies as it reads them (clipping without
    a pass of its own); 1 again after it."""

    gradient_factor = 1.0

    def step(self, closure: Any = None) -> Any:
        """As loop.Adam's."""
        try:
            return super().step(closure)
        finally:
            self.gradient_factor = 1.0

    def update_group(
        self, parameters: list[Tensor], gradients: list[Tensor], states: list[State], group: Group
    ) -> None:
        if not _kernels_take(parameters):
            gradients = [gradient.to(p.dtype) for gradient, p in zip(gradients, parameters, strict=True)]
            if self.gradient_factor != 1:
                gradients = list(torch._foreach_mul(gradients, self.gradient_factor))
            super().update_group(parameters, gradients, states, group)
            return
        for state, parameter in zip(states, parameters, strict=True):
            if not state:
                state |= {"step": 0, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
        narrow = [g.dtype != p.dtype and p.is_contiguous() for g, p in zip(gradients, parameters, strict=True)]
        for i in (place for place, is_narrow in enumerate(narrow) if is_narrow):
            self._by_blocks(parameters[i], gradients[i].contiguous(), states[i], group)
        wide = [place for place, is_narrow in enumerate(narrow) if not is_narrow]
        for places in foreach.of_one_device([parameters[i] for i in wide]).values():
            members = [wide[place] for place in places]
            self._kernel(
                [parameters[i] for i in members],
                [gradients[i].to(parameters[i].dtype) for i in members],
                [states[i]["exp_avg"] for i in members],
                [states[i]["exp_avg_sq"] for i in members],
                [states[i]["step"] for i in members],
                group,
            )
        foreach.count_steps(states)

    def _by_blocks(self, parameter: Tensor, gradient: Tensor, state: State, group: Group) -> None:
        block = _BLOCK * torch.get_num_threads()
        scratch = torch.empty(min(block, parameter.numel()), dtype=parameter.dtype, device=parameter.device)
        flat = (tensor.view(-1).split(block) for tensor in (parameter, gradient, state["exp_avg"], state["exp_avg_sq"]))
        for weights, slope, mean, square in zip(*flat, strict=True):
            widened = scratch[: len(slope)].copy_(slope)
            self._kernel([weights], [widened], [mean], [square], [state["step"]], group)

    def _kernel(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        means: list[Tensor],
        squares: list[Tensor],
        steps: list[int],
        group: Group,
    ) -> None:
        """One call of torch's kernel; `steps`: updates before this one. It multiplies `gradients` in place where they
        are to be clipped."""
        kernel = torch._fused_adamw_ if self.decoupled else torch._fused_adam_
        device, factor = parameters[0].device, self.gradient_factor
        kernel(
            parameters,
            gradients,
            means,
            squares,
            [],
            [torch.tensor(float(step + 1), device=device) for step in steps],
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
            grad_scale=None if factor == 1 else torch.tensor(1 / factor, device=device),  # the kernel divides
        )


class AdamW(Adam, loop.AdamW):
    """loop.AdamW's rule; torch's kernel goes through memory once for all parameters of a device."""


class Lion(foreach.Lion):
    def update_group(
        self, parameters: list[Tensor], gradients: list[Tensor], states: list[State], group: Group
    ) -> None:
        """Parameters of more than a block by blocks, on a CPU; elsewhere, and the small ones, all at once."""
        block = _BLOCK * torch.get_num_threads()
        places: tuple[list[int], list[int]] = ([], [])  # small, large
        for place, p in enumerate(parameters):
            places[p.device.type == "cpu" and p.numel() > block and p.is_contiguous()].append(place)
        small, large = places
        for i in large:
            self._by_blocks(parameters[i], gradients[i].contiguous(), states[i], group, block)
        if small:
            super().update_group(
                [parameters[i] for i in small], [gradients[i] for i in small], [states[i] for i in small], group
            )

    def _by_blocks(self, parameter: Tensor, gradient: Tensor, state: State, group: Group, block: int) -> None:
        moment = state.setdefault("exp_avg", torch.zeros_like(parameter))
        beta1, beta2 = group["betas"]
        scratch = torch.empty(block, dtype=parameter.dtype)
        pieces = (tensor.view(-1).split(block) for tensor in (parameter, gradient, moment))
        for weights, slope, mean in zip(*pieces, strict=True):
            direction = torch.lerp(mean, slope, 1 - beta1, out=scratch[: len(mean)]).sign_()
            mean.lerp_(slope, 1 - beta2)
            weights.mul_(1 - group["lr"] * group["weight_decay"])
            weights.add_(direction, alpha=-group["lr"])


class Muon(foreach.Muon):
    """loop.Muon's rule; matrices of one shape are orthogonalised together, a product and a sum in one call."""

    def orthogonalize(self, stack: Tensor, steps: int, dtype: torch.dtype | None) -> Tensor:
        """As loop.orthogonalize: b A + c A² and a X + (…) X are one product each."""
        a, b, c = loop.QUINTIC
        flat = stack.flatten(0, -3)
        tall = flat.size(-2) > flat.size(-1)
        x = flat.mT if tall else flat
        x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(dtype or stack.dtype)
        for _ in range(steps):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return (x.mT if tall else x).reshape(stack.shape).to(stack.dtype)
