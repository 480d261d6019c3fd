"""A safetensors file, written and hashed in one pass over the tensors, past the page cache.

    8 bytes    the length of the header, little-endian
    header     JSON: {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}, filled up with spaces
    the rest   the tensors' numbers, one tensor after the other

(https://huggingface.co/docs/safetensors.) The usual way, a checkpoint's gigabytes are copied into the page cache, which
gives up what else it holds for them, and are read out of it again for their checksum. Here each piece is copied once,
into a buffer that stays in the processor's cache: there it is hashed, and from there the disk takes it (_direct.py).
Not here: which tensors (_state_files.py), a folder that is written as a whole (_files.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tinylm.training._direct import open_to_write, piece_of_memory, write_all

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> str:
    """Write `path`; returns the hexadecimal SHA-256 of what it is to hold. OSError when the disk refuses."""
    digest, used = hashlib.sha256(), 0
    view = piece_of_memory()
    buffer = np.frombuffer(view, np.uint8)
    with open_to_write(path) as file:
        for content in _contents(tensors, metadata):
            while len(content):
                taken = min(len(content), len(view) - used)
                buffer[used : used + taken] = content[:taken]
                content, used = content[taken:], used + taken
                if used == len(view):
                    digest.update(view)
                    write_all(file, view)
                    used = 0
        digest.update(view[:used])
        write_all(file, view[:used])
    return digest.hexdigest()


def _contents(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> Iterator[npt.NDArray[np.uint8]]:
    """The bytes of a file, in their order."""
    ordered = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # so each lies at its own size
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in ordered:
        tensor, begin = tensors[name], end
        end += tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield np.frombuffer(len(text).to_bytes(8, "little") + text, np.uint8)
    for name in ordered:
        yield tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
