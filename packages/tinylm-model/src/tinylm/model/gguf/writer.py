"""Writes a GGUF file (version 3): header, pairs, the tensors' places, then their bytes, one tensor in memory at a time.

Not here: which pairs and which types (files.py). Source: the GGUF specification in the ggml project. Next: files.py.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tinylm.model._atomic import atomic_path
from tinylm.model._errors import ModelError
from tinylm.model.gguf.blocks import BlockType, encode
from tinylm.model.gguf.reader import ALIGNMENT, ARRAY, MAGIC, SCALARS, STRING, Pair


@dataclass(frozen=True)
class Source:
    """A tensor to write: its shape in PyTorch's order, its type, and what gives its numbers when their turn comes."""

    shape: tuple[int, ...]
    kind: BlockType
    numbers: Callable[[], NDArray[np.float32]]

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return int(np.prod(self.shape)) // self.kind.numbers * self.kind.size


def write(path: Path, pairs: Mapping[str, Pair], tensors: Mapping[str, Source]) -> None:
    """Write the file whole or not at all. ModelError where a type cannot hold what a tensor has."""
    header = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(pairs))]
    header += [_text(key) + struct.pack("<I", pair.kind) + _value(pair) for key, pair in pairs.items()]
    offset = 0
    for name, source in tensors.items():
        sizes = struct.pack(f"<I{len(source.shape)}Q", len(source.shape), *reversed(source.shape))
        header.append(_text(name) + sizes + struct.pack("<IQ", source.kind.id, offset))
        offset += _padded(source.size)
    start = b"".join(header)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(start.ljust(_padded(len(start)), b"\0"))
        for name, source in tensors.items():
            try:
                raw = encode(source.numbers(), source.kind)
            except ModelError as error:
                raise ModelError(f"{path}: {name}: {error}; write another type") from None
            file.write(raw.tobytes().ljust(_padded(source.size), b"\0"))


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _text(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


def _value(pair: Pair) -> bytes:
    if pair.kind == STRING:
        return _text(pair.value)
    if pair.kind != ARRAY:
        return np.array(pair.value).astype(SCALARS[pair.kind]).tobytes()
    assert pair.of is not None  # an array has a type
    start = struct.pack("<IQ", pair.of, len(pair.value))
    if pair.of == STRING:
        return start + b"".join(map(_text, pair.value))
    return start + np.asarray(pair.value).astype(SCALARS[pair.of]).tobytes()
