"""A quantised matrix times activations in PyTorch: the readable rung, to the last bit what the C++ rung gives.

For a token and a group of inputs, x ≈ t p with p = round(x / t) from -127 to 127 and t = max|x| / 127. Then

    y = Σ_groups  (Σ p (q - zero)) · (s t)  +  m · (t Σ p)  +  bias

whose inner sums are sums of whole numbers: exact, in any order. The outer ones are float32, group after group. Not
here: rounding weights (weights.py), the C++ (packing.py, linear.py). Next: linear.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tinylm.inference.quantization.weights import GROUP, QuantizedWeight

_EXACT = 1024  # products of two bytes whose sum float32 holds exactly: 1024 · 127 · 128 < 2^24


def round_activations(x: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """x (N, inputs) float32 -> p (N, groups, inputs of a group) float32, scales (N, groups), sums of p (N, groups)."""
    size = GROUP if groups > 1 else x.shape[1]
    x = F.pad(x, (0, groups * size - x.shape[1])).view(len(x), groups, size)
    most = x.abs().amax(dim=2, keepdim=True)
    factor = torch.full_like(most, 127.0).div_(most)  # 127.0 / most would be 127 times the reciprocal, rounded twice
    factor = torch.where(most > 0, factor, torch.zeros_like(most))
    p = (x * factor).round()
    return p, most.squeeze(2) / 127.0, p.sum(dim=2, dtype=torch.float64).float()


def linear(x: Tensor, weight: QuantizedWeight, bias: Tensor | None) -> Tensor:
    """x (N, inputs) float32 -> (N, outputs) float32."""
    groups = weight.scales.shape[1]
    p, t, sums = round_activations(x, groups)
    size = p.shape[2]
    numbers = F.pad(weight.numbers, (0, groups * size - weight.numbers.shape[1]), value=weight.zero)
    q = numbers.view(-1, groups, size).float() - weight.zero
    scales = weight.scales.float()
    total = torch.zeros(len(x), len(q))
    for group in range(groups):
        total = total + _dot(p[:, group], q[:, group]) * (scales[:, group] * t[:, group, None])
        if weight.minima is not None:
            total = total + weight.minima[:, group].float() * (t[:, group] * sums[:, group])[:, None]
    return total if bias is None else total + bias


def _dot(p: Tensor, q: Tensor) -> Tensor:
    """p (N, K), q (outputs, K), whole numbers -> (N, outputs): the exact sum, rounded to float32 once."""
    if p.shape[1] <= _EXACT:
        return p @ q.T
    parts = zip(torch.split(p, _EXACT, dim=1), torch.split(q, _EXACT, dim=1), strict=True)
    return torch.stack([(a @ b.T).double() for a, b in parts]).sum(0).float()
