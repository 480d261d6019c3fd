"""The key-value pairs of a GGUF file, read by hand. What they mean for a tokenizer: `gguf.py`.

A file is "GGUF", a version, two counts (tensors, pairs), then the pairs: key, type, value. The file is not trusted:
every length is checked against its size before anything is read, and what is not asked for is stepped over, not built.
"""

from __future__ import annotations

import mmap
import struct
from typing import Any

_SIZES = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9


class Damaged(Exception):
    """The bytes are no GGUF file, or are cut short."""


class _Cursor:
    """Reads values one after the other; raises Damaged at the end of the file."""

    def __init__(self, data: mmap.mmap | bytes) -> None:
        self._data = data
        self._at = 0

    def number(self, form: str) -> Any:
        size = struct.calcsize(form)
        return struct.unpack(form, self._take(size))[0]

    def _take(self, size: int) -> bytes:
        if size > len(self._data) - self._at:
            raise Damaged(f"{size} bytes wanted at byte {self._at}, but the file ends at {len(self._data)}")
        self._at += size
        return bytes(self._data[self._at - size : self._at])

    def string(self) -> bytes:
        return self._take(self.number("<Q"))

    def value(self, kind: int, keep: bool) -> Any:
        """A value of a type; what is not kept is only stepped over."""
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.number(self._form(kind))
        kind, count = self.number("<I"), self.number("<Q")
        if kind == _ARRAY:
            raise Damaged("an array of arrays")
        if kind == _STRING:
            if count > (len(self._data) - self._at) // 8:
                raise Damaged(f"an array of {count} strings is larger than the file")
            strings = (self.string() for _ in range(count))
            return list(strings) if keep else sum(1 for _ in strings)
        form = self._form(kind)
        size = count * struct.calcsize(form)
        if size > len(self._data) - self._at:
            raise Damaged(f"an array of {count} numbers is larger than the file")
        if not keep:
            self._at += size
            return None
        return [number for (number,) in struct.iter_unpack(form, self._take(size))]

    @staticmethod
    def _form(kind: int) -> str:
        if kind not in _SIZES:
            raise Damaged(f"the value type {kind} is unknown")
        return _SIZES[kind]


def read_pairs(data: mmap.mmap | bytes) -> dict[str, Any]:
    """The key-value pairs whose key begins with "tokenizer."."""
    cursor = _Cursor(data)
    if bytes(data[:4]) != b"GGUF":
        raise Damaged("it does not begin with GGUF")
    cursor.number("<I")
    version = cursor.number("<I")
    if version not in (2, 3):
        raise Damaged(f"its version is {version}, wanted 2 or 3 in little-endian order")
    cursor.number("<Q")
    pairs: dict[str, Any] = {}
    for _ in range(cursor.number("<Q")):
        key = cursor.string().decode()
        value = cursor.value(cursor.number("<I"), key.startswith("tokenizer."))
        if key.startswith("tokenizer."):
            pairs[key] = value
    return pairs
