"""A GGUF file's bytes: the header, the pairs, where each tensor lies. Everything is checked before it is believed.

    "GGUF", version, counts of tensors and pairs | pairs: key, type, value | tensors: name, sizes, type, offset | data

Whole numbers are little-endian, a string is a 64-bit length and UTF-8, sizes are written fastest first (a matrix of
PyTorch's shape (rows, columns) as columns, rows), offsets count from the start of the data and are multiples of the
alignment. Nothing is read into memory but the header: tensors are mapped. Not here: what the pairs mean (metadata.py),
the numbers of a block (blocks.py). Source: the GGUF specification, version 3, in the ggml project. Next: metadata.py.
"""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from tinylm.model._errors import ModelError
from tinylm.model.gguf.blocks import OTHERS, TYPES, BlockType, decode

MAGIC, VERSIONS, ALIGNMENT = b"GGUF", (2, 3), 32
# types of a value, by number; a bool is one byte
SCALARS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "u1", 10: "<u8", 11: "<i8", 12: "<f8"}
UINT32, FLOAT32, BOOL, STRING, ARRAY, INT32 = 4, 6, 7, 8, 9, 5
_MOST_SIZES = 4  # dimensions of a tensor
_LONGEST_NAME = 1 << 16


@dataclass(frozen=True)
class Pair:
    """A value and its type in the file. An array has `kind` ARRAY and the type of its elements in `of`; numbers come
    as a NumPy array, strings as a list."""

    kind: int
    value: Any
    of: int | None = None


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies. shape: PyTorch's order, slowest first. offset: from the start of the file."""

    shape: tuple[int, ...]
    kind: BlockType
    offset: int
    size: int


