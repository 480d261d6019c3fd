"""A checkpoint in Hugging Face layout into arrays: config.json and safetensors, one file or sharded, without torch.

bfloat16, which NumPy does not have, is read as float32. Not here: writing (../checkpoint.py). Next: transformer.py.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize

from tinylm.model._errors import ModelError
from tinylm.model._huggingface import from_json
from tinylm.model._layout import check_shapes, shapes, tensors
from tinylm.model.arrays.layers import Array
from tinylm.model.config import TransformerConfig

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def read_checkpoint(directory: str | os.PathLike[str]) -> tuple[TransformerConfig, dict[str, Array]]:
    """The shape, and every parameter by our name (blocks.0.attention.q.weight, (out, in))."""
    folder = Path(directory)
    config = from_json(_read_json(folder / "config.json"), str(folder / "config.json"))
    found: dict[str, Array] = {}
    for path in _weight_files(folder):
        found |= _read_safetensors(path, config)
    if config.tie_embeddings:  # some files carry the tied head as well; transformers ignores it too
        found.pop("lm_head.weight", None)
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


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ModelError(
            f"{path.parent}: wanted a checkpoint directory with config.json and model.safetensors, got no {path.name}"
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{path}: wanted JSON, got a file that does not parse ({error})") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path}: wanted a JSON object, got {type(content).__name__}")
    return content


def _weight_files(folder: Path) -> list[Path]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if not index.exists():
        raise ModelError(f"{folder}: wanted model.safetensors or model.safetensors.index.json, got neither")
    names = _read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(n, str) and Path(n).name == n for n in names.values()):
        raise ModelError(f"{index}: wanted a weight_map of file names, got {names!r:.80}")
    return [folder / name for name in sorted(set(names.values()))]


def _read_safetensors(path: Path, config: TransformerConfig) -> dict[str, Array]:
    try:
        entries = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: wanted a whole safetensors file, got {error}; copy or download it again") from None
    out = {}
    for name, entry in entries:
        if name.endswith((".attn.bias", ".masked_bias")):  # causal masks that old GPT-2 files carry along
            continue
        if config.position == "learned" and not name.startswith(("transformer.", "lm_head.")):
            name = f"transformer.{name}"  # GPT-2 as OpenAI published it lacks the prefix
        if entry["dtype"] not in _DTYPES:
            raise ModelError(f"{path}: wanted {name} in one of {sorted(_DTYPES)}, got {entry['dtype']}")
        array = np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
        if entry["dtype"] == "BF16":  # the upper half of a float32
            array = (array.astype(np.uint32) << 16).view(np.float32)
        out[name] = array
    return out
