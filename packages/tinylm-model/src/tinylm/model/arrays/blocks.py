"""Linear and norm with their parameters, and the transformer's block made of them.

The equations stand with the functions that are called here; what is added is which parameters they take, where their
gradients go, and what is kept between forward and backward. Not here: embeddings and head. Next: transformer.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinylm.model.arrays.activations import gelu, gelu_backward, swiglu, swiglu_backward
from tinylm.model.arrays.attention import attention, attention_backward
from tinylm.model.arrays.layers import Array, bias_backward, dropout, dropout_backward, linear, linear_backward
from tinylm.model.arrays.norms import layer_norm, layer_norm_backward, rms_norm, rms_norm_backward
from tinylm.model.arrays.parameters import Parameters
from tinylm.model.arrays.positions import rope, rope_backward
from tinylm.model.config import TransformerConfig

Dropout = tuple[float, np.random.Generator] | None
Rotation = tuple[Array, Array] | None


class Linear:
    """One or more of the model's linear layers that take the same input, as one."""

    def __init__(self, weights: Parameters, gradients: Parameters, *names: str) -> None:
        matrices, biases = [f"{name}.weight" for name in names], [f"{name}.bias" for name in names]
        self.weight, self.d_weight = weights.joined(matrices), gradients.joined(matrices)
        has_bias = biases[0] in weights
        self.bias = weights.joined(biases) if has_bias else None
        self.d_bias = gradients.joined(biases) if has_bias else None

    def forward(self, x: Array) -> Array:
        return linear(x, self.weight, self.bias)

    def backward(self, dy: Array, x: Array) -> Array:
        dx, self.d_weight[...] = linear_backward(dy, x, self.weight)
        if self.d_bias is not None:
            self.d_bias[...] = bias_backward(dy)
        return dx


class Norm:
    """LayerNorm or RMSNorm, as the config says."""

    def __init__(self, config: TransformerConfig, weights: Parameters, gradients: Parameters, name: str) -> None:
        self.eps = config.norm_eps
        self.weight, self.d_weight = weights[f"{name}.weight"], gradients[f"{name}.weight"]
        self.bias, self.d_bias = weights.get(f"{name}.bias"), gradients.get(f"{name}.bias")

    def forward(self, x: Array) -> tuple[Array, Any]:
        if self.bias is None:
            return rms_norm(x, self.weight, self.eps)
        return layer_norm(x, self.weight, self.bias, self.eps)

    def backward(self, dy: Array, saved: Any) -> Array:
        if self.d_bias is None:
            dx, self.d_weight[...] = rms_norm_backward(dy, self.weight, saved)
        else:
            dx, self.d_weight[...], self.d_bias[...] = layer_norm_backward(dy, self.weight, saved)
        return dx


class Attention:
    """Grouped attention with its four projections; RoPE and QK-norm where the config has them."""

    def __init__(self, config: TransformerConfig, weights: Parameters, gradients: Parameters, name: str) -> None:
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.qkv = Linear(weights, gradients, *(f"{name}.{part}" for part in "qkv"))
        self.output = Linear(weights, gradients, f"{name}.output")
        self.norms = [Norm(config, weights, gradients, f"{name}.{part}_norm") for part in "qk" if config.qk_norm]

    def forward(self, x: Array, batch: int, turns: Rotation, drop: Dropout) -> tuple[Array, Any]:
        """x (N, D) -> (N, D)."""
        heads, kv = self.heads, self.kv_heads
        every = self.qkv.forward(x).reshape(batch, -1, heads + 2 * kv, self.head_dim).swapaxes(1, 2)
        q, k, v = every[:, :heads], every[:, heads : heads + kv], every[:, heads + kv :]  # (B, heads, T, head_dim)
        norms = None
        if self.norms:
            (q, q_saved), (k, k_saved) = self.norms[0].forward(q), self.norms[1].forward(k)
            norms = (q_saved, k_saved)
        if turns is not None:
            q, k = rope(q, *turns), rope(k, *turns)
        y, pattern = attention(q, k, v, *(drop or ()))
        together = y.swapaxes(1, 2).reshape(len(x), -1)
        return self.output.forward(together), (x, q, k, v, pattern, norms, together)

    def backward(self, dy: Array, batch: int, turns: Rotation, saved: Any) -> Array:
        x, q, k, v, pattern, norms, together = saved
        d = self.output.backward(dy, together).reshape(batch, -1, self.heads, self.head_dim).swapaxes(1, 2)
        dq, dk, dv = attention_backward(d, q, k, v, pattern)
        if turns is not None:
            dq, dk = rope_backward(dq, *turns), rope_backward(dk, *turns)
        if norms is not None:
            dq, dk = self.norms[0].backward(dq, norms[0]), self.norms[1].backward(dk, norms[1])
        every = np.concatenate((dq, dk, dv), axis=1).swapaxes(1, 2).reshape(len(x), -1)
        return self.qkv.backward(every, x)


