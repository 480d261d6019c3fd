"""A quantised checkpoint on disk: a Hugging Face directory in the layout of compressed-tensors, which vLLM reads too.

    config.json         as before, and "quantization_config": what is rounded and how
    model.safetensors   int8: <matrix>.weight int8 (outputs, inputs), <matrix>.weight_scale float16 (outputs, 1)
                        int4: <matrix>.weight_packed int32 (outputs, inputs / 8), number i in bits 4 (i % 8) of it;
                              <matrix>.weight_scale float16 (outputs, groups), <matrix>.weight_shape int64 (2,)
                        everything else as it was; the embedding and the head stay float
    all other files     copied

The head is rounded when the model is opened, as `quantize` does it: a model that is saved and opened is the same to the
last bit. GPT-2's matrices are kept (outputs, inputs), q, k and v as one: those files open here only. Not here:
rounding (weights.py). Next: model.py.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tinylm.inference._errors import InferenceError
from tinylm.inference.quantization.model import QuantizedTransformer, quantize
from tinylm.inference.quantization.weights import GROUP, QuantizedWeight, round_weight
from tinylm.model import Transformer, TransformerConfig, read_config
from tinylm.model.checkpoint import stored_tensors
from tinylm.model.initialization import uninitialized

_FORMATS = {"int8": "int-quantized", "int4": "pack-quantized"}
_COPIED = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja")


def save_quantized(source: str | os.PathLike[str], directory: str | os.PathLike[str], scheme: str) -> None:
    """Rounds the checkpoint `source`, a Hugging Face directory, and writes it to `directory`, which must be new.

    InferenceError as `quantize` raises it, where `directory` exists, or `source` is a file; OSError from the disk.
    """
    origin, out = Path(source), Path(directory)
    if out.exists():
        raise InferenceError(f"{out} exists: wanted a new directory for the quantised model; choose another")
    if origin.is_file():
        raise InferenceError(
            f"{origin}: wanted a Hugging Face directory, got a file; `tinylm-model convert` makes one of a GGUF file"
        )
    float_model = Transformer.load(origin, dtype=torch.float32, device="cpu")
    model = quantize(float_model, scheme)
    config = json.loads((origin / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = _description(scheme)
    out.mkdir(parents=True)
    try:
        save_file(_tensors(model, float_model), out / "model.safetensors", metadata={"format": "pt"})
        for name in _COPIED:
            if (origin / name).is_file():
                shutil.copyfile(origin / name, out / name)
        (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")  # last: now it is whole
        shutil.copymode(out / "config.json", out / "model.safetensors")  # safetensors writes for the owner alone
    except BaseException as error:
        shutil.rmtree(out, ignore_errors=True)
        if isinstance(error, SafetensorError):
            raise OSError(f"{out / 'model.safetensors'}: could not be written: {error}") from None
        raise


def scheme_of(directory: Path) -> str | None:
    """The scheme of a directory's model, None where it is not quantised. InferenceError for a kind not read here."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    found = config.get("quantization_config")
    if found is None:
        return None
    for scheme in _FORMATS:
        if found == _description(scheme):
            return scheme
    method = found.get("quant_method") if isinstance(found, dict) else found
    raise InferenceError(
        f"{directory}: wanted no quantization_config or one of save_quantized's, got quant_method {method!r:.40}; "
        "take the checkpoint before quantisation, and quantization='int8' or 'int4'"
    )


def load_quantized(directory: str | os.PathLike[str]) -> QuantizedTransformer:
    """What `save_quantized` wrote. InferenceError says what is missing, of another type or shape, or no number."""
    folder = Path(directory)
    scheme = scheme_of(folder)
    if scheme is None:
        raise InferenceError(f"{folder}: wanted a quantised checkpoint, got one of floats; open it with LLM")
    config = read_config(folder)
    with uninitialized():
        model = Transformer(config)
    path = folder / "model.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except (SafetensorError, OSError) as error:
        raise InferenceError(f"{path}: wanted a whole safetensors file, got {error}; copy it again") from None
    weights: dict[str, QuantizedWeight] = {}
    matrices = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != "head"]
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for stored, parts in _stored(config).items():
        sizes = [shapes[part][0] for part in parts]
        owners = [part.rpartition(".")[0] for part in parts]
        shape = (sum(sizes), *shapes[parts[0]][1:])
        if owners[0] in matrices and parts[0].endswith(".weight"):
            whole = _read(path, found, stored.removesuffix(".weight"), (shape[0], shape[1]), scheme)
            numbers, scales = torch.split(whole.numbers, sizes), torch.split(whole.scales, sizes)
            pieces = zip(owners, numbers, scales, strict=True)
            weights |= {owner: QuantizedWeight(n, s, None, whole.bits) for owner, n, s in pieces}
            continue
        values = torch.split(_take(path, found, stored, shape, (torch.float32, torch.bfloat16)).float(), sizes)
        for part, value in zip(parts, values, strict=True):
            owner, _, leaf = part.rpartition(".")
            setattr(model.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))
    if found:
        raise InferenceError(
            f"{path}: wanted the tensors that config.json describes, got also {', '.join(list(found)[:3])}"
        )
    in_order = {name: weights[name] for name in matrices}
    return QuantizedTransformer(model, scheme, in_order | {"head": round_weight(model.head_weight, 8)})


