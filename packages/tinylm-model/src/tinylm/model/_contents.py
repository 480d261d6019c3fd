"""What is inside a checkpoint, Hugging Face directory or GGUF file: every tensor is read and checked, none is kept.

Not here: making a model of it (checkpoint.py, gguf/files.py), showing it (_report.py). Next: _report.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinylm.model._errors import ModelError
from tinylm.model._files import is_gguf
from tinylm.model._layout import shapes
from tinylm.model.config import TransformerConfig


@dataclass(frozen=True)
class Contents:
    """parameters: ours -> (shape, type in the file, numbers); size: bytes of the weights in the file."""

    kind: str
    config: TransformerConfig
    parameters: dict[str, tuple[tuple[int, ...], str, int]]
    size: int
    notes: dict[str, str]

    @property
    def dtype(self) -> str:
        """The type of most numbers."""
        counts: dict[str, int] = {}
        for _, kind, count in self.parameters.values():
            counts[kind] = counts.get(kind, 0) + count
        return max(counts, key=lambda kind: counts[kind])


def read_contents(path: Path) -> Contents:
    """ModelError says what is wrong with the files, as loading them would."""
    return _gguf(path) if is_gguf(path) else _huggingface(path)


def _huggingface(path: Path) -> Contents:
    from tinylm.model._layout import tensors
    from tinylm.model.checkpoint import check_numbers, checked_tensors, read_config, read_provenance

    config = read_config(path)
    table, size = tensors(config), 0
    kinds: dict[str, str] = {}
    with checked_tensors(path, config) as found:
        for name, (file, stored) in found.items():
            tensor = file.get_tensor(stored)
            check_numbers(path, name, tensor)
            kinds |= dict.fromkeys(table[name].parts, str(tensor.dtype).removeprefix("torch."))
            size += tensor.nbytes
    notes = {f"written with {key}": value for key, value in read_provenance(path).items()}
    return Contents("Hugging Face", config, _parameters(config, kinds), size, notes)


def _gguf(path: Path) -> Contents:
    from tinylm.model.gguf.layout import check_shapes, tensors
    from tinylm.model.gguf.metadata import read_config
    from tinylm.model.gguf.reader import GGUF

    file = GGUF(path)
    config = read_config(file)
    check_shapes(config, {name: tensor.shape for name, tensor in file.tensors.items()}, str(path))
    kinds: dict[str, str] = {}
    for name, placed in tensors(config).items():
        if not np.isfinite(file.numbers(name)).all():
            raise ModelError(f"{path}: wanted numbers in {name}, got some that are NaN or infinite; take the file anew")
        kinds |= dict.fromkeys(placed.parts, file.tensors[name].kind.name)
    notes = {key.removeprefix("general."): str(file.get(key)) for key in ("general.name", "general.license")}
    tokens = file.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list | None):
        raise ModelError(f"{path}: wanted tokenizer.ggml.tokens to be a list of texts, got {tokens!r:.80}")
    notes["tokenizer"] = "none" if tokens is None else f"{file.get('tokenizer.ggml.model')}, {len(tokens):,} tokens"
    size = sum(tensor.size for tensor in file.tensors.values())
    said = {key: value for key, value in notes.items() if value != "None"}
    return Contents(f"GGUF version {file.version}", config, _parameters(config, kinds), size, said)


def _parameters(config: TransformerConfig, kinds: dict[str, str]) -> dict[str, tuple[tuple[int, ...], str, int]]:
    return {name: (shape, kinds[name], math.prod(shape)) for name, shape in shapes(config).items()}
