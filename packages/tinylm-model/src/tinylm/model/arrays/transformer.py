"""The transformer in NumPy, forward and backward, for every shape that ../config.py describes.

The same files, logits, loss and gradients as ../transformer.py, whose names the parameters have. The backward walks the
forward's steps in reverse. What it does not do: padding masks, caches, taps. Next: training.py; then ../transformer.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from tinylm.model._errors import ModelError
from tinylm.model._layout import shapes
from tinylm.model.arrays.blocks import Block, Dropout, Norm
from tinylm.model.arrays.checkpoint import read_checkpoint
from tinylm.model.arrays.layers import (
    Array,
    dropout,
    dropout_backward,
    embedding,
    embedding_backward,
    linear,
    linear_backward,
)
from tinylm.model.arrays.loss import IGNORED, cross_entropy, cross_entropy_backward
from tinylm.model.arrays.parameters import Parameters
from tinylm.model.arrays.positions import rotations
from tinylm.model.config import TransformerConfig


class Transformer:
    """A decoder-only language model. Inside, x is (N, D): the positions of all sequences one below the other."""

    def __init__(self, config: TransformerConfig, weights: Mapping[str, Array], dtype: DTypeLike | None = None) -> None:
        """weights by our names, as checkpoint.read_checkpoint gives them; dtype: float32 or float64, None keeps theirs
        (float32 for 16-bit ones)."""
        kind = np.result_type(weights["embed.weight"].dtype, np.float32) if dtype is None else np.dtype(dtype)
        if kind not in (np.float32, np.float64):
            raise ModelError(f"dtype: wanted float32 or float64, got {kind}")
        config.plain_or_refuse("arrays")
        self.config = config
        self.weights, self.gradients = Parameters(shapes(config), kind), Parameters(shapes(config), kind)
        for name, array in self.weights.items():
            array[...] = weights[name]
        both = self.weights, self.gradients
        self.blocks = [Block(config, *both, f"blocks.{layer}") for layer in range(config.depth)]
        self.final_norm = Norm(config, *both, "final_norm")
        # (V, D): the head's own matrix, or the embedding when they are tied (Press and Wolf 2017)
        head = "embed.weight" if config.tie_embeddings else "head.weight"
        self.head, self.d_head = self.weights[head], self.gradients[head]

    @classmethod
    def load(cls, directory: str | os.PathLike[str], dtype: DTypeLike | None = None) -> Transformer:
        """Read a Hugging Face directory (gpt2, llama, qwen3); see checkpoint.read_checkpoint."""
        return cls(*read_checkpoint(directory), dtype)

    def logits(self, ids: ArrayLike) -> Array:
        """(B, T) ids -> (B, T, V)."""
        rows = self._check(ids)
        hidden, _ = self._forward(rows, None)
        return linear(hidden, self.head).reshape(*rows.shape, -1)

    def loss(self, ids: ArrayLike, targets: ArrayLike) -> float:
        """Cross-entropy in nats of targets (B, T) after ids (B, T); targets of -100 are ignored."""
        rows = self._check(ids)
        wanted = self._check_targets(targets, rows.shape)
        hidden, _ = self._forward(rows, None)
        return cross_entropy(linear(hidden, self.head), wanted)[0]

    def loss_and_gradients(
        self, ids: ArrayLike, targets: ArrayLike, rate: float = 0.0, generator: np.random.Generator | None = None
    ) -> tuple[float, Parameters]:
        """The loss, and its derivative to every parameter by name, in memory that the next call writes again.

        With a rate above 0 and a generator there is dropout where GPT-2 has it: on the embeddings, the attention
        pattern, and what attention and MLP add to the residual stream.
        """
        if not 0 <= rate < 1 or (rate > 0 and generator is None):
            raise ModelError(f"dropout: wanted a rate from 0 to below 1, above 0 with a generator, got {rate}")
        rows = self._check(ids)
        wanted = self._check_targets(targets, rows.shape)
        hidden, saved = self._forward(rows, (rate, generator) if rate > 0 and generator is not None else None)
        loss, p = cross_entropy(linear(hidden, self.head), wanted)
        self._backward(cross_entropy_backward(p), hidden, rows, saved)
        return loss, self.gradients

    def _forward(self, ids: Array, drop: Dropout) -> tuple[Array, Any]:
        """(B, T) ids -> (N, D) after the final norm, and what the backward needs."""
        batch, time = ids.shape
        config = self.config
        x = embedding(ids.ravel(), self.weights["embed.weight"])
        turns = None
        if config.position == "learned":
            places = self.weights["positions.weight"][:time]
            x = (x.reshape(batch, time, -1) + places).reshape(batch * time, -1)
        else:
            turns = rotations(time, config.head_dim, config.rope_theta, x.dtype)
        x, keep = (x, None) if drop is None else dropout(x, *drop)
        steps = []
        for block in self.blocks:
            x, saved = block.forward(x, batch, turns, drop)
            steps.append(saved)
        x, norm = self.final_norm.forward(x)
        return x, (keep, steps, norm, turns)

    def _backward(self, d_logits: Array, hidden: Array, ids: Array, saved: Any) -> None:
        """Fill self.gradients."""
        keep, steps, norm, turns = saved
        batch, time = ids.shape
        d_embed = self.gradients["embed.weight"]
        if not self.config.tie_embeddings:
            d_embed[...] = 0  # tied, the head's part is there first
        dx, self.d_head[...] = linear_backward(d_logits, hidden, self.head)
        dx = self.final_norm.backward(dx, norm)
        for block, step in zip(reversed(self.blocks), reversed(steps), strict=True):
            dx = block.backward(dx, batch, turns, step)
        if keep is not None:
            dx = dropout_backward(dx, keep)
        if self.config.position == "learned":
            d_positions = self.gradients["positions.weight"]
            d_positions[time:] = 0
            d_positions[:time] = np.add.reduce(dx.reshape(batch, time, -1), axis=0)
        embedding_backward(dx, ids.ravel(), d_embed)

    def _check(self, ids: ArrayLike) -> Array:
        rows, config = np.asarray(ids), self.config
        if rows.ndim != 2 or rows.dtype.kind not in "iu" or not 1 <= rows.shape[1] <= config.context or not len(rows):
            raise ModelError(
                f"ids: wanted whole numbers of shape (batch, time) with time from 1 to {config.context} (the context), "
                f"got {rows.dtype} {rows.shape}"
            )
        if rows.min() < 0 or rows.max() >= config.vocab_size:
            raise ModelError(f"ids: wanted 0 to {config.vocab_size - 1}, got {rows.min()} to {rows.max()}")
        return rows

    def _check_targets(self, targets: ArrayLike, shape: tuple[int, ...]) -> Array:
        wanted, size = np.asarray(targets), self.config.vocab_size
        if wanted.shape != shape or wanted.dtype.kind not in "iu":
            raise ModelError(
                f"targets: wanted whole numbers of the shape of ids {shape}, got {wanted.dtype} {wanted.shape}"
            )
        wanted = wanted.ravel()
        low = wanted.min()
        if wanted.max() >= size or (low < 0 and ((wanted < 0) & (wanted != IGNORED)).any()):
            raise ModelError(f"targets: wanted 0 to {size - 1}, or {IGNORED} for none, got {low} to {wanted.max()}")
        return wanted
