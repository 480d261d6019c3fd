"""tinylm.inference: matrix products in tiles of one fixed shape, so that a row's bits depend on no other row.

A library picks its kernel, and with it the order of a sum, by the number of rows: the same token then gets other last
bits alone than in a batch. With every product of the same shape there is one order (He et al. 2025, "Defeating
nondeterminism in LLM inference"). It costs padding where rows are few and calls where they are many. Attention's part
is in `paged_cache.py`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinylm.inference._errors import InferenceError
from tinylm.inference.quantization import QuantizedTransformer
from tinylm.model import Transformer

ROWS = 16  # of a tile


def tiled(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., K) @ weightᵀ + bias, ROWS rows at a time; the last tile is filled up with zeros."""
    rows = x.reshape(-1, x.shape[-1])
    padded = rows.new_zeros(-(-len(rows) // ROWS) * ROWS, rows.shape[1])
    padded[: len(rows)] = rows
    out = torch.cat([F.linear(tile, weight, bias) for tile in torch.split(padded, ROWS)])
    return out[: len(rows)].view(*x.shape[:-1], len(weight))


class TiledLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return tiled(x, self.weight, self.bias)


class TiledTransformer(Transformer):
    def forward(self, ids: Tensor, *args: Tensor, logits_at: Tensor, **rest: Tensor) -> Tensor:  # type: ignore[override]
        """As `Transformer.forward`; the head is applied to the rows `logits_at` in tiles."""
        hidden = self.hidden(ids, *args, **rest)  # type: ignore[arg-type]
        return tiled(hidden[:, logits_at], self.head_weight, None)


def use_tiles(model: Transformer) -> None:
    """Makes all of the model's products tiled, in place. Quantised models need it not: their kernels do so anyway."""
    if isinstance(model, QuantizedTransformer) or type(model) is TiledTransformer:
        return
    if model.config.experts:
        raise InferenceError("batch_invariant=True does not carry experts: which rows meet there depends on the batch")
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.__class__ = TiledLinear
    model.__class__ = TiledTransformer
