"""RoPE: positions as angles by which pairs of a head's numbers are turned (Su et al. 2021).

Not here: the numbers of a scaling (rope_scaling.py), who calls it (transformer.py), the
kernel that turns on CUDA (kernels/rope.py). Next: attention.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tinylm.model import kernels
from tinylm.model._dtypes import wide
from tinylm.model.config import TransformerConfig
from tinylm.model.rope_scaling import LinearScaling, Llama3Scaling, YarnScaling

Rotation = tuple[Tensor, Tensor]


def rotation(config: TransformerConfig, positions: Tensor, dtype: torch.dtype) -> Rotation:
    """RoPE's cosines and sines (Su et al. 2021, eq. 34) for positions (T,) or (B, T): (T or B, 1, T; head_dim / 2).

    Computed from the config in float32 (float64 for a float64 model), once per forward pass for all layers; a buffer
    would lose its precision when the model is cast to bfloat16.
    """
    angles = positions[..., None].to(wide(dtype)) * frequencies(config, wide(dtype), positions.device)
    if positions.ndim == 2:
        angles = angles[:, None]
    cos, sin = angles.cos(), angles.sin()
    if isinstance(config.rope_scaling, YarnScaling):
        cos, sin = (turn * config.rope_scaling.magnitude for turn in (cos, sin))
    return cos.to(dtype), sin.to(dtype)


def rotate(x: Tensor, cos_sin: Rotation) -> Tensor:
    """Turn the pairs (x[i], x[i + head_dim / 2]), Hugging Face's half-split layout. x (B, heads, T, head_dim)."""
    cos, sin = cos_sin
    if kernels.chosen("rope", x):
        from tinylm.model.kernels.rope import rope

        return rope(x, cos, sin)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def frequencies(config: TransformerConfig, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """(head_dim / 2,): radians per position, theta^(-2i / head_dim), stretched as config.rope_scaling says.

    The operations are those of transformers, in its order: at position 100,000 the last bit of a frequency is half
    a hundredth of a radian.
    """
    steps = torch.arange(0, config.head_dim, 2, dtype=dtype, device=device)
    powers = config.rope_theta ** (steps / config.head_dim)
    scaling = config.rope_scaling
    if isinstance(scaling, LinearScaling):
        return 1.0 / powers / scaling.factor
    if isinstance(scaling, Llama3Scaling):
        return _llama3(1.0 / powers, scaling)
    if isinstance(scaling, YarnScaling):
        return _yarn(powers, scaling, config)
    return 1.0 / powers


def _llama3(frequency: Tensor, scaling: Llama3Scaling) -> Tensor:
    low, high, old = scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_max_position_embeddings
    wavelength = 2 * math.pi / frequency
    slow = frequency / scaling.factor
    share = (old / wavelength - low) / (high - low)  # of the old frequency; old / wavelength = turns in the old context
    mixed = (1 - share) * frequency / scaling.factor + share * frequency
    out = torch.where(wavelength > old / low, slow, frequency)
    return torch.where((wavelength >= old / high) & (wavelength <= old / low), mixed, out)


def _yarn(powers: Tensor, scaling: YarnScaling, config: TransformerConfig) -> Tensor:
    """Peng et al. 2023, section 3.2."""
    old, size = scaling.original_max_position_embeddings, config.head_dim

    def pair(turns: float) -> float:
        """The pair (a fraction, in numbers of the head) that turns so often in the old context."""
        return size * math.log(old / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    first, last = pair(scaling.beta_fast), pair(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    if first == last:
        last += 0.001
    ramp = (torch.arange(size // 2, dtype=powers.dtype, device=powers.device) - first) / (last - first)
    keep = 1 - ramp.clamp(0, 1)
    return 1.0 / (scaling.factor * powers) * (1 - keep) + 1.0 / powers * keep
