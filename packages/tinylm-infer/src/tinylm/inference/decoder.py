"""A whole forward pass in one call of C++: `Decoder` holds a model's matrices, norms and tables, `CompiledTransformer`
calls it where it can.

A step of a small model is a few milliseconds, of which fifty calls from Python and as many small tensors take one or
two. What is computed is what `tinylm.model.Transformer` computes, read there; the C++ is `src/kernels/decoder.hpp`. It
writes keys and values into the caller's cache. Not here: the matrices, of 8 and 4 bits in `quantization/`, as they are
in `plain_weights.py`. Next: plain_weights.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tinylm.inference import kernels
from tinylm.inference._errors import InferenceError
from tinylm.model import Cache, KVCache, Transformer
from tinylm.model.attention import attend
from tinylm.model.rope import rotation

_LONG = 16  # new tokens of a text from which on the kernels' attention of a prompt is worth turning its keys


@dataclass(frozen=True)
class CacheLayout:
    """Where a cache keeps B sequences: token t of sequence b and layer l, head h, at

        l · strides[0] + blocks[b, t // block_size] · strides[1] + h · strides[2] + (t % block_size) · strides[3]

    of `keys` and `values`, contiguous tensors, both float32 or both bfloat16; strides count numbers. lengths (B,)
    int64: tokens in it so far.
    """

    keys: Tensor
    values: Tensor
    blocks: Tensor
    lengths: Tensor
    block_size: int
    strides: tuple[int, int, int, int]

    def arrays(self) -> list[Any]:
        """lengths, blocks, keys and values as the kernels take them, bfloat16 as its 16 bits."""
        kept = [_bits(self.keys), _bits(self.values)]
        return [tensor.numpy() for tensor in (self.lengths, self.blocks, *kept)]


def kept_by_kernels(numbers: Tensor) -> bool:
    """Whether the kernels read and write such keys and values."""
    return numbers.dtype in (torch.float32, torch.bfloat16) and numbers.device.type == "cpu" and kernels.available()


def layout_of(cache: object) -> CacheLayout | None:
    """The layout of a KVCache (each sequence is one block), or None where the kernels cannot use it."""
    if not isinstance(cache, KVCache) or not kept_by_kernels(cache.keys):
        return None
    batch, room = cache.keys.shape[1], cache.keys.shape[3]
    layer, block, head, token, _ = cache.keys.stride()
    blocks, lengths = torch.arange(batch)[:, None], torch.full((batch,), cache.length)
    return CacheLayout(cache.keys, cache.values, blocks, lengths, room, (layer, block, head, token))


def rows_at(hidden: Tensor, logits_at: Sequence[int] | Tensor) -> Tensor:
    """(B, T, D) -> (B, len, D): the positions `logits_at` of `Transformer.forward`."""
    at = torch.as_tensor(logits_at)
    return hidden[:, at] if at.ndim == 1 else hidden.take_along_dim(at[..., None] % hidden.shape[1], dim=1)


def plain_matrix(weight: Tensor, bias: Tensor | None = None) -> Any:
    """The kernels' matrix of a contiguous float32 or bfloat16 weight (outputs, inputs), read where it lies."""
    numbers = weight.detach().view(torch.uint8).flatten().numpy()
    bits = 8 * weight.element_size()
    bias_numbers = None if bias is None else _numbers(bias)
    outputs, inputs = weight.shape
    set_of = kernels.instruction_set()
    return kernels._compiled().Matrix(numbers, outputs, inputs, bits, False, False, bias_numbers, set_of)


class Decoder:
    """The compiled forward pass of `model`. `matrix` gives the kernels' matrix of one of its projections; `head` is the
    head's."""

    def __init__(self, model: Transformer, matrix: Callable[[Any], Any], head: Any) -> None:
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
            embedding=plain_matrix(model.embed.weight),
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
            matrices = [None if linear is None else matrix(linear) for linear in linears]
            self._model.add_layer([_norm(norm) for norm in norms], matrices, config.layer_window(layer) or 0)
        self._model.set_end(_norm(model.final_norm), head)

    def forward(self, ids: Tensor, positions: Tensor, starts: Tensor, cache: CacheLayout, rows: Tensor) -> Tensor:
        """(len(rows), V) float32: logits of the tokens `rows`, after all keys and values are in the cache.

        ids, positions (N,): the new tokens, one sequence after the other; starts (B + 1,): where each begins. All
        int64. InferenceError for what is out of range.
        """
        logits = torch.empty(len(rows), self._vocabulary)
        arrays = [tensor.numpy() for tensor in (ids, positions, starts)] + cache.arrays()
        threads = torch.get_num_threads()
        try:
            self._model.forward(*arrays, cache.strides, cache.block_size, rows.numpy(), logits.numpy(), threads)
        except ValueError as error:
            raise InferenceError(f"the compiled forward pass: {error}") from None
        return logits


class CompiledTransformer(Transformer):
    """A Transformer on the CPU whose passes over few tokens are one call of C++.

    Passes with taps, a mask or another cache go through PyTorch (`forward_in_torch`)."""

    _decoder: Decoder | None = None  # None: without the kernels
    _most: float = torch.inf  # new tokens that are worth the call

    def forward(
        self,
        ids: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
        taps: dict[str, Tensor] | None = None,
        logits_at: Sequence[int] | Tensor | None = None,
    ) -> Tensor:
        """As `Transformer.forward`."""
        if self._decoder is not None and mask is None and taps is None and ids.numel() <= self._most:
            batch, time = ids.shape
            cache = KVCache(self.config, batch, time, dtype=self.embed.weight.dtype) if cache is None else cache
            layout = layout_of(cache)
            if layout is not None:
                return self._compiled(ids, positions, cache, layout, logits_at)
        return self.forward_in_torch(ids, positions, mask, cache, taps, logits_at)

    def forward_in_torch(
        self,
        ids: Tensor,
        positions: Tensor | None,
        mask: Tensor | None,
        cache: Cache | None,
        taps: dict[str, Tensor] | None,
        logits_at: Sequence[int] | Tensor | None,
    ) -> Tensor:
        return super().forward(ids, positions, mask, cache, taps, logits_at)

    def _compiled(
        self,
        ids: Tensor,
        positions: Tensor | None,
        cache: Cache | None,
        layout: CacheLayout,
        logits_at: Sequence[int] | Tensor | None,
    ) -> Tensor:
        assert self._decoder is not None
        batch, time = ids.shape
        if positions is None:
            positions = layout.lengths[:, None] + torch.arange(time)
        rows = torch.arange(batch * time).view(batch, time)
        if logits_at is not None:
            at = torch.as_tensor(logits_at)
            rows = rows[:, at] if at.ndim == 1 else rows.take_along_dim(at % time, dim=1)
        logits = self._decoder.forward(
            ids.flatten().contiguous(),
            positions.expand(batch, time).flatten().contiguous(),
            torch.arange(0, batch * time + 1, time),
            layout,
            rows.flatten().contiguous(),
        )
        if isinstance(cache, KVCache):
            cache.length += time
        return logits.view(*rows.shape, -1)

    def rows_of_logits(
        self, ids: Tensor, positions: Tensor, starts: Tensor, layout: CacheLayout, rows: Tensor
    ) -> Tensor | None:
        """(len(rows), V): `Decoder.forward` over sequences of any lengths; None where PyTorch has to do it."""
        if self._decoder is None or ids.numel() > self._most:
            return None
        return self._decoder.forward(ids, positions, starts, layout, rows)


def attend_few(q: Tensor, starts: Tensor, cache: CacheLayout, kv_heads: int, layer: int, window: int | None) -> Tensor:
    """Attention of new tokens q (N, heads, head_dim), sequence after sequence, in one call; q's shape and type.

    Each attends to what the cache has of its sequence, itself included. starts (B + 1,): where each sequence begins.
    """
    queries = q.float().contiguous()
    out = torch.empty_like(queries)
    kernels._compiled().attend(
        queries.numpy(),
        starts.numpy(),
        *cache.arrays(),
        cache.strides,
        cache.block_size,
        kv_heads,
        layer,
        window or 0,
        out.numpy(),
        kernels.instruction_set(),
        torch.get_num_threads(),
    )
    return out.to(q.dtype)


def attend_long(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, window: int | None = None) -> Tensor:
    """`tinylm.model.attention.attend`, which see; a prompt's in bfloat16 by the kernels, in a quarter of the time."""
    batch, heads, time, size = q.shape
    fits = q.dtype == k.dtype == torch.bfloat16 and q.device.type == "cpu" and size in (32, 64, 96, 128)
    if not (fits and time >= _LONG and mask is None and kernels.multiplies_bfloat16()) or q.requires_grad:
        return attend(q, k, v, mask, window)
    out = q.new_empty(batch, time, heads, size)
    numbers = (_bits(x.transpose(1, 2).contiguous()).numpy() for x in (q, k, v))
    kernels._compiled().attend_long(
        *numbers, window or 0, _bits(out).numpy(), kernels.instruction_set(), torch.get_num_threads()
    )
    return out.transpose(1, 2)


def _bits(numbers: Tensor) -> Tensor:
    return numbers.view(torch.uint16) if numbers.dtype == torch.bfloat16 else numbers


def _numbers(tensor: Tensor) -> Any:
    return tensor.detach().float().contiguous().numpy()


def _norm(norm: nn.Module | None) -> tuple[Any, Any]:
    """(weight, bias) as the kernels take them; (None, None) where there is no norm."""
    if norm is None:
        return None, None
    bias = getattr(norm, "bias", None)
    return _numbers(norm.weight), None if bias is None else _numbers(bias)  # type: ignore[arg-type]
