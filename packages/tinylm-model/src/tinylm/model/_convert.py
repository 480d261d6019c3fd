"""What `tinylm-model convert` does: Hugging Face directory or GGUF file in, either of them out.

Not here: the formats (checkpoint.py, gguf/), what people type (cli.py). A tokenizer is carried along as a file or as
GGUF's pairs; making tokenizer.json out of a GGUF file is tinylm-tokenizer's. Next: checkpoint.py.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tinylm.model._atomic import atomic_path
from tinylm.model._errors import ModelError
from tinylm.model._files import check_new_directory, ends_in_gguf, is_gguf, read_json

COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
    "chat_template.jinja",
)
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
FORMATS = ("huggingface", "gguf")


def convert(source: Path, out: Path, to: str, dtype: str | None) -> list[str]:
    """Write `out` in format `to`; dtype None keeps the source's numbers. Returns lines for the user."""
    if to not in FORMATS:
        raise ModelError(f"--to: wanted one of {', '.join(FORMATS)}, got {to!r}")
    if out.exists() and source.exists() and out.samefile(source):
        raise ModelError(f"convert: wanted --out to be another place than the source, got {out} for both")
    return _to_gguf(source, out, dtype) if to == "gguf" else _to_huggingface(source, out, dtype)


def _to_gguf(source: Path, out: Path, dtype: str | None) -> list[str]:
    from tinylm.model.checkpoint import load
    from tinylm.model.gguf import files
    from tinylm.model.gguf.reader import GGUF
    from tinylm.model.gguf.tokenizer import tokenizer_pairs

    if not ends_in_gguf(out) or out.is_dir():
        raise ModelError(f"--out: wanted the name of a file that ends in .gguf, got {out}")
    if out.exists():
        raise ModelError(f"--out: wanted the name of a file to be made, got {out}, which exists; choose another")
    if not out.parent.is_dir():
        raise ModelError(f"--out: wanted a file in a directory that exists, got {out}")
    model = load(source)
    kind = dtype or str(model.embed.weight.dtype).removeprefix("torch.")
    if kind not in files.KINDS:
        raise ModelError(f"--dtype: wanted one of {', '.join(files.KINDS)} for GGUF, got {kind}")
    if is_gguf(source):
        pairs = {key: pair for key, pair in GGUF(source).pairs.items() if key.startswith("tokenizer.")}
        notes: list[str] = []
    else:
        pairs, notes = tokenizer_pairs(source, model.config.vocab_size)
    files.save(model, out, kind, pairs)
    vocabulary = ", with its tokenizer" if "tokenizer.ggml.tokens" in pairs else ""
    return [f"{out}: {model.config.parameter_count():,} parameters in {kind}{vocabulary}", *notes]


def _to_huggingface(source: Path, out: Path, dtype: str | None) -> list[str]:
    from tinylm.model.checkpoint import load, read_provenance, save

    if dtype == "q8_0":
        raise ModelError("--dtype: q8_0 is a type of GGUF's; give --to gguf, or another type")
    check_new_directory(out)
    gguf = is_gguf(source)
    ids, notes = _ends(source, out) if gguf else (_special_ids(source), [])
    model = load(source, dtype)
    provenance = {} if gguf else read_provenance(source)
    is_new = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in () if gguf else COMPANIONS:  # before the model: what has a config.json is whole
            if (source / name).exists():
                with atomic_path(out / name) as path:
                    shutil.copyfile(source / name, path)
        if ids:
            with atomic_path(out / "generation_config.json") as path:
                path.write_text(json.dumps(ids, indent=2) + "\n", encoding="utf-8")
        save(model, out, provenance)
    except BaseException:
        if is_new:
            shutil.rmtree(out, ignore_errors=True)
        raise
    return [f"{out}: {model.config.parameter_count():,} parameters in {str(model.embed.weight.dtype)[6:]}", *notes]


def _special_ids(source: Path) -> dict[str, Any]:
    """generation_config.json with the ids that config.json alone has, since ours has none; {} where there are none."""
    path = source / "generation_config.json"
    said = read_json(path) if path.exists() else {}
    fields = read_json(source / "config.json")
    only = {name: fields.get(name) for name in SPECIAL_IDS if said.get(name) is None and _is_id(fields.get(name))}
    return said | only if only else {}


def _is_id(value: Any) -> bool:
    """Whether it is an id, or several: eos_token_id may be a list."""
    several = value if isinstance(value, list) else [value]
    return bool(several) and all(type(id) is int and id >= 0 for id in several)


def _ends(source: Path, out: Path) -> tuple[dict[str, Any], list[str]]:
    """generation_config.json with the ids that begin and end a text, where the GGUF file names them, and what the user
    should know of its tokenizer."""
    from tinylm.model.gguf.reader import GGUF

    file = GGUF(source)
    ids = {f"{name}_token_id": file.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")}
    known = {name: number for name, number in ids.items() if type(number) is int}
    if "tokenizer.ggml.tokens" not in file.pairs:
        return known, ["the GGUF file carries no tokenizer"]
    return known, [f"tokenizer.json is still missing: tinylm-tokenizer convert {source} {out}"]
