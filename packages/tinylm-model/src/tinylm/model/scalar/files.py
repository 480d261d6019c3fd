"""A GPT-2-shaped checkpoint in and out of nested lists of floats, without torch, NumPy or the safetensors library.

The format: 8 bytes with the header's length (little-endian), a JSON header with each tensor's type, shape and place,
then the numbers. Not here: sharded files and other number types (../checkpoint.py). Next: gpt.py, which uses it.
"""

from __future__ import annotations

import json
import math
import os
import sys
from array import array
from pathlib import Path
from typing import Any

from tinylm.model._atomic import atomic_path
from tinylm.model._errors import ModelError
from tinylm.model._files import check_file, read_json
from tinylm.model._huggingface import from_json, to_json
from tinylm.model._layout import check_shapes
from tinylm.model.config import TransformerConfig

Weights = dict[str, Any]  # a list of floats or a list of rows for each name of the file


def read_checkpoint(directory: str | os.PathLike[str]) -> tuple[TransformerConfig, Weights]:
    """config.json and model.safetensors (float32 or float64) of a GPT-2-shaped checkpoint."""
    folder = Path(directory)
    fields = read_json(folder / "config.json")
    config = from_json(fields, str(folder / "config.json"))
    if config.position != "learned":
        raise ModelError(f"{folder}: the scalar rung wants a gpt2 checkpoint, got {fields['model_type']}")
    if not (folder / "model.safetensors").exists():
        raise ModelError(f"{folder}: the scalar rung wants its weights in one model.safetensors, got none")
    shapes, weights = read_safetensors(folder / "model.safetensors")
    check_shapes(config, shapes, str(folder))
    for name, tensor in weights.items():
        bad = sum(not math.isfinite(number) for row in rows(tensor) for number in row)
        if bad:
            raise ModelError(f"{folder}: wanted numbers in {name}, got {bad} that are NaN or infinite")
    return config, weights


def write_checkpoint(directory: str | os.PathLike[str], config: TransformerConfig, weights: Weights) -> None:
    """Write `directory`/config.json and model.safetensors in float64, which every other rung and transformers open."""
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    numbers = array("d")
    for name, tensor in weights.items():
        start = 8 * len(numbers)
        for row in rows(tensor):
            numbers.extend(row)
        shape = [len(tensor), len(tensor[0])] if isinstance(tensor[0], list) else [len(tensor)]
        header[name] = {"dtype": "F64", "shape": shape, "data_offsets": [start, 8 * len(numbers)]}
    if sys.byteorder == "big":
        numbers.byteswap()
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of 8
    with atomic_path(folder / "model.safetensors") as path:
        path.write_bytes(len(text).to_bytes(8, "little") + text + numbers.tobytes())
    with atomic_path(folder / "config.json") as path:
        path.write_text(json.dumps(to_json(config, "float64", {}), indent=2) + "\n", encoding="utf-8")


def read_safetensors(path: Path) -> tuple[dict[str, tuple[int, ...]], Weights]:
    """Shapes and nested lists of floats by name."""
    check_file(path)
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    if len(raw) < max(8, end):
        raise ModelError(
            f"{path}: wanted a whole safetensors file, got {len(raw):,} bytes that end within its header; copy or "
            "download it again"
        )
    try:
        header = json.loads(raw[8:end])
        header.pop("__metadata__", None)
        shapes, weights = {}, {}
        for name, entry in header.items():
            start, stop = entry["data_offsets"]
            numbers = array({"F32": "f", "F64": "d"}[entry["dtype"]])
            numbers.frombytes(raw[end + start : end + stop])
            if sys.byteorder == "big":
                numbers.byteswap()
            shapes[name] = tuple(entry["shape"])
            weights[name] = _nest(list(numbers), shapes[name])
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ModelError(
            f"{path}: wanted a whole safetensors file with float32 or float64 numbers, got {error!r:.80}; copy or "
            "download it again"
        ) from None
    return shapes, weights


def rows(tensor: Any) -> list[list[float]]:
    """The rows of a matrix, or a vector as the one row it is: the lists that hold the numbers themselves."""
    return tensor if isinstance(tensor[0], list) else [tensor]


def _nest(numbers: list[float], shape: tuple[int, ...]) -> Any:
    if math.prod(shape) != len(numbers) or not 1 <= len(shape) <= 2:
        raise ValueError(f"shape {shape} for {len(numbers)} numbers")
    return numbers if len(shape) == 1 else [numbers[i : i + shape[1]] for i in range(0, len(numbers), shape[1])]
