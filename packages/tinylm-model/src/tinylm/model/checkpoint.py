"""Weights in and out: config.json and model.safetensors in Hugging Face layout, which transformers, vLLM and
llama.cpp open.

Not here: the table of names (_huggingface.py), the tokenizer's and the optimiser's files (tinylm.training writes those
beside). Nothing is ever unpickled: a *.bin or *.pt file is refused. Next: _layout.py.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tinylm.model._atomic import atomic_path
from tinylm.model._errors import ModelError
from tinylm.model._files import check_file, is_gguf, read_json, usual_name, weight_files
from tinylm.model._huggingface import check_format, from_json, to_json
from tinylm.model._layout import Stored, check_shapes, shapes, tensors
from tinylm.model.config import TransformerConfig
from tinylm.model.device import pick_device
from tinylm.model.initialization import uninitialized
from tinylm.model.transformer import Transformer

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
_STORED = dict(zip(("F32", "BF16", "F16", "F64"), _DTYPES.values(), strict=True))  # in a safetensors file


def save(
    model: Transformer,
    directory: str | os.PathLike[str],
    provenance: Mapping[str, str] | None = None,
    write: Callable[[dict[str, Tensor], Path, dict[str, str]], object] | None = None,
) -> None:
    """Write `directory`/config.json and model.safetensors, each whole or not at all.

    provenance goes into config.json's "tinylm" block (training stores the tokenizer's sha256). write: what makes a
    safetensors file of tensors, which need not lie in one piece, a path and metadata (training's hashes them on the
    way). ModelError for a shape that no Hugging Face family has; OSError when the disk refuses.
    """
    folder = Path(directory)
    weights = dict(model.named_parameters())
    dtype = str(model.embed.weight.dtype).removeprefix("torch.")
    config = to_json(model.config, dtype, provenance or {})
    out = {name: _pack(stored, weights) for name, stored in tensors(model.config).items()}
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_path(folder / "model.safetensors") as path:
            try:
                (write or _write)(out, path, {"format": "pt"})
            except SafetensorError as error:
                raise OSError(f"{folder / 'model.safetensors'}: could not be written: {error}") from None
        with atomic_path(folder / "config.json") as path:
            path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    except BaseException:
        if is_new:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def check_can_be_saved(config: TransformerConfig) -> None:
    """ModelError for a shape that no Hugging Face family has: what `save` would raise, before anything is trained."""
    to_json(config, "float32", {})


def load(
    directory: str | os.PathLike[str],
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
) -> Transformer:
    """Read a checkpoint of one of the families in _families.py, one file or sharded with an index, or a GGUF file
    (*.gguf).

    dtype: "float32", "bfloat16", "float16", "float64" or torch's; None keeps the file's (float32 for a GGUF file; where
    tensors differ, the type of most numbers, so that all products are of one type).
    device: as `device.pick_device` takes it, "auto" too.
    ModelError says what is wrong with the files: missing, truncated, of another shape, with a tensor too few or too
    many, with a weight that is no number.
    """
    wanted = _dtype(dtype)
    device = None if device is None else pick_device(str(device))
    folder = Path(directory)
    if is_gguf(folder):
        from tinylm.model.gguf import files

        return files.load(folder, wanted, device)
    if read_json(folder / "config.json").get("quantization_config") is not None:
        raise ModelError(
            f"{folder}: wanted weights of floats, got quantization_config in config.json: the weights are quantised; "
            "tinylm.inference.LLM opens those that TinyLM saved, otherwise take the model before quantisation"
        )
    config = read_config(folder)
    loaded: dict[str, Tensor] = {}
    with checked_tensors(folder, config) as found:
        ours, table, wanted = shapes(config), tensors(config), wanted or _most(found)
        for name, (file, stored) in found.items():
            tensor: Tensor = file.get_tensor(stored)
            target = tensor.to(device=device, dtype=wanted, copy=True)  # the file's own memory is mapped read-only
            check_numbers(folder, name, target)
            _unpack(table[name], target, ours, loaded)
    with uninitialized():
        model = Transformer(config)
    for name in ours:
        module, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(module), leaf, nn.Parameter(loaded[name]))
    return model


def read_config(directory: str | os.PathLike[str]) -> TransformerConfig:
    """The shape in `directory`/config.json, quantised or not, or in the pairs of a GGUF file."""
    if is_gguf(directory):
        from tinylm.model.gguf import metadata, reader

        return metadata.read_config(reader.GGUF(directory))
    path = Path(directory) / "config.json"
    fields = read_json(path)
    fields.pop("quantization_config", None)  # of the weights, not of the shape
    return from_json(fields, str(path))


def read_provenance(directory: str | os.PathLike[str]) -> dict[str, str]:
    """What `save` was given as provenance; {} for a checkpoint that somebody else wrote."""
    path = Path(directory) / "config.json"
    block = check_format(read_json(path), str(path))
    return {key: str(value) for key, value in block.items() if key != "format"}


def stored_tensors(config: TransformerConfig) -> Mapping[str, Stored]:
    """Every tensor of a file by its Hugging Face name, and which of our parameters it holds."""
    return tensors(config)


@contextmanager
def checked_tensors(folder: Path, config: TransformerConfig) -> Iterator[dict[str, tuple[Any, str]]]:
    """By usual name the open file and the stored name of every tensor that `config` describes, once names and shapes
    in the files agree with it, and all are of a type that is read here."""
    with ExitStack() as stack:
        where: dict[str, Any] = {}
        for path in weight_files(folder):
            check_file(path)
            try:
                file = stack.enter_context(safe_open(path, framework="pt"))
                names = [(usual_name(name, config), name) for name in file.keys()]  # noqa: SIM118  # not a dict
            except (SafetensorError, OSError) as error:
                raise ModelError(
                    f"{path}: wanted a whole safetensors file, got {error}; copy or download it again"
                ) from None
            for usual, name in names:
                if usual in where:
                    raise ModelError(f"{path}: wanted each tensor once, got {name} again; remove the files of one copy")
                if usual is not None:
                    where[usual] = (file, name)
        slices = {name: file.get_slice(stored) for name, (file, stored) in where.items()}
        check_shapes(config, {name: tuple(part.get_shape()) for name, part in slices.items()}, str(folder))
        for name, part in slices.items():
            if part.get_dtype() not in _STORED:
                raise ModelError(f"{folder}: wanted {name} in one of {sorted(_DTYPES)}, got {part.get_dtype()}")
        yield where


def _most(found: Mapping[str, tuple[Any, str]]) -> torch.dtype:
    """The type of most numbers."""
    counts: dict[str, int] = {}
    for file, stored in found.values():
        part = file.get_slice(stored)
        counts[part.get_dtype()] = counts.get(part.get_dtype(), 0) + math.prod(part.get_shape())
    return _STORED[max(counts, key=lambda kind: counts[kind])]


def check_numbers(folder: Path, name: str, tensor: Tensor) -> None:
    """ModelError where the tensor holds what is no number."""
    bad = tensor.numel() - int(torch.isfinite(tensor).sum())
    if bad:
        raise ModelError(
            f"{folder}: wanted numbers in {name} as {tensor.dtype}, got {bad} that are NaN or infinite; "
            "take an earlier checkpoint, or a dtype of wider range"
        )


def _pack(stored: Stored, weights: Mapping[str, Tensor]) -> Tensor:
    if stored.expert is not None:
        return weights[stored.parts[0]].detach()[stored.expert].cpu().contiguous()
    parts = [weights[part].detach() for part in stored.parts]
    tensor = torch.cat(parts) if len(parts) > 1 else parts[0]  # not copied where it need not be
    return (tensor.T if stored.transposed else tensor).cpu()


def _write(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    copies = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    save_file(copies, path, metadata)  # which refuses tensors that share memory


def _unpack(stored: Stored, tensor: Tensor, ours: Mapping[str, tuple[int, ...]], loaded: dict[str, Tensor]) -> None:
    """Put a stored tensor where it belongs among ours."""
    if stored.expert is not None:
        part = stored.parts[0]
        loaded.setdefault(part, tensor.new_empty(ours[part]))[stored.expert] = tensor
        return
    tensor = tensor.T if stored.transposed else tensor
    pieces = torch.split(tensor, [ours[part][0] for part in stored.parts])
    loaded.update((part, piece.contiguous()) for part, piece in zip(stored.parts, pieces, strict=True))


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if isinstance(dtype, str):
        if dtype not in _DTYPES:
            raise ModelError(f"dtype: wanted one of {sorted(_DTYPES)}, got {dtype!r}")
        return _DTYPES[dtype]
    if dtype is not None and dtype not in _DTYPES.values():
        raise ModelError(f"dtype: wanted one of {sorted(_DTYPES)}, got {dtype}")
    return dtype
