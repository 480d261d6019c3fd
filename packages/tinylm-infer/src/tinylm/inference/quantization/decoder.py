"""A whole forward pass in one call of C++: `Decoder` holds a quantised model's matrices, norms and tables.

A step of a small model is a few milliseconds, of which fifty calls from Python and as many small tensors take one or
two. What is computed is what `tinylm.model.Transformer` computes, read there; the C++ is `src/kernels/decoder.hpp`. It
writes keys and values into the caller's cache. Not here: padding masks and taps, which take the way through PyTorch
(model.py). Next: model.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tinylm.inference import kernels
from tinylm.inference._errors import InferenceError
from tinylm.model import KVCache
from tinylm.model.rope import rotation

if TYPE_CHECKING:
    from tinylm.inference.quantization.linear import QuantizedLinear
    from tinylm.model.transformer import Transformer


@dataclass(frozen=True)
class CacheLayout:
    """Where a cache keeps B sequences: token t of sequence b and layer l, head h, at

        l · strides[0] + blocks[b, t // block_size] · strides[1] + h · strides[2] + (t % block_size) · strides[3]

    of `keys` and `values`, contiguous float32 tensors; strides count floats. lengths (B,) int64: tokens in it so far.
    """

    keys: Tensor
    values: Tensor
    blocks: Tensor
    lengths: Tensor
    block_size: int
    strides: tuple[int, int, int, int]


def layout_of(cache: object) -> CacheLayout | None:
    """The layout of a KVCache in float32 (each sequence is one block), or None."""
    if not isinstance(cache, KVCache) or cache.keys.dtype != torch.float32 or cache.keys.device.type != "cpu":
        return None
    batch, room = cache.keys.shape[1], cache.keys.shape[3]
    layer, block, head, token, _ = cache.keys.stride()
    blocks, lengths = torch.arange(batch)[:, None], torch.full((batch,), cache.length)
    return CacheLayout(cache.keys, cache.values, blocks, lengths, room, (layer, block, head, token))


class Decoder:
    """The compiled forward pass of `model`, whose projections are `QuantizedLinear`s, with the head `head`."""

    def __init__(self, model: Transformer, head: QuantizedLinear) -> None:
        config = model.config
        self._vocabulary = config.vocab_size
        cos = sin = None
        if config.position == "rope":
            cos, sin = rotation(config, torch.arange(config.context), torch.float32)  # (context, head_dim / 2) each
        self._model = kernels._compiled().Model(
            width=config.width,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            mlp_width=config.mlp_width,
            vocabulary=config.vocab_size,
            eps=config.norm_eps,
            embedding=_numbers(model.embed.weight),
            learned_positions=None if model.positions is None else _numbers(model.positions.weight),
            cos=None if cos is None else _numbers(cos),
            sin=None if sin is None else _numbers(sin),
            instruction_set=kernels.instruction_set(),
        )
        layers: Any = model.blocks
        for layer, block in enumerate(layers):
            attention, mlp = block.attention, block.mlp
            norms = (block.attention_norm, attention.q_norm, attention.k_norm, block.mlp_norm)
            linears = (attention.q, attention.k, attention.v, attention.output, mlp.gate, mlp.up, mlp.down)
            matrices = [None if linear is None else linear.matrix for linear in linears]
            self._model.add_layer([_norm(norm) for norm in norms], matrices, config.layer_window(layer) or 0)
        self._model.set_end(_norm(model.final_norm), head.matrix)

    def forward(self, ids: Tensor, positions: Tensor, starts: Tensor, cache: CacheLayout, rows: Tensor) -> Tensor:
        """(len(rows), V) float32: logits of the tokens `rows`, after all keys and values are in the cache.

        ids, positions (N,): the new tokens, one sequence after the other; starts (B + 1,): where each begins. All
        int64. InferenceError for what is out of range.
        """
        logits = torch.empty(len(rows), self._vocabulary)
        new = (ids, positions, starts, cache.lengths, cache.blocks, cache.keys, cache.values)
        arrays = [tensor.numpy() for tensor in new]
        threads = torch.get_num_threads()
        try:
            self._model.forward(*arrays, cache.strides, cache.block_size, rows.numpy(), logits.numpy(), threads)
        except ValueError as error:
            raise InferenceError(f"quantised model: {error}") from None
        return logits


def _numbers(tensor: Tensor) -> Any:
    return tensor.detach().float().contiguous().numpy()


def _norm(norm: nn.Module | None) -> tuple[Any, Any]:
    """(weight, bias) as the kernels take them; (None, None) where there is no norm."""
    if norm is None:
        return None, None
    bias = getattr(norm, "bias", None)
    return _numbers(norm.weight), None if bias is None else _numbers(bias)  # type: ignore[arg-type]
