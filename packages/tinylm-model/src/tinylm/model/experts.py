"""A mixture of experts in place of the MLP: a router picks a few of many SwiGLU MLPs for each token.

Shazeer et al. 2017; without capacities and without dropped tokens, as in Qwen3-MoE (Yang et al. 2025). Tokens are
sorted by expert, so that each expert multiplies one block of rows. Not here: the plain MLP (transformer.py). Next:
loss.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tinylm.model._dtypes import compute_dtype, wide
from tinylm.model.config import TransformerConfig
from tinylm.model.swiglu import gated

# the router's probabilities (N, experts), and the experts chosen (N, experts_per_token)
Routing = tuple[Tensor, Tensor]


class Experts(nn.Module):
    """y = Σ over the chosen e of p_e · (SiLU(x W_g,e) ⊙ x Wᵤ,e) W_d,e, with p = softmax(x W_r) (Shazeer et al. 2017,
    eq. 1, without its noise)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.per_token, self.normalise = config.experts_per_token, config.normalize_experts
        self.router = nn.Linear(config.width, config.experts, bias=False)
        self.gate = _Matrices(config.experts, config.mlp_width, config.width)
        self.up = _Matrices(config.experts, config.mlp_width, config.width)
        self.down = _Matrices(config.experts, config.width, config.mlp_width)

    def route(self, x: Tensor) -> Routing:
        """(B, T, D) -> where each of its N = B · T tokens goes."""
        rows = x.flatten(0, 1)
        probabilities = torch.softmax(self.router(rows), dim=-1, dtype=wide(x.dtype))
        return probabilities, probabilities.topk(self.per_token, dim=-1).indices

    def forward(self, x: Tensor, routing: Routing) -> Tensor:
        """(B, T, D) -> the same shape."""
        (probabilities, chosen), rows = routing, x.flatten(0, 1)
        weights = probabilities.gather(-1, chosen)
        if self.normalise:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        order = chosen.flatten().argsort(stable=True)  # places in the flat (N · k), expert by expert
        ends = _per_expert(chosen, probabilities.shape[1]).cumsum(0)
        mine = rows[order // self.per_token].to(compute_dtype(x))
        inner = gated(self.gate(mine, ends), self.up(mine, ends))
        out = self.down(inner, ends)[order.argsort()].unflatten(0, chosen.shape)
        mixed: Tensor = (out * weights[..., None].to(out.dtype)).sum(dim=1)
        return mixed.to(x.dtype).view(x.shape)


class _Matrices(nn.Module):
    """One matrix per expert, (experts, out, in)."""

    def __init__(self, experts: int, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, outputs, inputs))

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        y: Tensor = grouped_linear(x, self.weight.to(x.dtype), ends)
        return y


def balance_loss(routings: list[Routing]) -> Tensor:
    """experts · Σₑ fₑ · Pₑ, with fₑ the choices of e per token and Pₑ its mean probability (Fedus et al. 2021, eq. 4 to
    6; their top-1 fₑ sums to 1, ours to experts_per_token), the mean over the layers.

    experts_per_token is its value where all experts are chosen equally often. transformers pools f and P over the
    layers first, which lets one layer's imbalance hide another's; for one layer the two are the same.
    """
    losses = []
    for probabilities, chosen in routings:
        tokens, experts = probabilities.shape
        share = _per_expert(chosen, experts) / max(1, tokens)
        losses.append(experts * (share * probabilities.mean(dim=0)).sum())
    return torch.stack(losses).mean()


def _per_expert(chosen: Tensor, experts: int) -> Tensor:
    """(experts,): how often each was chosen. Not bincount, whose result torch.compile cannot know the size of."""
    return (chosen.flatten()[:, None] == torch.arange(experts, device=chosen.device)).sum(dim=0)


# An operation of its own, because how many rows each expert gets is known only at run time: torch.compile passes over
# it without a break in its graph.
@torch.library.custom_op("tinylm::grouped_linear", mutates_args=())
def grouped_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """y_n = W_e x_n for the rows n of expert e, which end before ends[e]. x (M, in), weight (experts, out, in), ends
    (experts,) -> (M, out)."""
    y = x.new_empty(x.shape[0], weight.shape[1])
    for expert, rows in _blocks(ends):
        torch.mm(x[rows], weight[expert].T, out=y[rows])
    return y


@torch.library.custom_op("tinylm::grouped_linear_backward", mutates_args=())
def _grouped_linear_backward(dy: Tensor, x: Tensor, weight: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """∂x_n = W_eᵀ ∂y_n,    ∂W_e = Σ over the rows n of e of ∂y_n x_nᵀ."""
    dx, dweight = torch.empty_like(x), torch.zeros_like(weight)
    for expert, rows in _blocks(ends):
        torch.mm(dy[rows], weight[expert], out=dx[rows])
        torch.mm(dy[rows].T, x[rows], out=dweight[expert])
    return dx, dweight


def _blocks(ends: Tensor) -> list[tuple[int, slice]]:
    """The experts that have any rows, and which."""
    stops: list[int] = ends.tolist()
    starts = [0, *stops[:-1]]
    return [(e, slice(a, b)) for e, (a, b) in enumerate(zip(starts, stops, strict=True)) if a < b]


@grouped_linear.register_fake
def _(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@_grouped_linear_backward.register_fake
def _(dy: Tensor, x: Tensor, weight: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    dx, dweight = _grouped_linear_backward(dy, *ctx.saved_tensors)
    return dx, dweight, None


grouped_linear.register_autograd(_backward, setup_context=_save)
