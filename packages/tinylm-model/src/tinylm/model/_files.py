"""What every reader of a checkpoint directory needs first: its JSON, its weight files, and the names in them.

No torch and no NumPy here. Not here: the tensors themselves (checkpoint.py, arrays/checkpoint.py), what config.json
means (_huggingface.py). Next: checkpoint.py.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tinylm.model._errors import ModelError
from tinylm.model.config import TransformerConfig

_FILE_ENDINGS = (".gguf", ".safetensors", ".bin", ".pt", ".pth")


def ends_in_gguf(path: str | os.PathLike[str]) -> bool:
    """Whether a name is a GGUF file's, in small letters or capitals."""
    return Path(path).suffix.lower() == ".gguf"


def is_gguf(path: str | os.PathLike[str]) -> bool:
    """Whether a checkpoint is one GGUF file, by its name or by how it begins, and not a directory."""
    if ends_in_gguf(path) or not Path(path).is_file():
        return ends_in_gguf(path) and not Path(path).is_dir()
    with Path(path).open("rb") as file:
        return file.read(4) == b"GGUF"


def check_new_directory(path: Path) -> None:
    """ModelError where a model would go over another one, or into a directory with the name of a file."""
    if path.suffix.lower() in _FILE_ENDINGS and not path.is_dir():
        raise ModelError(f"{path}: wanted a directory to write into, got the name of a file; leave out {path.suffix}")
    if path.is_file():
        raise ModelError(f"{path}: wanted a directory to write into, got a file; choose another name")
    if (path / "config.json").exists():
        raise ModelError(f"{path}: wanted a directory without a model, got one with config.json; choose another")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint directory, config.json for one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        got = f"no {path.name}" + (" but a directory of that name" if path.is_dir() else "")
        got = f"a file; give the directory that it is in ({path.parent.parent})" if path.parent.is_file() else got
        raise ModelError(
            f"{path.parent}: wanted a checkpoint directory with config.json and model.safetensors, got {got}"
        ) from None
    except (ValueError, RecursionError) as error:  # not UTF-8, no JSON, a number of 5,000 digits; nested too deep
        raise ModelError(f"{path}: wanted JSON, got a file that does not parse ({error}); write it again") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path}: wanted a JSON object, got {type(content).__name__}")
    return content


def weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the shards that its index names."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if not index.exists():
        pickles = sorted(path.name for end in ("*.bin", "*.pt", "*.pth") for path in folder.glob(end))
        got = "neither"
        if pickles:
            got += f", but {pickles[0]}: a pickle, which may run anything and is not opened; save it as safetensors"
        raise ModelError(f"{folder}: wanted model.safetensors or model.safetensors.index.json, got {got}")
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ModelError(f"{index}: wanted a weight_map of file names, got {names!r:.80}; download it again")
    for name in names.values():
        if not isinstance(name, str) or name in ("", "..") or Path(name).name != name:
            raise ModelError(f"{index}: wanted a weight_map of file names, all beside it, got {name!r:.80}")
    shards = [folder / name for name in sorted(set(names.values()))]
    absent = [shard.name for shard in shards if not shard.exists()]
    if absent:
        raise ModelError(
            f"{folder}: wanted the {len(shards)} files that {index.name} names, got {len(absent)} missing "
            f"({', '.join(absent)[:200]!r}); download them again"
        )
    return shards


def check_file(path: Path) -> None:
    """What cannot be opened, in the system's own words: safetensors calls a directory a missing device, and a file
    that may not be read a missing one."""
    if path.is_dir():
        raise ModelError(f"{path}: wanted a safetensors file, got a directory; download it again")
    path.open("rb").close()


def usual_name(name: str, config: TransformerConfig) -> str | None:
    """A stored tensor's name as transformers writes it today; None for what is not a weight of the model."""
    # causal masks that old GPT-2 files carry along, RoPE's frequencies that old Llama files do
    if name.endswith((".attn.bias", ".masked_bias", ".rotary_emb.inv_freq")):
        return None
    if config.tie_embeddings and name == "lm_head.weight":  # some files carry it as well; transformers ignores it too
        return None
    if config.position == "learned" and not name.startswith(("transformer.", "lm_head.")):
        return f"transformer.{name}"  # GPT-2 as OpenAI published it lacks the prefix
    return name
