"""tinylm.inference: opens a checkpoint, a directory or a GGUF file, and checks that its parts belong together.

Reads config.json, model.safetensors, tokenizer.json, generation_config.json and chat_template.jinja: a checkpoint of
`tinylm-train`, or any Hugging Face directory of a shape that `tinylm.model` knows; or a GGUF file, which has all of it.
It draws no tokens: see `llm.py`.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tinylm.inference._errors import InferenceError
from tinylm.inference.quantization import files, gguf
from tinylm.model import Transformer, pick_device, read_config, read_provenance
from tinylm.tokenizer import Tokenizer

_DTYPES = {
    "auto": None,
    "float32": torch.float32,
    "float": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "half": torch.float16,
}


@dataclass(frozen=True)
class Checkpoint:
    """A model on its device, its tokenizer (None if skipped), and the token ids that end a text.

    `tuned_for_chat`: it has a chat template and was trained on conversations. A checkpoint of this project says so in
    its provenance ("tuned_for": "chat"); another one is believed if it brings a template.
    """

    model: Transformer
    tokenizer: Tokenizer | None
    eos_token_ids: tuple[int, ...]
    tuned_for_chat: bool


def open_checkpoint(
    path: str | os.PathLike[str], dtype: str | torch.dtype, device: str, skip_tokenizer_init: bool
) -> Checkpoint:
    """Reads the directory `path`. `dtype`: vLLM's names, "auto" keeps the file's; `device`: see `pick_device`.

    Raises InferenceError, or the model's or the tokenizer's own error (all ValueErrors), for what is missing, damaged
    or does not belong together. The small files are checked first: a mistake is reported before gigabytes are read.
    """
    directory = Path(path)
    if directory.suffix.lower() == ".gguf" and directory.is_file():
        return _open_gguf(directory, dtype, device, skip_tokenizer_init)
    if not (directory / "config.json").is_file():
        found = "no such path" if not directory.exists() else "a file" if directory.is_file() else "no config.json"
        raise InferenceError(
            f"wanted a checkpoint directory with a config.json, got {found}: {directory}; "
            "`tinylm-train pretrain --out DIR` makes one, and a GGUF file's name ends in .gguf"
        )
    wanted = _torch_dtype(dtype)
    target = pick_device(device)
    config = read_config(directory)
    tokenizer = None if skip_tokenizer_init else _open_tokenizer(directory, config.vocab_size)
    ends = _generation_config_eos(directory)
    if tokenizer is not None and tokenizer.eos_id is not None:
        ends = (tokenizer.eos_id, *ends)
    for token_id in ends:
        if not 0 <= token_id < config.vocab_size:
            raise InferenceError(
                f"{directory}: end-of-text id {token_id} is outside the model's vocabulary of {config.vocab_size}"
            )
    model = _load(directory, wanted, target)
    provenance = read_provenance(directory)
    template = tokenizer is not None and tokenizer.chat_template is not None
    tuned = template and (not provenance or provenance.get("tuned_for") == "chat")
    return Checkpoint(model.eval(), tokenizer, tuple(dict.fromkeys(ends)), tuned)


def _open_gguf(path: Path, dtype: str | torch.dtype, device: str, skip_tokenizer_init: bool) -> Checkpoint:
    """One file that holds all. On a CPU with dtype "auto" its blocks of 4 and 8 bits run as they are
    (quantization/gguf.py); for another dtype, or a GPU, they are decoded."""
    wanted, target = _torch_dtype(dtype), pick_device(device)
    tokenizer = None if skip_tokenizer_init else Tokenizer.load(path)
    vocab_size = read_config(path).vocab_size
    if tokenizer is not None and tokenizer.vocab_size > vocab_size:
        raise InferenceError(
            f"{path}: its tokenizer has {tokenizer.vocab_size} tokens, but its model knows {vocab_size}"
        )
    if wanted is None and target.type == "cpu" and gguf.is_quantized(path):
        model: Transformer = gguf.load_gguf(path)
    else:
        model = Transformer.load(path, dtype=wanted, device=target)
    ends = () if tokenizer is None or tokenizer.eos_id is None else (tokenizer.eos_id,)
    return Checkpoint(model.eval(), tokenizer, ends, tokenizer is not None and tokenizer.chat_template is not None)


def open_model(path: str | os.PathLike[str], dtype: torch.dtype, device: torch.device) -> Transformer:
    """A model alone, of a directory or a GGUF file. One of `save_quantized` stays as it is: float32 between its
    matrices, whatever `dtype` says. Errors as `open_checkpoint`."""
    directory = Path(path)
    if (directory / "config.json").is_file():
        read_config(directory)  # says what is wrong with it
        return _load(directory, dtype if files.scheme_of(directory) is None else None, device).eval()
    return Transformer.load(path, dtype=dtype, device=device).eval()


def _load(directory: Path, dtype: torch.dtype | None, device: torch.device) -> Transformer:
    if files.scheme_of(directory) is None:
        return Transformer.load(directory, dtype=dtype, device=device)
    if dtype not in (None, torch.float32) or device.type != "cpu":
        raise InferenceError(f"{directory} is quantised: it runs on the CPU with dtype auto, got {dtype} on {device}")
    return files.load_quantized(directory)


def _torch_dtype(dtype: str | torch.dtype) -> torch.dtype | None:
    if not isinstance(dtype, str):
        return dtype
    if dtype not in _DTYPES:
        raise InferenceError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    return _DTYPES[dtype]


def _open_tokenizer(directory: Path, vocab_size: int) -> Tokenizer:
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise InferenceError(
            f"{directory} has no tokenizer.json; copy that of the model there (without one only Python goes on: "
            "LLM(..., skip_tokenizer_init=True) takes prompts as token ids)"
        )
    wanted = read_provenance(directory).get("tokenizer_sha256")
    got = hashlib.sha256(path.read_bytes()).hexdigest()
    if wanted is not None and wanted != got:
        raise InferenceError(
            f"{path} is not the tokenizer that this model was trained with: wanted sha256 {wanted}, got {got}; "
            "copy the right tokenizer.json there"
        )
    tokenizer = Tokenizer.load(directory)
    if tokenizer.vocab_size > vocab_size:
        raise InferenceError(
            f"{path} has {tokenizer.vocab_size} tokens, but the model knows {vocab_size}: they do not belong together"
        )
    return tokenizer


def _generation_config_eos(directory: Path) -> tuple[int, ...]:
    """`eos_token_id` of generation_config.json, else of config.json: a number, a list, or absent."""
    for name in ("generation_config.json", "config.json"):
        path = directory / name
        if not path.is_file():
            continue
        value = _read_json(path).get("eos_token_id")
        if value is None:
            continue
        ids = list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value]
        if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
            raise InferenceError(f"{path}: eos_token_id must be a token id or a list of them, got {value!r}")
        return tuple(ids)
    return ()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not UTF-8 or not JSON
        raise InferenceError(f"{path} is not JSON ({error}); the file is damaged") from None
    if not isinstance(value, dict):
        raise InferenceError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value
