"""A checkpoint in Hugging Face layout into arrays: config.json and safetensors, one file or sharded, without torch.

bfloat16, which NumPy does not have, is read as float32. Not here: writing (../checkpoint.py). Next: transformer.py.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, deserialize

from tinylm.model._errors import ModelError
from tinylm.model._files import check_file, read_json, usual_name, weight_files
from tinylm.model._huggingface import from_json
from tinylm.model._layout import check_shapes, shapes, tensors
from tinylm.model.arrays.layers import Array
from tinylm.model.config import TransformerConfig

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def read_checkpoint(directory: str | os.PathLike[str]) -> tuple[TransformerConfig, dict[str, Array]]:
    """The shape, and every parameter by our name (blocks.0.attention.q.weight, (out, in))."""
    folder = Path(directory)
    config = from_json(read_json(folder / "config.json"), str(folder / "config.json"))
    config.plain_or_refuse(f"{folder}: a rung in arrays/ or tensors/")
    found: dict[str, Array] = {}
    for path in weight_files(folder):
        more = _read_safetensors(path, config)
        twice = sorted(found.keys() & more.keys())
        if twice:
            raise ModelError(f"{path}: wanted each tensor once, got {twice[0]} again; remove the files of one copy")
        found |= more
    check_shapes(config, {name: array.shape for name, array in found.items()}, str(folder))
    ours = shapes(config)
    out: dict[str, Array] = {}
    for name, stored in tensors(config).items():
        array = found[name]
        bad = array.size - int(np.isfinite(array).sum())
        if bad:
            raise ModelError(f"{folder}: wanted numbers in {name}, got {bad} that are NaN or infinite")
        array = array.T if stored.transposed else array
        ends = np.cumsum([ours[part][0] for part in stored.parts])[:-1]
        out |= dict(zip(stored.parts, np.split(array, ends), strict=True))
    return config, out


def _read_safetensors(path: Path, config: TransformerConfig) -> dict[str, Array]:
    check_file(path)
    try:
        entries = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: wanted a whole safetensors file, got {error}; copy or download it again") from None
    out = {}
    for stored, entry in entries:
        name = usual_name(stored, config)
        if name is None:
            continue
        if entry["dtype"] not in _DTYPES:
            raise ModelError(f"{path}: wanted {name} in one of {sorted(_DTYPES)}, got {entry['dtype']}")
        array = np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
        if entry["dtype"] == "BF16":  # the upper half of a float32
            array = (array.astype(np.uint32) << 16).view(np.float32)
        out[name] = array
    return out
