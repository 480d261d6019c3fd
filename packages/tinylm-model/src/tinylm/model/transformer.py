"""The transformer in torch.nn: embeddings, blocks of attention and MLP, a final norm, and the head.

The rung between tensors by hand (below) and Triton kernels (above: kernels/ says when they are chosen). Not here: the
softmax(q kᵀ) v itself (attention.py), RoPE (rope.py), GELU (gelu.py), SwiGLU (swiglu.py), the linear layers
(linear.py), a mixture of experts (experts.py), the head's loss (loss.py), files (checkpoint.py), decoding
(decoding.py). Next: attention.py.

Shapes: B batch, T time, D width, V vocabulary. What `taps` records, with the shape of each (taps.py adds the line that
computed it):

    embed                          (B, T, D)             token embedding, plus the position's where it is learned
    blocks.<i>.attention_norm      (B, T, D)
    blocks.<i>.attention.pattern   (B, heads, T, T)      not with a cache, which attends by itself
    blocks.<i>.attention.output    (B, T, D)             what attention adds to the residual stream
    blocks.<i>.mlp_norm            (B, T, D)
    blocks.<i>.mlp.router          (B, T, experts)       probabilities; only with experts
    blocks.<i>.mlp                 (B, T, D)             what the MLP, or its experts, add to it
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

from tinylm.model._dtypes import compute_dtype
from tinylm.model._errors import ModelError
from tinylm.model._inputs import (
    check_ids,
    check_mask,
    check_positions,
    check_range,
    check_whole,
    count_positions,
    places,
    split_documents,
)
from tinylm.model.attention import attend, attend_with_pattern, document_mask, padding_mask
from tinylm.model.cache import Cache, KVCache
from tinylm.model.config import TransformerConfig
from tinylm.model.experts import Experts, Routing, balance_loss
from tinylm.model.gelu import gelu
from tinylm.model.initialization import initialize
from tinylm.model.linear import Linear
from tinylm.model.loss import IGNORED, Tied, chunked_cross_entropy, tied_on_cpu
from tinylm.model.norm import LayerNorm, RMSNorm
from tinylm.model.rope import Rotation, rotate, rotation
from tinylm.model.swiglu import gated

TapDict = dict[str, Tensor]


def _norm(config: TransformerConfig, size: int) -> nn.Module:
    kind = RMSNorm if config.norm == "rmsnorm" else LayerNorm
    return kind(size, eps=config.norm_eps)


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023); kv_heads == heads is the ordinary multi-head form."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim, self.window = layer, config.head_dim, config.layer_window(layer)
        bias = bool(config.attention_bias)
        self.q = Linear(config.width, config.heads * config.head_dim, bias=bias)
        self.k = Linear(config.width, config.kv_heads * config.head_dim, bias=bias)
        self.v = Linear(config.width, config.kv_heads * config.head_dim, bias=bias)
        self.output = Linear(config.heads * config.head_dim, config.width, bias=config.attention_bias is True)
        self.q_norm = _norm(config, config.head_dim) if config.qk_norm else None
        self.k_norm = _norm(config, config.head_dim) if config.qk_norm else None

    def forward(
        self, x: Tensor, cos_sin: Rotation | None, mask: Tensor | None, cache: Cache | None, taps: TapDict | None
    ) -> Tensor:
        batch, time, _ = x.shape
        q, k, v = (project(x).view(batch, time, -1, self.head_dim) for project in (self.q, self.k, self.v))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if cos_sin is not None:
            q, k = rotate(q, cos_sin), rotate(k, cos_sin)
        if cache is not None:
            limits: dict[str, Any] = {} if mask is None else {"mask": mask}
            y = cache.attend(
                self.layer, q, k, v, **limits if self.window is None else {**limits, "window": self.window}
            )
        elif taps is not None:
            y, taps[f"blocks.{self.layer}.attention.pattern"] = attend_with_pattern(q, k, v, mask, self.window)
        else:
            y = attend(q, k, v, mask, self.window)
        out: Tensor = self.output(y.transpose(1, 2).reshape(batch, time, -1))
        return out


class MLP(nn.Module):
    """GELU(x Wᵤ) W_d (GPT-2), or (SiLU(x W_g) ⊙ x Wᵤ) W_d (SwiGLU, Shazeer 2020)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        gated = config.activation == "swiglu"
        self.gate = Linear(config.width, config.mlp_width, bias=config.bias) if gated else None
        self.up = Linear(config.width, config.mlp_width, bias=config.bias)
        self.down = Linear(config.mlp_width, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            inner = gelu(self.up(x))
        else:
            inner = gated(self.gate(x), self.up(x))
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
        self.mlp = Experts(config) if config.experts else MLP(config)

    def forward(
        self, x: Tensor, cos_sin: Rotation | None, mask: Tensor | None, cache: Cache | None, taps: TapDict | None
    ) -> tuple[Tensor, Routing | None]:
        """The residual stream after the block, and where its tokens were sent if it has experts."""
        normed = self.attention_norm(x)
        attended = self.attention(normed, cos_sin, mask, cache, taps)
        middle = x + attended
        mlp_normed = self.mlp_norm(middle)
        routing = self.mlp.route(mlp_normed) if isinstance(self.mlp, Experts) else None
        mlp: Tensor = self.mlp(mlp_normed) if routing is None else self.mlp(mlp_normed, routing)
        out = middle + mlp
        if taps is not None:
            taps[f"{self.name}.attention_norm"] = normed
            taps[f"{self.name}.attention.output"] = attended
            taps[f"{self.name}.mlp_norm"] = mlp_normed
            taps[f"{self.name}.mlp"] = mlp
            taps[f"{self.name}.output"] = out
            if routing is not None:
                probabilities = routing[0].view(*x.shape[:2], -1)
                taps[f"{self.name}.mlp.router"] = probabilities
        return out, routing


class Transformer(nn.Module):
    """A decoder-only language model of the given shape, freshly initialised (initialization.py).

    With `activation_checkpointing` set to True, training keeps what enters each block and computes the block again in
    the backward pass (Chen et al. 2016): a third more work, the same loss and gradients to the last bit.
    With `separate_documents`, the loss is that of documents which stand one behind the other in a row, each ending at a
    target of -100: positions begin anew behind it, and nothing before it is attended to.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        self.separate_documents = False
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Embedding(config.context, config.width) if config.position == "learned" else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.depth))
        self.final_norm = _norm(config, config.width)
        self.head = None if config.tie_embeddings else nn.Linear(config.width, config.vocab_size, bias=False)
        initialize(self)

    def hidden(
        self,
        ids: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
        taps: TapDict | None = None,
    ) -> Tensor:
        """(B, T) int64 -> (B, T, D), after the final norm.

        positions: (T,) or (B, T), by default counted from the cache's length, or over the mask's real tokens.
        mask: (B, T) bool, True = real token; with a cache (B, cached + T). Padded left or right, real positions come
        out as if there were no padding. taps: a dict to fill with the values listed at the top of this file.
        Raises ModelError for ids outside the vocabulary (checked on the CPU only: elsewhere it would wait for the
        device) and for a sequence longer than the context.
        """
        return self._hidden(ids, positions, mask, cache, taps)[0]

    def _hidden(
        self,
        ids: Tensor,
        positions: Tensor | None,
        mask: Tensor | None,
        cache: Cache | None,
        taps: TapDict | None,
        documents: Tensor | None = None,
        tied: Tied | None = None,
    ) -> tuple[Tensor, list[Routing]]:
        """As `hidden`, and the routing of each layer that has experts. documents: (B, T), kept apart; tied: what looks
        the embedding up."""
        check_ids(ids)
        if isinstance(cache, KVCache):
            cache.check(self.config)
        start = 0 if cache is None else getattr(cache, "length", None)
        if mask is not None:
            check_mask(ids, mask, start)
        if positions is None:
            positions = count_positions(ids, mask, start, self.config.context)
        check_positions(ids, positions)
        check_range("ids", ids, self.config.vocab_size, "the vocabulary")
        check_range("positions", positions, self.config.context, "the context")
        found: Tensor = self.embed(ids) if tied is None else tied.look_up(ids)
        x = found if self.positions is None else found + self.positions(positions)
        cos_sin = rotation(self.config, positions, compute_dtype(x)) if self.config.position == "rope" else None
        allowed = None if mask is None else padding_mask(mask, ids.shape[1])
        if documents is not None:
            allowed = document_mask(documents)
        if taps is not None:
            taps["embed"] = x
        routings: list[Routing] = []
        for block in self.blocks:
            x, routing = self._through(block, x, cos_sin, allowed, cache, taps)
            if routing is not None:
                routings.append(routing)
        out: Tensor = self.final_norm(x)
        if taps is not None:
            taps["final_norm"] = out
        return out, routings

    def forward(
        self,
        ids: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
        taps: TapDict | None = None,
        logits_at: Sequence[int] | Tensor | None = None,
    ) -> Tensor:
        """(B, T) int64 -> logits (B, T, V), or (B, len, V) at the positions `logits_at` in T: (len,), or (B, len);
        negative ones count from the end."""
        hidden = self.hidden(ids, positions, mask, cache, taps)
        if logits_at is not None:
            at = places(torch.as_tensor(logits_at, device=hidden.device), ids)
            hidden = hidden[:, at] if at.ndim == 1 else hidden.take_along_dim(at[..., None], dim=1)
        logits = F.linear(hidden, self.head_weight)
        if taps is not None:
            taps["logits"] = logits
        return logits

    def loss(
        self, ids: Tensor, targets: Tensor, reduction: str = "mean", items: dict[str, Tensor] | None = None
    ) -> Tensor:
        """Cross-entropy in nats of targets (B, T) after ids (B, T); targets of -100 are ignored.

        reduction: "mean" over the targets that count (0 with zero gradients if none does), "sum", or "none" -> (B, T).
        With experts the "mean", which is what training minimises, has balance_weight · the load-balancing loss
        (experts.py) added; "sum" and "none" are the text's alone. items: a dict to fill with the parts as they are
        before weighting, detached: "cross_entropy", and with experts "balance".
        """
        if reduction not in ("mean", "sum", "none"):
            raise ModelError(f"loss: wanted reduction 'mean', 'sum' or 'none', got {reduction!r}")
        check_whole("ids", ids)
        check_whole("targets", targets)
        if targets.shape != ids.shape:
            raise ModelError(f"loss: wanted targets of the shape of ids {tuple(ids.shape)}, got {tuple(targets.shape)}")
        check_range("targets", targets.where(targets != IGNORED, 0), self.config.vocab_size, "the vocabulary")
        documents = positions = None
        if self.separate_documents:
            documents, positions = split_documents(targets)
        tied = tied_on_cpu(self.embed) if self.head is None and reduction != "none" else None
        hidden, routings = self._hidden(ids, positions, None, None, None, documents, tied)
        targets = targets.to(torch.int64)
        loss = chunked_cross_entropy(hidden.flatten(0, 1), self.head_weight, targets.flatten(), reduction, tied)
        loss = loss.view(targets.shape) if reduction == "none" else loss
        if items is not None:
            items["cross_entropy"] = loss.detach()
        if routings and (items is not None or reduction == "mean"):
            balance = balance_loss(routings)
            if items is not None:
                items["balance"] = balance.detach()
            loss = loss + self.config.balance_weight * balance if reduction == "mean" else loss
        return loss

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
        """Read a Hugging Face directory (families: _families.py) or a GGUF file; see checkpoint.load."""
        from tinylm.model import checkpoint

        return checkpoint.load(directory, dtype, device)

    def _through(self, block: nn.Module, x: Tensor, *rest: Any) -> Any:
        """What the block returns."""
        _, _, cache, taps = rest
        if self.activation_checkpointing and torch.is_grad_enabled() and cache is None and taps is None:
            # neither of the two may be filled twice; and nothing in a block is random
            return checkpoint(block, x, *rest, use_reentrant=False, preserve_rng_state=False)
        return block(x, *rest)
