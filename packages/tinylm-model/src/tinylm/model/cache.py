"""Remembered keys and values, so that decoding a token costs one token and not the whole text again.

Not here: blocks shared between requests (tinylm.inference), the loop that decodes (decoding.py). Next: decoding.py.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from tinylm.model._errors import ModelError
from tinylm.model.attention import attend
from tinylm.model.config import TransformerConfig


class Cache(Protocol):
    """What `Transformer.hidden(cache=...)` calls, once per layer and forward pass.

    q (B, heads, T, head_dim), k and v (B, kv_heads, T, head_dim), after RoPE. `mask`, if the caller gave one, is
    (B, 1, T, keys), True = may attend, over the cached and the new keys; `window`, if this layer has one, is how many
    keys each query attends to at most, its own among them. Neither is passed where there is none. Returns (B, heads, T,
    head_dim).
    A cache whose sequences have one common length offers it as `length`; with any other cache the caller gives
    positions.
    """

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, window: int | None = None
    ) -> Tensor:
        """Keep k and v of this layer, and give what q finds in all that is kept: shapes above."""
        ...


class KVCache:
    """Keys and values of `batch_size` sequences, room for `max_length` tokens reserved at once.

    Memory: 2 · layers · batch · kv_heads · max_length · head_dim numbers. `length` tokens are in it; it moves on when
    the last layer has attended. For inference only: it is filled in place, so no gradient passes through.
    """

    def __init__(
        self,
        config: TransformerConfig,
        batch_size: int,
        max_length: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        shape = (config.depth, batch_size, config.kv_heads, max_length, config.head_dim)
        if batch_size < 1 or max_length < 1:
            raise ModelError(f"KVCache: wanted batch_size and max_length of at least 1, got {batch_size}, {max_length}")
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0

    def check(self, config: TransformerConfig) -> None:
        """ModelError where it was made for another shape than config's."""
        depth, _, kv_heads, _, head_dim = self.keys.shape
        if (depth, kv_heads, head_dim) != (config.depth, config.kv_heads, config.head_dim):
            raise ModelError(
                f"KVCache: wanted one made for this model (depth {config.depth}, kv_heads {config.kv_heads}, head_dim "
                f"{config.head_dim}), got depth {depth}, kv_heads {kv_heads}, head_dim {head_dim}"
            )

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, window: int | None = None
    ) -> Tensor:
        """Append k and v, then attend over all that is there, or the window's part of it. Raises as `keep` does."""
        return attend(q, *self.keep(layer, k, v, q.dtype), mask, window)

    def keep(self, layer: int, k: Tensor, v: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Append k and v; all keys and values that are there now, for queries of this type. Raises ModelError when
        full, of another batch size or type (float32 takes all types), and where a gradient is wanted."""
        layers, batch, _, room, _ = self.keys.shape
        end = self.length + k.shape[2]
        if end > room:
            raise ModelError(
                f"KVCache is full: wanted room for {end} tokens ({self.length} cached + {k.shape[2]} new), "
                f"got max_length={room}; make it with a larger max_length"
            )
        if k.shape[0] != batch:
            raise ModelError(f"KVCache: wanted a batch of {batch}, got {k.shape[0]}")
        wider = self.keys.dtype == torch.float32  # holds what 16 bits hold
        if k.dtype != self.keys.dtype and not wider and not torch.is_autocast_enabled(k.device.type):
            raise ModelError(
                f"KVCache: wanted keys of its own type {self.keys.dtype}, got {k.dtype}; make it with dtype="
            )
        if torch.is_grad_enabled() and k.requires_grad:
            raise ModelError("KVCache: wanted no gradient, since it is filled in place; call within torch.no_grad()")
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        if layer == layers - 1:
            self.length = end
        begins = end == k.shape[2]  # nothing was cached: what came is all there is, and has the queries' type
        keys, values = (k, v) if begins else (self.keys[layer, :, :, :end], self.values[layer, :, :, :end])
        if wider and not torch.is_autocast_enabled(k.device.type):
            keys, values = keys.to(dtype), values.to(dtype)
        return keys, values