class MLP:
    """GELU(x Wᵤ) W_d (GPT-2), or (SiLU(x W_g) ⊙ x Wᵤ) W_d (SwiGLU, Shazeer 2020)."""

    def __init__(self, config: TransformerConfig, weights: Parameters, gradients: Parameters, name: str) -> None:
        self.gated, self.half = config.activation == "swiglu", config.mlp_width
        names = [f"{name}.gate", f"{name}.up"] if self.gated else [f"{name}.up"]
        self.inner = Linear(weights, gradients, *names)
        self.down = Linear(weights, gradients, f"{name}.down")

    def forward(self, x: Array) -> tuple[Array, Any]:
        wide = self.inner.forward(x)
        if self.gated:
            inner, s = swiglu(wide[:, : self.half], wide[:, self.half :]), None
        else:
            inner, s = gelu(wide)
        return self.down.forward(inner), (x, wide, s, inner)

    def backward(self, dy: Array, saved: Any) -> Array:
        x, wide, s, inner = saved
        d = self.down.backward(dy, inner)
        if self.gated:
            d = np.concatenate(swiglu_backward(d, wide[:, : self.half], wide[:, self.half :]), axis=1)
        else:
            d = gelu_backward(d, wide, s)
        return self.inner.backward(d, x)


class Block:
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: TransformerConfig, weights: Parameters, gradients: Parameters, name: str) -> None:
        self.attention_norm = Norm(config, weights, gradients, f"{name}.attention_norm")
        self.attention = Attention(config, weights, gradients, f"{name}.attention")
        self.mlp_norm = Norm(config, weights, gradients, f"{name}.mlp_norm")
        self.mlp = MLP(config, weights, gradients, f"{name}.mlp")

    def forward(self, x: Array, batch: int, turns: Rotation, drop: Dropout) -> tuple[Array, Any]:
        """(N, D) -> (N, D), and what the backward needs."""
        normed, norm1 = self.attention_norm.forward(x)
        change, attended = self.attention.forward(normed, batch, turns, drop)
        change, keep1 = (change, None) if drop is None else dropout(change, *drop)
        x = x + change
        normed, norm2 = self.mlp_norm.forward(x)
        change, fed = self.mlp.forward(normed)
        change, keep2 = (change, None) if drop is None else dropout(change, *drop)
        return x + change, (norm1, attended, keep1, norm2, fed, keep2)

    def backward(self, dy: Array, batch: int, turns: Rotation, saved: Any) -> Array:
        """At each residual connection y = x + f(x) both ways bring a gradient: ∂x = ∂y + f's."""
        norm1, attended, keep1, norm2, fed, keep2 = saved
        change = dy if keep2 is None else dropout_backward(dy, keep2)
        dy = dy + self.mlp_norm.backward(self.mlp.backward(change, fed), norm2)
        change = dy if keep1 is None else dropout_backward(dy, keep1)
        return dy + self.attention_norm.backward(self.attention.backward(change, batch, turns, attended), norm1)
