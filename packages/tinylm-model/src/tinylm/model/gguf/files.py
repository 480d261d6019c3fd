"""A whole GGUF file into a Transformer, and back.

Not here: bytes (reader.py, writer.py), names (layout.py), pairs (metadata.py). Next: layout.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tinylm.model._errors import ModelError
from tinylm.model.gguf import rope
from tinylm.model.gguf.blocks import NAMED, BlockType
from tinylm.model.gguf.layout import Placed, check_shapes, tensors, to_halves, to_neighbours
from tinylm.model.gguf.metadata import read_config, write_config
from tinylm.model.gguf.reader import GGUF, UINT32, Pair
from tinylm.model.gguf.writer import Source, write
from tinylm.model.initialization import uninitialized
from tinylm.model.transformer import Transformer

KINDS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
_FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}  # general.file_type, for people


def load(
    path: str | os.PathLike[str], dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Transformer:
    """The model of a GGUF file. dtype: None is float32, in which every type that is read is exact.

    Errors: ModelError for a damaged file, another architecture, tensors missing or misshapen, numbers that are NaN.
    """
    file = GGUF(path)
    config = read_config(file)
    check_shapes(config, {name: tensor.shape for name, tensor in file.tensors.items()}, str(path))
    with uninitialized():
        model = Transformer(config)
    sizes = {name: parameter.shape[0] for name, parameter in model.named_parameters()}
    for name, placed in tensors(config).items():
        numbers = file.numbers(name)
        numbers = to_halves(numbers, placed.heads) if placed.heads else numbers
        whole = torch.from_numpy(numbers).to(device=device, dtype=dtype or torch.float32)
        if not torch.isfinite(whole).all():
            raise ModelError(
                f"{path}: wanted numbers in {name} as {whole.dtype}, got some that are NaN or infinite; take the file "
                "anew, or a dtype of wider range"
            )
        pieces = torch.split(whole, [sizes[part] for part in placed.parts])
        for part, piece in zip(placed.parts, pieces, strict=True):
            _put(model, part, piece if len(placed.parts) == 1 else piece.clone())
    return model


def save(model: Transformer, path: str | os.PathLike[str], kind: str, tokenizer: Mapping[str, Pair]) -> None:
    """Write the model as one GGUF file, whole or not at all. kind: a key of KINDS; tokenizer: its pairs, if any.

    As llama.cpp wants it, norms, biases, routers and learned positions stay float32, and in q8_0 a matrix whose rows
    are no multiple of 32 becomes float16. ModelError for a shape without an architecture there, and for NaN or a number
    that is too large for the type.
    """
    if kind not in KINDS:
        raise ModelError(f"GGUF: wanted one of {', '.join(KINDS)}, got {kind!r}")
    weights = dict(model.named_parameters())
    chosen = NAMED[KINDS[kind]]
    sources = {}
    for name, placed in tensors(model.config).items():
        first = weights[placed.parts[0]]
        shape = (sum(weights[part].shape[0] for part in placed.parts), *first.shape[1:])
        sources[name] = Source(shape, _kind(name, shape, chosen), _numbers(weights, placed))
    divisors = rope.llama3_divisors(model.config)
    if divisors is not None:
        sources[rope.TENSOR] = Source(divisors.shape, NAMED["F32"], lambda: divisors)
    pairs = write_config(model.config, Path(path).stem)
    pairs["general.file_type"] = Pair(UINT32, _FILE_TYPES[chosen.name])
    pairs["general.quantization_version"] = Pair(UINT32, 2)
    write(Path(path), {**pairs, **tokenizer}, sources)


def _kind(name: str, shape: tuple[int, ...], chosen: BlockType) -> BlockType:
    if len(shape) == 1 or name == "position_embd.weight" or "ffn_gate_inp" in name:
        return NAMED["F32"]
    return NAMED["F16"] if shape[-1] % chosen.numbers else chosen


def _numbers(weights: Mapping[str, Tensor], placed: Placed) -> Callable[[], NDArray[np.float32]]:
    def give() -> NDArray[np.float32]:
        whole = torch.cat([weights[part].detach().float().cpu() for part in placed.parts]).numpy()
        return to_neighbours(whole, placed.heads) if placed.heads else whole

    return give


def _put(model: Transformer, name: str, tensor: Tensor) -> None:
    module, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(module), leaf, nn.Parameter(tensor))
