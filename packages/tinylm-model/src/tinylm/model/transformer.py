"""The transformer in torch.nn: embeddings, blocks of attention and MLP, a final norm, and the head.

The rung between tensors by hand (below) and Triton kernels (above). Not here: the softmax(q kᵀ) v itself
(attention.py), the head's loss (loss.py), files (checkpoint.py), decoding (decoding.py). Next: attention.py.

Shapes: B batch, T time, D width, V vocabulary. What `taps` records, with the shape of each (taps.py adds the line that
computed it):

    embed                          (B, T, D)             token embedding, plus the position's where it is learned
    blocks.<i>.attention_norm      (B, T, D)
    blocks.<i>.attention.pattern   (B, heads, T, T)      not with a cache, which attends by itself
    blocks.<i>.attention.output    (B, T, D)             what attention adds to the residual stream
    blocks.<i>.mlp_norm            (B, T, D)
    blocks.<i>.mlp                 (B, T, D)             what the MLP adds to it
    blocks.<i>.output              (B, T, D)             the residual stream after the block
    final_norm                     (B, T, D)
    logits                         (B, T, V)             only from forward()
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tinylm.model._errors import ModelError
from tinylm.model.attention import attend, attend_with_pattern, padding_mask, wide
from tinylm.model.cache import Cache
from tinylm.model.config import TransformerConfig
from tinylm.model.initialisation import initialise
from tinylm.model.loss import chunked_cross_entropy
from tinylm.model.norm import RMSNorm, compute_dtype

Taps = dict[str, Tensor]
Rotation = tuple[Tensor, Tensor]


def _norm(config: TransformerConfig, size: int) -> nn.Module:
    kind = RMSNorm if config.norm == "rmsnorm" else nn.LayerNorm
    return kind(size, eps=config.norm_eps)


def rotation(config: TransformerConfig, positions: Tensor, dtype: torch.dtype) -> Rotation:
    """RoPE's cosines and sines (Su et al. 2021, eq. 34) for positions (T,) or (B, T): (T or B, 1, T; head_dim / 2).

    Computed from the config in float32 (float64 for a float64 model), once per forward pass for all layers; a buffer
    would lose its precision when the model is cast to bfloat16.
    """
    steps = torch.arange(0, config.head_dim, 2, dtype=wide(dtype), device=positions.device)
    frequencies = 1.0 / config.rope_theta ** (steps / config.head_dim)
    angles = positions[..., None].to(wide(dtype)) * frequencies
    if positions.ndim == 2:
        angles = angles[:, None]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos_sin: Rotation) -> Tensor:
    """Turn the pairs (x[i], x[i + head_dim / 2]), Hugging Face's half-split layout. x (B, heads, T, head_dim)."""
    cos, sin = cos_sin
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023); kv_heads == heads is the ordinary multi-head form."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        bias = config.attention_bias
        self.q = nn.Linear(config.width, config.heads * config.head_dim, bias=bias)
        self.k = nn.Linear(config.width, config.kv_heads * config.head_dim, bias=bias)
        self.v = nn.Linear(config.width, config.kv_heads * config.head_dim, bias=bias)
        self.output = nn.Linear(config.heads * config.head_dim, config.width, bias=bias)
        self.q_norm = _norm(config, config.head_dim) if config.qk_norm else None
        self.k_norm = _norm(config, config.head_dim) if config.qk_norm else None

    def forward(
        self, x: Tensor, cos_sin: Rotation | None, mask: Tensor | None, cache: Cache | None, taps: Taps | None
    ) -> Tensor:
        batch, time, _ = x.shape
        q, k, v = (project(x).view(batch, time, -1, self.head_dim) for project in (self.q, self.k, self.v))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if cos_sin is not None:
            q, k = rotate(q, cos_sin), rotate(k, cos_sin)
        if cache is not None:
            y = cache.attend(self.layer, q, k, v) if mask is None else cache.attend(self.layer, q, k, v, mask)
        elif taps is not None:
            y, taps[f"blocks.{self.layer}.attention.pattern"] = attend_with_pattern(q, k, v, mask)
        else:
            y = attend(q, k, v, mask)
        out: Tensor = self.output(y.transpose(1, 2).reshape(batch, time, -1))
        return out


