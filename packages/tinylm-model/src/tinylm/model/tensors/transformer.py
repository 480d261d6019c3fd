"""The transformer in torch tensors, forward and backward by hand, on CPU and CUDA.

The same files, logits, loss and gradients as ../arrays/transformer.py and ../transformer.py, whose names the parameters
have. The backward walks the forward's steps in reverse. What it does not do: dropout, padding masks, caches, taps.
Next: training.py; then ../transformer.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from tinylm.model._errors import ModelError
from tinylm.model._layout import shapes
from tinylm.model.arrays.checkpoint import read_checkpoint
from tinylm.model.config import TransformerConfig
from tinylm.model.tensors.attention import causal_bias
from tinylm.model.tensors.blocks import Block, Norm, Places
from tinylm.model.tensors.layers import embedding, embedding_backward, linear, linear_backward
from tinylm.model.tensors.loss import IGNORED, cross_entropy, cross_entropy_backward
from tinylm.model.tensors.parameters import Parameters
from tinylm.model.tensors.positions import rotations

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


class Transformer:
    """A decoder-only language model. Inside, x is (N, D): the positions of all sequences one below the other."""

    def __init__(
        self,
        config: TransformerConfig,
        weights: Mapping[str, ArrayLike | Tensor],
        dtype: torch.dtype | str = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        """weights by our names, as arrays.checkpoint.read_checkpoint gives them; dtype: "float32", "bfloat16",
        "float16", "float64", or torch's."""
        kind = _DTYPES.get(dtype) if isinstance(dtype, str) else dtype
        if kind is None or kind not in _DTYPES.values():
            raise ModelError(f"dtype: wanted one of {sorted(_DTYPES)}, got {dtype}")
        config.plain_or_refuse("tensors")
        self.config = config
        self.weights, self.gradients = (Parameters(shapes(config), kind, device) for _ in range(2))
        for name, tensor in self.weights.items():
            tensor.copy_(torch.as_tensor(weights[name]).detach())
        both = self.weights, self.gradients
        self.blocks = [Block(config, *both, f"blocks.{layer}") for layer in range(config.depth)]
        self.final_norm = Norm(config, *both, "final_norm")
        # (V, D): the head's own matrix, or the embedding when they are tied (Press and Wolf 2017)
        head = "embed.weight" if config.tie_embeddings else "head.weight"
        self.head, self.d_head = self.weights[head], self.gradients[head]

    @classmethod
    def load(
        cls,
        directory: str | os.PathLike[str],
        dtype: torch.dtype | str = torch.float32,
        device: torch.device | str | None = None,
    ) -> Transformer:
        """Read a Hugging Face directory (gpt2, llama, qwen3); see arrays.checkpoint.read_checkpoint."""
        return cls(*read_checkpoint(directory), dtype, device)

    def logits(self, ids: ArrayLike | Tensor) -> Tensor:
        """(B, T) ids -> (B, T, V)."""
        rows = self._check(ids)
        hidden, _ = self._forward(rows, keep=False)
        return linear(hidden, self.head).view(*rows.shape, -1)

    def loss(self, ids: ArrayLike | Tensor, targets: ArrayLike | Tensor) -> Tensor:
        """Cross-entropy in nats of targets (B, T) after ids (B, T), a tensor without axes; targets of -100 are
        ignored."""
        rows = self._check(ids)
        wanted = self._check_targets(targets, rows.shape)
        hidden, _ = self._forward(rows, keep=False)
        return cross_entropy(linear(hidden, self.head), wanted)[0]

    def loss_and_gradients(self, ids: ArrayLike | Tensor, targets: ArrayLike | Tensor) -> tuple[Tensor, Parameters]:
        """The loss, and its derivative to every parameter by name, in memory that the next call writes again."""
        rows = self._check(ids)
        wanted = self._check_targets(targets, rows.shape)
        hidden, saved = self._forward(rows, keep=True)
        loss, p = cross_entropy(linear(hidden, self.head), wanted)
        self._backward(cross_entropy_backward(p).to(hidden.dtype), rows, saved)
        return loss, self.gradients

    def _forward(self, ids: Tensor, keep: bool) -> tuple[Tensor, Any]:
        """(B, T) ids -> (N, D) after the final norm, and, if it is to be kept, what the backward needs."""
        batch, time = ids.shape
        x = embedding(ids.flatten(), self.weights["embed.weight"])
        if self.config.position == "learned":
            x.view(batch, time, -1).add_(self.weights["positions.weight"][:time])
        places = self._places(time, x)
        steps = []
        for block in self.blocks:
            x, saved = block.forward(x, batch, places)
            if keep:
                steps.append(saved)
            del saved  # its memory is the next block's
        x, norm = self.final_norm.forward(x)
        return x, (places, steps, norm)

    def _backward(self, d_logits: Tensor, ids: Tensor, saved: Any) -> None:
        """Fill self.gradients. What a block kept is let go when its backward is done."""
        places, steps, norm = saved
        batch, time = ids.shape
        d_embed = self.gradients["embed.weight"]
        if not self.config.tie_embeddings:
            d_embed.zero_()  # tied, the head's part is there first
        dx = linear_backward(d_logits, self.final_norm.again(norm), self.head, self.d_head)
        dx = self.final_norm.backward(dx, norm)
        for block in reversed(self.blocks):
            dx = block.backward(dx, batch, places, steps.pop())
        if self.config.position == "learned":
            d_positions = self.gradients["positions.weight"]
            d_positions[time:] = 0
            torch.sum(dx.view(batch, time, -1), 0, out=d_positions[:time])
        embedding_backward(dx, ids.flatten(), d_embed)

    def _places(self, time: int, like: Tensor) -> Places:
        config = self.config
        turns = rotations(time, config.head_dim, config.rope_theta, like) if config.position == "rope" else None
        return causal_bias(time, like), turns

    def _check(self, ids: ArrayLike | Tensor) -> Tensor:
        rows, config = torch.as_tensor(ids), self.config
        if rows.ndim != 2 or not _whole(rows) or not 1 <= rows.shape[1] <= config.context or not len(rows):
            raise ModelError(
                f"ids: wanted whole numbers of shape (batch, time) with time from 1 to {config.context} (the context), "
                f"got {rows.dtype} {tuple(rows.shape)}"
            )
        if rows.device.type == "cpu":  # elsewhere looking at a value would wait for the device
            low, high = (int(end) for end in rows.aminmax())
            if low < 0 or high >= config.vocab_size:
                raise ModelError(f"ids: wanted 0 to {config.vocab_size - 1}, got {low} to {high}")
        return rows.to(self.head.device, torch.int64)

    def _check_targets(self, targets: ArrayLike | Tensor, shape: tuple[int, ...]) -> Tensor:
        wanted, size = torch.as_tensor(targets), self.config.vocab_size
        if wanted.shape != shape or not _whole(wanted):
            raise ModelError(
                f"targets: wanted whole numbers of the shape of ids {tuple(shape)}, got {wanted.dtype} "
                f"{tuple(wanted.shape)}"
            )
        if wanted.device.type == "cpu" and ((wanted >= size) | (wanted < 0) & (wanted != IGNORED)).any():
            low, high = (int(end) for end in wanted.aminmax())
            raise ModelError(f"targets: wanted 0 to {size - 1}, or {IGNORED} for none, got {low} to {high}")
        return wanted.to(self.head.device, torch.int64).flatten()


def _whole(numbers: Tensor) -> bool:
    return not numbers.is_floating_point() and not numbers.is_complex() and numbers.dtype != torch.bool