def _description(scheme: str) -> dict[str, Any]:
    """compressed-tensors' words: weights of int8 for each output or int4 in groups; activations of int8 for each token
    (with int4: it rounds none, and neither need who reads the file)."""
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
    activations = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    if scheme == "int4":
        weights |= {"num_bits": 4, "strategy": "group", "group_size": GROUP}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations if scheme == "int8" else None}
    return {
        "quant_method": "compressed-tensors",
        "format": _FORMATS[scheme],
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


def _stored(config: TransformerConfig) -> dict[str, tuple[str, ...]]:
    """By Hugging Face's name the parameters that it holds, one below the other."""
    return {name: stored.parts for name, stored in stored_tensors(config).items()}


def _tensors(model: QuantizedTransformer, float_model: Transformer) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for stored, parts in _stored(model.config).items():
        matrices = [model.weight_of(part.removesuffix(".weight")) for part in parts if part.endswith(".weight")]
        whole = [matrix for matrix in matrices if matrix is not None]
        if whole:
            joined = QuantizedWeight(
                torch.cat([w.numbers for w in whole]), torch.cat([w.scales for w in whole]), None, whole[0].bits
            )
            out |= _written(stored.removesuffix(".weight"), joined)
        else:
            out[stored] = _shortest(torch.cat([float_model.get_parameter(part).detach() for part in parts]))
    return out


def _written(name: str, weight: QuantizedWeight) -> dict[str, Tensor]:
    scales = {f"{name}.weight_scale": weight.scales.contiguous()}
    if weight.bits == 8:
        return {f"{name}.weight": weight.numbers.contiguous(), **scales}
    outputs, inputs = weight.numbers.shape
    padded = torch.nn.functional.pad(weight.numbers.int(), (0, -inputs % 8)).view(outputs, -1, 8)
    packed = (padded << (4 * torch.arange(8, dtype=torch.int32))).sum(dim=2, dtype=torch.int32)
    return {f"{name}.weight_packed": packed, f"{name}.weight_shape": torch.tensor([outputs, inputs]), **scales}


def _read(path: Path, found: dict[str, Tensor], name: str, shape: tuple[int, int], scheme: str) -> QuantizedWeight:
    outputs, inputs = shape
    groups = 1 if scheme == "int8" else -(-inputs // GROUP)
    scales = _take(path, found, f"{name}.weight_scale", (outputs, groups), (torch.float16,))
    if scheme == "int8":
        numbers = _take(path, found, f"{name}.weight", shape, (torch.int8,))
        return QuantizedWeight(numbers.clamp(-127, 127), scales, None, 8)
    packed = _take(path, found, f"{name}.weight_packed", (outputs, -(-inputs // 8)), (torch.int32,))
    written = _take(path, found, f"{name}.weight_shape", (2,), (torch.int64,)).tolist()
    if written != [outputs, inputs]:
        raise InferenceError(f"{path}: wanted {name} of shape {shape}, got {written}")
    numbers = ((packed[..., None] >> (4 * torch.arange(8, dtype=torch.int32))) & 15).to(torch.int8)
    return QuantizedWeight(numbers.reshape(outputs, -1)[:, :inputs].contiguous(), scales, None, 4)


def _take(
    path: Path, found: dict[str, Tensor], name: str, shape: tuple[int, ...], types: tuple[torch.dtype, ...]
) -> Tensor:
    """Takes a tensor out of `found`."""
    tensor = found.pop(name, None)
    if tensor is None or tuple(tensor.shape) != shape or tensor.dtype not in types:
        got = "none" if tensor is None else f"{tensor.dtype} {tuple(tensor.shape)}"
        raise InferenceError(f"{path}: wanted {name}, {types[0]} {shape}, got {got}; the file is of another model")
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise InferenceError(f"{path}: wanted numbers in {name}, got some that are NaN or infinite; copy it again")
    return tensor


def _shortest(tensor: Tensor) -> Tensor:
    """In bfloat16 where that loses nothing, as for a model that was kept in it."""
    short = tensor.to(torch.bfloat16)
    return short if torch.equal(short.float(), tensor) else tensor.float()