class MLP(nn.Module):
    """GELU(x Wᵤ) W_d (GPT-2), or (SiLU(x W_g) ⊙ x Wᵤ) W_d (SwiGLU, Shazeer 2020)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        gated = config.activation == "swiglu"
        self.gate = nn.Linear(config.width, config.mlp_width, bias=config.bias) if gated else None
        self.up = nn.Linear(config.width, config.mlp_width, bias=config.bias)
        self.down = nn.Linear(config.mlp_width, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            inner = F.gelu(self.up(x), approximate="tanh")
        else:
            inner = F.silu(self.gate(x)) * self.up(x)
        out: Tensor = self.down(inner)
        return out


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): pre-norm, as in GPT-2 and everything since."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.name = f"blocks.{layer}"
        self.attention_norm = _norm(config, config.width)
        self.attention = Attention(config, layer)
        self.mlp_norm = _norm(config, config.width)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, cos_sin: Rotation | None, mask: Tensor | None, cache: Cache | None, taps: Taps | None
    ) -> Tensor:
        normed = self.attention_norm(x)
        attended = self.attention(normed, cos_sin, mask, cache, taps)
        middle = x + attended
        mlp_normed = self.mlp_norm(middle)
        mlp = self.mlp(mlp_normed)
        out: Tensor = middle + mlp
        if taps is not None:
            taps[f"{self.name}.attention_norm"] = normed
            taps[f"{self.name}.attention.output"] = attended
            taps[f"{self.name}.mlp_norm"] = mlp_normed
            taps[f"{self.name}.mlp"] = mlp
            taps[f"{self.name}.output"] = out
        return out


class Transformer(nn.Module):
    """A decoder-only language model of the given shape, freshly initialised (initialisation.py).

    With `activation_checkpointing` set to True, training keeps what enters each block and computes the block again in
    the backward pass (Chen et al. 2016): a third more work, the same loss and gradients to the last bit.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Embedding(config.context, config.width) if config.position == "learned" else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.depth))
        self.final_norm = _norm(config, config.width)
        self.head = None if config.tie_embeddings else nn.Linear(config.width, config.vocab_size, bias=False)
        initialise(self)

    def hidden(
        self,
        ids: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
        taps: Taps | None = None,
    ) -> Tensor:
        """(B, T) int64 -> (B, T, D), after the final norm.

        positions: (T,) or (B, T), by default counted from the cache's length, or over the mask's real tokens.
        mask: (B, T) bool, True = real token; with a cache (B, cached + T). Padded left or right, real positions come
        out as if there were no padding. taps: a dict to fill with the values listed at the top of this file.
        Raises ModelError for ids outside the vocabulary (checked on the CPU only: elsewhere it would wait for the
        device) and for a sequence longer than the context.
        """
        if ids.ndim != 2 or ids.is_floating_point():
            raise ModelError(f"ids: wanted whole numbers of shape (batch, time), got {ids.dtype} {tuple(ids.shape)}")
        start = 0 if cache is None else getattr(cache, "length", None)
        if mask is not None:
            self._check_mask(ids, mask, start)
        if positions is None:
            positions = self._positions(ids, mask, start)
        self._check("ids", ids, self.config.vocab_size, "the vocabulary")
        self._check("positions", positions, self.config.context, "the context")
        x = self.embed(ids) if self.positions is None else self.embed(ids) + self.positions(positions)
        cos_sin = rotation(self.config, positions, compute_dtype(x)) if self.config.position == "rope" else None
        allowed = None if mask is None else padding_mask(mask, ids.shape[1])
        if taps is not None:
            taps["embed"] = x
        for block in self.blocks:
            x = self._through(block, x, cos_sin, allowed, cache, taps)
        out: Tensor = self.final_norm(x)
        if taps is not None:
            taps["final_norm"] = out
        return out

    def forward(
        self,
        ids: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
        taps: Taps | None = None,
        logits_at: Sequence[int] | Tensor | None = None,
    ) -> Tensor:
        """(B, T) int64 -> logits (B, T, V), or (B, len, V) at the positions `logits_at` in T: (len,), or (B, len)."""
        hidden = self.hidden(ids, positions, mask, cache, taps)
        if logits_at is not None:
            at = torch.as_tensor(logits_at, device=hidden.device)
            hidden = hidden[:, at] if at.ndim == 1 else hidden.take_along_dim(at[..., None], dim=1)
        logits = F.linear(hidden, self.head_weight)
        if taps is not None:
            taps["logits"] = logits
        return logits

    def loss(self, ids: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        """Cross-entropy in nats of targets (B, T) after ids (B, T); targets of -100 are ignored.

        reduction: "mean" over the targets that count (0 with zero gradients if none does), "sum", or "none" -> (B, T).
        """
        if reduction not in ("mean", "sum", "none"):
            raise ModelError(f"loss: wanted reduction 'mean', 'sum' or 'none', got {reduction!r}")
        if targets.shape != ids.shape:
            raise ModelError(f"loss: wanted targets of the shape of ids {tuple(ids.shape)}, got {tuple(targets.shape)}")
        loss = chunked_cross_entropy(self.hidden(ids).flatten(0, 1), self.head_weight, targets.flatten(), reduction)
        return loss.view(targets.shape) if reduction == "none" else loss

    @property
    def head_weight(self) -> Tensor:
        """(V, D): the head's own matrix, or the embedding when they are tied (Press and Wolf 2017)."""
        return self.embed.weight if self.head is None else self.head.weight

    def save(self, directory: str | os.PathLike[str], provenance: Mapping[str, str] | None = None) -> None:
        """Write config.json and model.safetensors in Hugging Face layout; see checkpoint.save."""
        from tinylm.model import checkpoint

        checkpoint.save(self, directory, provenance)

    @classmethod
    def load(
        cls,
        directory: str | os.PathLike[str],
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
    ) -> Transformer:
        """Read a Hugging Face directory (gpt2, llama, qwen3) or a GGUF file; see checkpoint.load."""
        from tinylm.model import checkpoint

        return checkpoint.load(directory, dtype, device)

    def _through(self, block: nn.Module, *inputs: Any) -> Any:
        """What the block returns."""
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)  # nothing here is random
        return block(*inputs)

    def _positions(self, ids: Tensor, mask: Tensor | None, start: int | None) -> Tensor:
        """Counted on from the `start` tokens that are cached, or the real tokens of the mask counted."""
        if start is None:
            raise ModelError("positions: this cache has no single length, so wanted positions=(B, T), got None")
        if mask is not None:
            return (mask.cumsum(dim=1) - 1).clamp(min=0)[:, start:]
        end = start + ids.shape[1]
        if end > self.config.context:
            raise ModelError(
                f"sequence: wanted at most {self.config.context} tokens (the context), got {end}; shorten it, or "
                "make a model with a longer context"
            )
        return torch.arange(start, end, device=ids.device)

    @staticmethod
    def _check_mask(ids: Tensor, mask: Tensor, start: int | None) -> None:
        batch, time = ids.shape
        keys = mask.shape[-1] if start is None else start + time
        if mask.shape != (batch, keys) or keys < time or mask.dtype != torch.bool:
            raise ModelError(
                f"mask: wanted bool of shape {(batch, keys)} (batch, cached + new tokens), "
                f"got {mask.dtype} of shape {tuple(mask.shape)}"
            )

    @staticmethod
    def _check(name: str, values: Tensor, limit: int, what: str) -> None:
        if torch.compiler.is_compiling() or values.device.type != "cpu" or values.numel() == 0:
            return
        low, high = (int(v) for v in values.aminmax())
        if low < 0 or high >= limit:
            raise ModelError(f"{name}: wanted 0 to {limit - 1} ({what}), got {low if low < 0 else high}")
