"""Linear and norm with their parameters, and the transformer's block made of them.

The equations stand with the functions that are called here; what is added is which parameters they take, where their
gradients go, and what is kept between forward and backward: the table in __init__.py, which tests/model counts. Not
here: embeddings and head. Next: transformer.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tinylm.model.config import TransformerConfig
from tinylm.model.tensors.activations import gelu, gelu_backward, swiglu, swiglu_backward
from tinylm.model.tensors.attention import attention, attention_backward
from tinylm.model.tensors.layers import bias_backward, linear, linear_backward
from tinylm.model.tensors.norms import layer_norm, layer_norm_backward, rms_norm, rms_norm_backward, scaled
from tinylm.model.tensors.parameters import Parameters
from tinylm.model.tensors.positions import rope, rope_backward

Places = tuple[Tensor, tuple[Tensor, Tensor] | None]  # the causal bias, and RoPE's cosines and sines


class Linear:
    """One or more of the model's linear layers that take the same input, as one."""

    def __init__(self, weights: Parameters, gradients: Parameters, *names: str) -> None:
        matrices, biases = [f"{name}.weight" for name in names], [f"{name}.bias" for name in names]
        self.weight, self.d_weight = weights.joined(matrices), gradients.joined(matrices)
        has_bias = biases[0] in weights
        self.bias = weights.joined(biases) if has_bias else None
        self.d_bias = gradients.joined(biases) if has_bias else None

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

    def backward(self, dy: Tensor, x: Tensor) -> Tensor:
        if self.d_bias is not None:
            bias_backward(dy, self.d_bias)
        return linear_backward(dy, x, self.weight, self.d_weight)


class Norm:
    """LayerNorm or RMSNorm, as the config says."""

    def __init__(self, config: TransformerConfig, weights: Parameters, gradients: Parameters, name: str) -> None:
        self.eps = config.norm_eps
        self.weight, self.d_weight = weights[f"{name}.weight"], gradients[f"{name}.weight"]
        self.bias, self.d_bias = weights.get(f"{name}.bias"), gradients.get(f"{name}.bias")

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        if self.bias is None:
            return rms_norm(x, self.weight, self.eps)
        return layer_norm(x, self.weight, self.bias, self.eps)

    def again(self, saved: Any) -> Tensor:
        """What forward returned."""
        return scaled(saved[0], self.weight, self.bias)

    def backward(self, dy: Tensor, saved: Any) -> Tensor:
        if self.d_bias is None:
            return rms_norm_backward(dy, self.weight, saved, self.d_weight)
        return layer_norm_backward(dy, self.weight, saved, self.d_weight, self.d_bias)


class Attention:
    """Grouped attention with its four projections; RoPE and QK-norm where the config has them."""

    def __init__(self, config: TransformerConfig, weights: Parameters, gradients: Parameters, name: str) -> None:
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.qkv = Linear(weights, gradients, *(f"{name}.{part}" for part in "qkv"))
        self.output = Linear(weights, gradients, f"{name}.output")
        self.norms = [Norm(config, weights, gradients, f"{name}.{part}_norm") for part in "qk" if config.qk_norm]

    def forward(self, x: Tensor, batch: int, places: Places) -> tuple[Tensor, Any]:
        """x (N, D) -> (N, D)."""
        bias, turns = places
        every = self.qkv.forward(x).view(batch, -1, self.heads + 2 * self.kv_heads, self.head_dim).transpose(1, 2)
        q, k, v = torch.split(every, [self.heads, self.kv_heads, self.kv_heads], dim=1)  # (B, heads, T, head_dim)
        norms = None
        if self.norms:
            (q, q_saved), (k, k_saved) = self.norms[0].forward(q), self.norms[1].forward(k)
            norms = (q_saved, k_saved)
        if turns is not None:
            q, k = rope(q, *turns), rope(k, *turns)
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()  # not views, which would keep `every` alive
        y, log_sum = attention(q, k, v, bias)
        return self.output.forward(self._together(y)), (q, k, v, y, log_sum, norms)

    def backward(self, dy: Tensor, x: Tensor, batch: int, places: Places, saved: Any) -> Tensor:
        q, k, v, y, log_sum, norms = saved
        bias, turns = places
        d = self.output.backward(dy, self._together(y)).view(batch, -1, self.heads, self.head_dim).transpose(1, 2)
        dq, dk, dv = attention_backward(d, q, k, v, bias, y, log_sum)
        if turns is not None:
            dq, dk = rope_backward(dq, *turns), rope_backward(dk, *turns)
        if norms is not None:
            dq, dk = self.norms[0].backward(dq, norms[0]), self.norms[1].backward(dk, norms[1])
        every = torch.cat((dq, dk, dv), dim=1).transpose(1, 2).reshape(len(x), -1)
        return self.qkv.backward(every, x)

    def _together(self, y: Tensor) -> Tensor:
        """(B, H, T, head_dim) -> (N, H · head_dim)."""
        return y.transpose(1, 2).reshape(-1, self.heads * self.head_dim)


