"""tinylm.inference: keys and values of many sequences in blocks; implements `tinylm.model.Cache`.

A step's tokens come as one row, sequence after sequence, whatever their lengths: the matrices see one product without
padding, and attention looks at each sequence alone, so that its numbers depend on no neighbour. Which block belongs to
whom is decided in `block_manager.py`; what is read in a step, in `scheduler.py`.
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
from torch import Tensor

from tinylm.inference._errors import InferenceError
from tinylm.inference.decoder import CacheLayout
from tinylm.inference.scheduler import Chunk
from tinylm.model import TransformerConfig
from tinylm.model.attention import attend

Places = Tensor | slice


@dataclass(frozen=True)
class _Span:
    """One sequence in this step: its rows among the step's tokens, and the slots of all its tokens, cached and new."""

    begin: int
    end: int
    slots: Places


class PagedCache:
    """`blocks` blocks of `block_size` tokens for every layer. Slot s is token s % block_size of block s // block_size.

    Memory: 2 · layers · kv_heads · blocks · block_size · head_dim numbers; the system gives it page by page when it is
    first written. Call `begin` before each forward pass over a step's tokens. For inference only.
    """

    def __init__(
        self,
        config: TransformerConfig,
        blocks: int,
        block_size: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        one_query_at_a_time: bool = False,
    ) -> None:
        shape = (config.depth, config.kv_heads, blocks * block_size, config.head_dim)
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.block_size = block_size
        self._one_query_at_a_time = one_query_at_a_time
        self._spans: list[_Span] = []
        self._new: Places = slice(0)
        self._chunks: Items[Chunk] = ()

    def begin(self, chunks: Items[Chunk]) -> None:
        """The next forward pass is over these chunks, in this order."""
        self._spans, self._chunks, new, row = [], chunks, [], 0
        for chunk in chunks:
            cached, table = chunk.sequence.cached, chunk.sequence.table
            slots = self._slots(table, cached + chunk.count)
            self._spans.append(_Span(row, row + chunk.count, _as_places(slots, self.keys.device)))
            new += slots[cached:]
            row += chunk.count
        self._new = _as_places(new, self.keys.device)

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, window: int | None = None
    ) -> Tensor:
        """q (1, heads, N, head_dim), k and v (1, kv_heads, N, head_dim): the step's N tokens. Returns q's shape."""
        if mask is not None:
            raise InferenceError("PagedCache takes no mask: sequences of different lengths need no padding here")
        keys, values = self.keys[layer], self.values[layer]
        keys[:, self._new], values[:, self._new] = k[0].to(keys.dtype), v[0].to(keys.dtype)
        if len(self._spans) == 1 and not self._one_query_at_a_time:
            slots = self._spans[0].slots
            if self._chunks[0].sequence.cached == 0:  # what came is all there is
                return attend(q, k, v, None, window)
            return attend(q, keys[None, :, slots].to(q.dtype), values[None, :, slots].to(q.dtype), None, window)
        out = torch.empty_like(q)
        for span in self._spans:
            mine = slice(span.begin, span.end)
            visible = keys[None, :, span.slots].to(q.dtype), values[None, :, span.slots].to(q.dtype)
            step = self._query_by_query if self._one_query_at_a_time else attend
            out[:, :, mine] = step(q[:, :, mine], *visible, None, window)
        return out

    @staticmethod
    def _query_by_query(q: Tensor, k: Tensor, v: Tensor, _: None, window: int | None) -> Tensor:
        """The same numbers however a text is cut into chunks: each call's shapes follow from the position alone."""
        before = k.shape[2] - q.shape[2]
        seen = [(before + i + 1, q[:, :, i : i + 1].contiguous()) for i in range(q.shape[2])]
        rows = [attend(one, k[:, :, :end].contiguous(), v[:, :, :end].contiguous(), None, window) for end, one in seen]
        return torch.cat(rows, dim=2)

    def layout(self) -> CacheLayout:
        """Where everything is, for the compiled forward pass of quantised models."""
        tables = [chunk.sequence.table for chunk in self._chunks]
        longest = max(map(len, tables))
        blocks = torch.tensor([table + [0] * (longest - len(table)) for table in tables])
        lengths = torch.tensor([chunk.sequence.cached for chunk in self._chunks])
        layer, head, token, _ = self.keys.stride()
        strides = (layer, token * self.block_size, head, token)
        return CacheLayout(self.keys, self.values, blocks, lengths, self.block_size, strides)

    def _slots(self, table: Items[int], length: int) -> list[int]:
        size = self.block_size
        slots = [block * size + i for block in table for i in range(size)]
        return slots[:length]


def _as_places(slots: list[int], device: torch.device) -> Places:
    """A slice where the slots follow one another, which reads without a copy; else a tensor of them."""
    if slots == list(range(slots[0], slots[0] + len(slots))):
        return slice(slots[0], slots[0] + len(slots))
    return torch.tensor(slots, device=device)
