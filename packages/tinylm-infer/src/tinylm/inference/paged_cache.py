"""tinylm.inference: keys and values of many sequences in blocks; implements `tinylm.model.Cache`.

A step's tokens come as one row, sequence after sequence, whatever their lengths: the matrices see one product without
padding, and attention looks at each sequence alone, so that its numbers depend on no neighbour. Which block belongs to
whom is decided in `block_manager.py`; what is read in a step, in `scheduler.py`.
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from tinylm.inference import kernels
from tinylm.inference._errors import InferenceError
from tinylm.inference.decoder import CacheLayout, attend_few, attend_long, kept_by_kernels
from tinylm.inference.scheduler import Chunk
from tinylm.model import TransformerConfig
from tinylm.model.attention import attend

Places = Tensor | slice

_FEW = 8  # new tokens of a text; its attention is then a matter of reading the cache, and of calling


@dataclass(frozen=True)
class _Span:
    """One sequence in this step: its rows among the step's tokens, and the slots of all its tokens, cached and new."""

    begin: int
    end: int
    slots: Places


@dataclass(frozen=True)
class _Few:
    """The sequences of a step with few new tokens: their numbers, their rows, where each begins among these, and where
    their cache is."""

    numbers: set[int]
    rows: Tensor
    starts: Tensor
    layout: CacheLayout


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
        large_pages: bool = True,
    ) -> None:
        shape = (config.depth, config.kv_heads, blocks * block_size, config.head_dim)
        self.keys, self.values = (_empty(shape, device, dtype, large_pages) for _ in range(2))
        self.block_size = block_size
        self._one_query_at_a_time = one_query_at_a_time
        self._spans: list[_Span] = []
        self._new: Places = slice(0)
        self._chunks: Items[Chunk] = ()
        self._few: _Few | None = None

    def begin(self, chunks: Items[Chunk]) -> None:
        """The next forward pass is over these chunks, in this order."""
        self._chunks, self._spans = chunks, []

    def _find(self, chunks: Items[Chunk]) -> None:
        """The places of these chunks, which only `attend` needs."""
        new, row = list[int](), 0
        self._few = None
        for chunk in chunks:
            cached, table = chunk.sequence.cached, chunk.sequence.table
            slots = self._slots(table, cached + chunk.count)
            self._spans.append(_Span(row, row + chunk.count, _as_places(slots, self.keys.device)))
            new += slots[cached:]
            row += chunk.count
        self._new = _as_places(new, self.keys.device)
        if kept_by_kernels(self.keys) and not self._one_query_at_a_time and len(chunks) > 1:
            few = [number for number, chunk in enumerate(chunks) if chunk.count <= _FEW]
            if few:
                counts = torch.tensor([0, *(chunks[number].count for number in few)])
                rows = [row for number in few for row in range(self._spans[number].begin, self._spans[number].end)]
                self._few = _Few(set(few), torch.tensor(rows), counts.cumsum(0), self._layout([chunks[i] for i in few]))

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, window: int | None = None
    ) -> Tensor:
        """q (1, heads, N, head_dim), k and v (1, kv_heads, N, head_dim): the step's N tokens. Returns q's shape."""
        if mask is not None:
            raise InferenceError("PagedCache takes no mask: sequences of different lengths need no padding here")
        if not self._spans:
            self._find(self._chunks)
        keys, values = self.keys[layer], self.values[layer]
        keys[:, self._new], values[:, self._new] = k[0].to(keys.dtype), v[0].to(keys.dtype)
        if len(self._spans) == 1 and not self._one_query_at_a_time:
            slots = self._spans[0].slots
            if self._chunks[0].sequence.cached == 0:  # what came is all there is
                return attend_long(q, k, v, None, window)
            return attend_long(q, keys[None, :, slots].to(q.dtype), values[None, :, slots].to(q.dtype), None, window)
        out = torch.empty_like(q)
        if self._few is not None:
            rows, kv_heads = self._few.rows, keys.shape[0]
            queries = q[0].transpose(0, 1)[rows]
            done = attend_few(queries, self._few.starts, self._few.layout, kv_heads, layer, window)
            out[0, :, rows] = done.transpose(0, 1)
        for number, span in enumerate(self._spans):
            if self._few is not None and number in self._few.numbers:
                continue
            mine = slice(span.begin, span.end)
            visible = keys[None, :, span.slots].to(q.dtype), values[None, :, span.slots].to(q.dtype)
            step = self._query_by_query if self._one_query_at_a_time else attend_long
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
        """Where everything is, for the compiled forward pass."""
        return self._layout(self._chunks)

    def _layout(self, chunks: Items[Chunk]) -> CacheLayout:
        tables = [chunk.sequence.table for chunk in chunks]
        longest = max(map(len, tables))
        blocks = torch.tensor([table + [0] * (longest - len(table)) for table in tables])
        lengths = torch.tensor([chunk.sequence.cached for chunk in chunks])
        layer, head, token, _ = self.keys.stride()
        strides = (layer, token * self.block_size, head, token)
        return CacheLayout(self.keys, self.values, blocks, lengths, self.block_size, strides)

    def _slots(self, table: Items[int], length: int) -> list[int]:
        size = self.block_size
        slots = [block * size + i for block in table for i in range(size)]
        return slots[:length]


def _empty(
    shape: tuple[int, ...], device: torch.device | str | None, dtype: torch.dtype | None, large_pages: bool
) -> Tensor:
    """On a CPU in the system's large pages, if wanted: a step of many texts reads blocks from all over the cache. The
    first token touches one for each layer and head, 2 MB to be cleared: most of a second before one short text."""
    if not large_pages or torch.device(device or "cpu").type != "cpu" or not kernels.available():
        return torch.empty(shape, device=device, dtype=dtype)
    kind = dtype or torch.get_default_dtype()
    memory = torch.from_numpy(kernels._compiled().allocate(prod(shape) * kind.itemsize))
    return memory.view(kind).view(shape)


def _as_places(slots: list[int], device: torch.device) -> Places:
    """A slice where the slots follow one another, which reads without a copy; else a tensor of them."""
    if slots == list(range(slots[0], slots[0] + len(slots))):
        return slice(slots[0], slots[0] + len(slots))
    return torch.tensor(slots, device=device)
