"""A GGUF file whose matrices are of 4 or 8 bits, run as it is: `load_gguf` takes its blocks, rounding nothing again.

Q4_0, Q4_1 and Q8_0 keep 32 numbers with a float16 scale (Q4_1: and a minimum), and so do our matrices: the numbers are
only put into another order. A matrix of another type (F16, Q6_K, ...) is decoded and rounded to int8, a scale for each
output. Not here: the file itself (tinylm.model.gguf), whose checks are all made. Next: packing.py.
"""

from __future__ import annotations

import math
import os

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tinylm.inference._errors import InferenceError
from tinylm.inference.quantization.model import QuantizedTransformer
from tinylm.inference.quantization.weights import GROUP, QuantizedWeight, round_weight
from tinylm.model import Transformer
from tinylm.model.gguf.layout import Placed, check_shapes, tensors, to_halves
from tinylm.model.gguf.metadata import read_config
from tinylm.model.gguf.reader import GGUF
from tinylm.model.initialization import uninitialized

_BLOCKS = ("Q4_0", "Q4_1", "Q8_0")


def is_quantized(path: str | os.PathLike[str]) -> bool:
    """Whether most matrices of the file are in blocks that run as they are."""
    kinds = [tensor.kind.name in _BLOCKS for tensor in GGUF(path).tensors.values() if len(tensor.shape) == 2]
    return 2 * sum(kinds) > len(kinds)


def load_gguf(path: str | os.PathLike[str]) -> QuantizedTransformer:
    """The model of a GGUF file, for the CPU. Errors: as `tinylm.model.gguf.files.load`, and InferenceError for experts.

    `scheme` is "gguf". The embedding, of which a token reads one row, is decoded to float32.
    """
    file = GGUF(path)
    config = read_config(file)
    check_shapes(config, {name: tensor.shape for name, tensor in file.tensors.items()}, str(path))
    if config.experts:
        raise InferenceError(f"{path}: quantised experts do not run here; open it with dtype='float32'")
    with uninitialized():
        model = Transformer(config)
    matrices = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    sizes = {name: parameter.shape[0] for name, parameter in model.named_parameters()}
    found: dict[str, QuantizedWeight] = {}
    for name, placed in tensors(config).items():
        owners = [part.rpartition(".")[0] for part in placed.parts]
        if owners[0] in matrices and placed.parts[0].endswith(".weight"):
            whole = _weight(file, name, placed)
            found |= zip(owners, _split(whole, [sizes[part] for part in placed.parts]), strict=True)
        else:
            numbers = _finite(file, name, file.numbers(name))
            for part, piece in zip(placed.parts, torch.split(numbers, [sizes[p] for p in placed.parts]), strict=True):
                owner, _, leaf = part.rpartition(".")
                setattr(model.get_submodule(owner), leaf, nn.Parameter(piece, requires_grad=False))
    if config.tie_embeddings:
        found["head"] = _weight(file, "token_embd.weight", Placed(("embed.weight",)))
    order = [name for name in (n for n, _ in model.named_modules()) if name in found and name != "head"]
    return QuantizedTransformer(model, "gguf", {name: found[name] for name in [*order, "head"]})


def _weight(file: GGUF, name: str, placed: Placed) -> QuantizedWeight:
    """A matrix in its own blocks, its rows in our order; rounded to int8 where it has others."""
    tensor = file.tensors[name]
    outputs = tensor.shape[0]
    if tensor.kind.name in _BLOCKS:
        blocks = file.blocks(name).reshape(outputs, -1, tensor.kind.size)
        blocks = to_halves(blocks, placed.heads) if placed.heads else blocks
        weight = _from_blocks(tensor.kind.name, blocks)
        for part in (weight.scales, weight.minima):
            if part is not None:
                _finite(file, name, part.float().numpy())
        if weight.bits == 4 or int(weight.numbers.min()) > -128:  # which ggml does not write
            return weight
    numbers = _finite(file, name, file.numbers(name)).numpy()
    return round_weight(torch.from_numpy(to_halves(numbers, placed.heads) if placed.heads else numbers), 8)


def _from_blocks(kind: str, blocks: NDArray[np.uint8]) -> QuantizedWeight:
    """blocks (outputs, groups, bytes), as tinylm.model.gguf.blocks describes them."""
    halves = np.ascontiguousarray(blocks[..., :4]).view(np.float16)
    scales = torch.from_numpy(np.ascontiguousarray(halves[..., 0]))
    outputs = len(blocks)
    if kind == "Q8_0":
        numbers = np.ascontiguousarray(blocks[..., 2:]).view(np.int8).reshape(outputs, -1)
        return QuantizedWeight(torch.from_numpy(numbers), scales, None, 8)
    packed = blocks[..., -GROUP // 2 :]
    numbers = np.concatenate((packed & 15, packed >> 4), axis=-1).view(np.int8).reshape(outputs, -1)
    minima = torch.from_numpy(np.ascontiguousarray(halves[..., 1])) if kind == "Q4_1" else None
    return QuantizedWeight(torch.from_numpy(numbers), scales, minima, 4)


def _split(weight: QuantizedWeight, sizes: list[int]) -> list[QuantizedWeight]:
    numbers, scales = torch.split(weight.numbers, sizes), torch.split(weight.scales, sizes)
    minima = [None] * len(sizes) if weight.minima is None else torch.split(weight.minima, sizes)
    return [QuantizedWeight(n, s, m, weight.bits) for n, s, m in zip(numbers, scales, minima, strict=True)]


def _finite(file: GGUF, name: str, numbers: NDArray[np.float32]) -> Tensor:
    tensor = torch.from_numpy(numbers)
    if not all(math.isfinite(end) for end in tensor.aminmax()):  # both pass a NaN on
        raise InferenceError(f"{file.path}: wanted numbers in {name}, got some that are NaN or infinite; take it anew")
    return tensor