class GGUF:
    """An open GGUF file. Raises ModelError for a file that is damaged, or that holds what is not read here."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            length = self.path.stat().st_size
            with self.path.open("rb") as file:
                start = file.read(4)
            self._data = np.memmap(self.path, np.uint8, mode="r") if length else np.empty(0, np.uint8)
        except FileNotFoundError:
            raise ModelError(f"{path}: wanted a GGUF file, got none; check the path") from None
        if start != MAGIC:
            self._wrong(f"the first four bytes {MAGIC!r}", f"{start!r}: this is no GGUF file")
        self._bytes = memoryview(self._data.data)
        self._at = 4
        self.version = int(self._number("<I"))
        if self.version not in VERSIONS:
            swapped = int.from_bytes(self.version.to_bytes(4, "little"), "big")
            what = "a big-endian file" if swapped in VERSIONS else f"version {self.version}"
            self._wrong(f"GGUF version {' or '.join(map(str, VERSIONS))}, little-endian", what)
        tensors, pairs = self._number("<Q"), self._number("<Q")
        self._fits(tensors, 24, "tensors")
        self._fits(pairs, 13, "pairs")
        self.pairs: Mapping[str, Pair] = self._pairs(pairs)
        self.tensors: Mapping[str, Tensor] = self._tensors(tensors)

    def numbers(self, name: str) -> NDArray[np.float32]:
        """A tensor's numbers in its shape, decoded; whether they are finite is for the caller to see."""
        tensor = self.tensors[name]
        return decode(self.blocks(name), tensor.kind).reshape(tensor.shape)

    def blocks(self, name: str) -> NDArray[np.uint8]:
        """A tensor's bytes as they are in the file, mapped and read-only: (size,). blocks.py says what they mean."""
        tensor = self.tensors[name]
        return self._data[tensor.offset : tensor.offset + tensor.size]

    def get(self, key: str) -> Any:
        """The value of a pair, or None."""
        pair = self.pairs.get(key)
        return None if pair is None else pair.value

    def _wrong(self, wanted: str, got: str) -> NoReturn:
        raise ModelError(f"{self.path}: wanted {wanted}, got {got}")

    def _fits(self, count: int, size: int, what: str) -> None:
        """`count` things of at least `size` bytes each must lie ahead: a count out of the air costs no memory."""
        left = len(self._data) - self._at
        if count * size > left:
            self._wrong(
                f"a file that holds {count:,} {what} (at least {count * size:,} bytes)",
                f"{left:,} bytes after byte {self._at:,}; it is cut short or damaged: copy or download it again",
            )

    def _number(self, form: str) -> Any:
        size = struct.calcsize(form)
        self._fits(1, size, "number")
        (value,) = struct.unpack_from(form, self._bytes, self._at)
        self._at += size
        return value

    def _text(self, what: str, strict: bool = False) -> str:
        """Names must be UTF-8; a value keeps stray bytes as surrogates, so that it can be written again as it was."""
        length = self._number("<Q")
        self._fits(length, 1, f"bytes of {what}")
        if strict and length > _LONGEST_NAME:
            self._wrong(f"{what} of at most {_LONGEST_NAME} bytes", f"{length:,}")
        raw = bytes(self._bytes[self._at : self._at + length])
        self._at += length
        try:
            return raw.decode("utf-8", "strict" if strict else "surrogateescape")
        except UnicodeDecodeError:
            self._wrong(f"{what} in UTF-8", f"{raw[:40]!r} at byte {self._at - length:,}")

    def _pairs(self, count: int) -> dict[str, Pair]:
        pairs: dict[str, Pair] = {}
        for _ in range(count):
            key = self._text("a key", strict=True)
            if key in pairs:
                self._wrong("each key once", f"{key!r} twice")
            kind = self._number("<I")
            if kind == STRING:
                pairs[key] = Pair(kind, self._text(key))
            elif kind == ARRAY:
                pairs[key] = self._array(key)
            elif kind in SCALARS:
                value = self._numbers(key, kind, 1)[0].item()
                pairs[key] = Pair(kind, bool(value) if kind == BOOL else value)
            else:
                self._wrong(f"a type of value from 0 to 12 for {key}", str(kind))
        return pairs

    def _array(self, key: str) -> Pair:
        kind, count = self._number("<I"), self._number("<Q")
        if kind == STRING:
            self._fits(count, 8, f"strings of {key}")
            return Pair(ARRAY, self._texts(key, count), kind)
        if kind not in SCALARS:
            self._wrong(f"{key} to be an array of numbers or strings", f"one of type {kind}")
        return Pair(ARRAY, self._numbers(key, kind, count), kind)

    def _texts(self, key: str, count: int) -> list[str]:
        """A vocabulary: as `_text` reads them one by one, in a loop without calls."""
        unpack, data, at, end = struct.Struct("<Q").unpack_from, self._bytes, self._at, len(self._data)
        texts = []
        for _ in range(count):
            if at + 8 > end or at + 8 + (length := unpack(data, at)[0]) > end:
                self._at = at
                self._text(key)  # says what is wrong
            at += 8 + length
            texts.append(str(data[at - length : at], "utf-8", "surrogateescape"))
        self._at = at
        return texts

    def _numbers(self, key: str, kind: int, count: int) -> NDArray[Any]:
        form = np.dtype(SCALARS[kind])
        self._fits(count, form.itemsize, f"numbers of {key}")
        raw = bytes(self._bytes[self._at : self._at + count * form.itemsize])
        self._at += len(raw)
        return np.frombuffer(raw, form)

    def _tensors(self, count: int) -> dict[str, Tensor]:
        entries = [self._tensor() for _ in range(count)]
        alignment = self.get("general.alignment")
        alignment = ALIGNMENT if alignment is None else alignment
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1) or alignment > 1 << 20:
            self._wrong("general.alignment to be a power of two up to 2^20", repr(alignment))
        start = -(-self._at // alignment) * alignment
        tensors: dict[str, Tensor] = {}
        for name, shape, kind, offset in entries:
            size = int(np.prod(shape, dtype=object)) // kind.numbers * kind.size
            if name in tensors:
                self._wrong("each tensor once", f"{name!r} twice")
            if offset % alignment:
                self._wrong(f"{name} at a multiple of {alignment}", f"offset {offset:,}")
            if start + offset + size > len(self._data):
                self._wrong(
                    f"{name} (bytes {start + offset:,} to {start + offset + size:,}) inside the file",
                    f"{len(self._data):,} bytes; it is cut short or damaged: copy or download it again",
                )
            tensors[name] = Tensor(shape, kind, start + offset, size)
        order = sorted(tensors.items(), key=lambda item: item[1].offset)
        for (before, first), (after, second) in itertools.pairwise(order):
            if first.offset + first.size > second.offset:
                self._wrong("tensors that lie one after another", f"{before} and {after} overlapping")
        return tensors

    def _tensor(self) -> tuple[str, tuple[int, ...], BlockType, int]:
        name = self._text("a tensor's name", strict=True)
        count = self._number("<I")
        if not 1 <= count <= _MOST_SIZES:
            self._wrong(f"{name} of 1 to {_MOST_SIZES} dimensions", str(count))
        shape = tuple(reversed([int(self._number("<Q")) for _ in range(count)]))
        number, offset = self._number("<I"), self._number("<Q")
        if number not in TYPES:
            got = f"type {number} ({OTHERS.get(number, 'unknown')})"
            self._wrong(f"{name} in one of {', '.join(kind.name for kind in TYPES.values())}", got)
        kind = TYPES[number]
        if min(shape) < 1 or shape[-1] % kind.numbers:
            self._wrong(f"rows of {name} of a multiple of {kind.numbers} numbers ({kind.name})", f"shape {shape}")
        return name, shape, kind, offset
