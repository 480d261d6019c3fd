"""`use_kernels`: weights as they are, float32 or bfloat16, through the compiled forward pass where few tokens are new.

One new token reads every weight once and does two operations with it: memory decides. PyTorch makes some two hundred
calls for it, and reads weights in pages of 4 KB; here all matrices lie in one piece of memory in large pages, in the
order of use, and a step is one call. With many new tokens (a prompt) arithmetic decides, and PyTorch's matrix products
are the better ones: both work on the same memory. Between the matrices, and in the cache, numbers are float32, also
where the weights are bfloat16; AMX, which multiplies bfloat16 only, takes each of them as two. Not here: 8 and 4 bits
(quantization/), the pass itself (decoder.py). Next: decoder.py.
"""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor, nn

from tinylm.inference import kernels
from tinylm.inference.decoder import CompiledTransformer, Decoder, plain_matrix
from tinylm.model import Transformer
from tinylm.model.transformer import MLP

MOST = 8  # new tokens: there PyTorch's products draw level in bfloat16 (benchmarks/decode.py, batch 8)
MOST_IN_TILES = 32  # the same where both use AMX
_LINE = 64  # bytes: each matrix begins at a cache line


class KernelMLP(MLP):
    """GELU in one pass over memory; PyTorch's tanh form takes about three times as long (docs/log.md)."""

    def forward(self, x: Tensor) -> Tensor:
        inner = self.up(x)
        numbers = inner.view(torch.uint16) if inner.dtype == torch.bfloat16 else inner
        threads = torch.get_num_threads()
        kernels._compiled().gelu(numbers.flatten().numpy(), kernels.instruction_set(), threads)
        out: Tensor = self.down(inner)
        return out


class PlainTransformer(CompiledTransformer):
    """What `use_kernels` makes of a Transformer."""

    _most: float = MOST


def use_kernels(model: Transformer) -> None:
    """Lets steps of few tokens take the compiled way, in place; a model that it cannot carry stays as it is: on a GPU,
    in float16, with experts, quantised already, or where the kernels are not installed."""
    weight = model.embed.weight
    carried = weight.dtype in (torch.float32, torch.bfloat16) and weight.device.type == "cpu"
    if type(model) is not Transformer or not carried or model.config.experts or not kernels.available():
        return
    _move_together(model)
    model.__class__ = PlainTransformer
    for module in model.modules():
        if type(module) is MLP and module.gate is None:
            module.__class__ = KernelMLP
    assert isinstance(model, PlainTransformer)
    if weight.dtype == torch.bfloat16 and kernels.instruction_set() == "amx":
        model._most = MOST_IN_TILES
    model._decoder = Decoder(
        model, lambda linear: plain_matrix(linear.weight, linear.bias), plain_matrix(model.head_weight)
    )


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
