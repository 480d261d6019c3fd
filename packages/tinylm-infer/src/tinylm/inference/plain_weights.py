"""`use_kernels`: weights as they are, float32 or bfloat16, through the compiled forward pass where few tokens are new.

One new token reads every weight once and does two operations with it: memory decides. PyTorch makes some two hundred
calls for it, and reads weights in pages of 4 KB; here all matrices lie in one piece of memory in large pages, in the
order of use, and a step is one call. With many new tokens (a prompt) arithmetic decides: the pass is PyTorch's, with
its products, or with the kernels' where weights and instructions are for bfloat16: all work on the same memory. In the
compiled pass numbers are float32 between the matrices, also where the weights, and with them the cache, are bfloat16;
instructions that multiply bfloat16 only take each number as two. Not here: 8 and 4 bits (quantization/), the pass
itself (decoder.py). Next: decoder.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinylm.inference import kernels
from tinylm.inference.decoder import CompiledTransformer, Decoder, attend_long, plain_matrix, rows_at
from tinylm.model import Cache, KVCache, Transformer
from tinylm.model.rope import Rotation
from tinylm.model.transformer import MLP, Attention, TapDict

MOST = 8  # new tokens: there PyTorch's products draw level in bfloat16 (benchmarks/decode.py, batch 8)
MOST_IN_TILES = 64  # the same where instructions for bfloat16 are used (kernels_amx.cpp, kernels_avx512_bf16.cpp)
_LINE = 64  # bytes: each matrix begins at a cache line


class KernelLinear(nn.Linear):
    """A prompt's product in bfloat16: about a quarter less time than PyTorch's, which turns the weights as well."""

    matrix: Any  # the kernels'

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.requires_grad else self.product(x, gelu=False)

    def product(self, x: Tensor, gelu: bool) -> Tensor:
        """x (..., inputs) -> (..., outputs), all bfloat16; with GELU (tanh) afterwards, if wanted."""
        rows = x.reshape(-1, self.in_features).contiguous()
        out = x.new_empty(len(rows), self.out_features)
        numbers = (tensor.view(torch.uint16).numpy() for tensor in (rows, out))
        self.matrix.product(*numbers, gelu, torch.get_num_threads())
        return out.view(*x.shape[:-1], self.out_features)


class KernelMLP(MLP):
    """GELU in one pass over memory; PyTorch's tanh form takes about three times as long (docs/log.md)."""

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.up, KernelLinear):
            return self.down(self.up.product(x, gelu=True))  # type: ignore[no-any-return]
        inner = self.up(x)
        numbers = inner.view(torch.uint16) if inner.dtype == torch.bfloat16 else inner
        threads = torch.get_num_threads()
        kernels._compiled().gelu(numbers.flatten().numpy(), kernels.instruction_set(), threads)
        out: Tensor = self.down(inner)
        return out


class KernelAttention(Attention):
    """A prompt's attention in bfloat16 over a KVCache; a PagedCache finds the kernel by itself."""

    def forward(
        self, x: Tensor, cos_sin: Rotation | None, mask: Tensor | None, cache: Cache | None, taps: TapDict | None
    ) -> Tensor:
        own = type(cache) is KVCache and mask is None and not x.requires_grad
        return super().forward(x, cos_sin, mask, _InKernels(cache) if own else cache, taps)  # type: ignore[arg-type]


class _InKernels:
    """A KVCache whose queries are answered by the kernels."""

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, window: int | None = None
    ) -> Tensor:
        return attend_long(q, *self._cache.keep(layer, k, v, q.dtype), mask, window)


class PlainTransformer(CompiledTransformer):
    """What `use_kernels` makes of a Transformer."""

    _most: float = MOST
    _head: Any = None  # the kernels' matrix, in bfloat16

    def forward_in_torch(
        self,
        ids: Tensor,
        positions: Tensor | None,
        mask: Tensor | None,
        cache: Cache | None,
        taps: dict[str, Tensor] | None,
        logits_at: Sequence[int] | Tensor | None,
    ) -> Tensor:
        """As `Transformer.forward`. A prompt wants one row of logits: its head is read as for one token."""
        if self._head is None or taps is not None or logits_at is None:
            return super().forward_in_torch(ids, positions, mask, cache, taps, logits_at)
        hidden = rows_at(self.hidden(ids, positions, mask, cache), logits_at)
        rows = hidden.reshape(-1, hidden.shape[-1])
        if len(rows) > self._most:
            return F.linear(hidden, self.head_weight)
        logits = torch.empty(len(rows), len(self.head_weight))
        self._head.linear(rows.float().numpy(), logits.numpy(), torch.get_num_threads())
        return logits.view(*hidden.shape[:-1], len(self.head_weight))  # of no rows where a prompt goes on


def use_kernels(model: Transformer) -> None:
    """Lets steps of few tokens take the compiled way, in place; a model that it cannot carry stays as it is: on a GPU,
    in float16, with experts, quantised already, or where the kernels are not installed."""
    weight = model.embed.weight
    carried = weight.dtype in (torch.float32, torch.bfloat16) and weight.device.type == "cpu"
    if type(model) is not Transformer or not carried or model.config.experts or not kernels.available():
        return
    _move_together(model)
    model.__class__ = PlainTransformer
    matrices = {}
    for module in model.blocks.modules():
        if type(module) is MLP and module.gate is None:
            module.__class__ = KernelMLP
        if type(module) is Attention and weight.dtype == torch.bfloat16 and kernels.multiplies_bfloat16():
            module.__class__ = KernelAttention
        if isinstance(module, nn.Linear):
            matrices[module] = matrix = plain_matrix(module.weight, module.bias)
            if getattr(matrix, "takes_prompts", False):  # a module that was built before has none
                module.__class__ = KernelLinear
                module.matrix = matrix
    assert isinstance(model, PlainTransformer)
    head = plain_matrix(model.head_weight)
    if weight.dtype == torch.bfloat16:
        model._head = head
        model._most = MOST_IN_TILES if kernels.multiplies_bfloat16() else MOST
    model._decoder = Decoder(model, matrices.__getitem__, head)


def _move_together(model: Transformer) -> None:
    """All matrices into one piece of memory, in the order in which a step reads them."""
    linears = [module.weight for module in model.blocks.modules() if isinstance(module, nn.Linear)]
    weights = [*linears, model.head_weight]
    if model.head_weight is not model.embed.weight:
        weights.append(model.embed.weight)
    sizes = [-(-weight.nbytes // _LINE) * _LINE for weight in weights]
    memory = torch.from_numpy(kernels._compiled().allocate(sum(sizes)))
    for weight, end, size in zip(weights, accumulate(sizes), sizes, strict=True):
        place = memory[end - size : end - size + weight.nbytes].view(weight.dtype).view(weight.shape)
        place.copy_(weight.detach())
        weight.data = place