class MLP:
    """GELU(x Wᵤ) W_d (GPT-2), or (SiLU(x W_g) ⊙ x Wᵤ) W_d (SwiGLU, Shazeer 2020)."""

    def __init__(self, config: TransformerConfig, weights: Parameters, gradients: Parameters, name: str) -> None:
        self.gated = config.activation == "swiglu"
        names = [f"{name}.gate", f"{name}.up"] if self.gated else [f"{name}.up"]
        self.inner = Linear(weights, gradients, *names)
        self.down = Linear(weights, gradients, f"{name}.down")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        wide = self.inner.forward(x)
        return self.down.forward(self._activated(wide)), wide

    def backward(self, dy: Tensor, x: Tensor, wide: Tensor) -> Tensor:
        d = self.down.backward(dy, self._activated(wide))
        if self.gated:
            d_wide = torch.empty_like(wide)
            swiglu_backward(d, *wide.chunk(2, dim=1), *d_wide.chunk(2, dim=1))
        else:
            d_wide = gelu_backward(d, wide)
        return self.inner.backward(d_wide, x)

    def _activated(self, wide: Tensor) -> Tensor:
        return swiglu(*wide.chunk(2, dim=1)) if self.gated else gelu(wide)


class Block:
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: TransformerConfig, weights: Parameters, gradients: Parameters, name: str) -> None:
        self.attention_norm = Norm(config, weights, gradients, f"{name}.attention_norm")
        self.attention = Attention(config, weights, gradients, f"{name}.attention")
        self.mlp_norm = Norm(config, weights, gradients, f"{name}.mlp_norm")
        self.mlp = MLP(config, weights, gradients, f"{name}.mlp")

    def forward(self, x: Tensor, batch: int, places: Places) -> tuple[Tensor, Any]:
        """(N, D) -> (N, D), written over x, and what the backward needs; no backward needs the residual stream."""
        normed, norm1 = self.attention_norm.forward(x)
        change, attended = self.attention.forward(normed, batch, places)
        x += change
        normed, norm2 = self.mlp_norm.forward(x)
        change, fed = self.mlp.forward(normed)
        x += change
        return x, (norm1, attended, norm2, fed)

    def backward(self, dy: Tensor, batch: int, places: Places, saved: Any) -> Tensor:
        """At each residual connection y = x + f(x) both ways bring a gradient: ∂x = ∂y + f's, written over ∂y."""
        norm1, attended, norm2, fed = saved
        d = self.mlp.backward(dy, self.mlp_norm.again(norm2), fed)
        dy += self.mlp_norm.backward(d, norm2)
        d = self.attention.backward(dy, self.attention_norm.again(norm1), batch, places, attended)
        dy += self.attention_norm.backward(d, norm1)
        return dy
