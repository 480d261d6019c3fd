"""What `tinylm-model convert` does: Hugging Face directory or GGUF file in, either of them out.

Not here: the formats (checkpoint.py, gguf/), what people type (cli.py). A tokenizer is carried along as a file or as
GGUF's pairs; making tokenizer.json out of a GGUF file is tinylm-tokenizer's. Next: checkpoint.py.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tinylm.model._atomic import atomic_path
from tinylm.model._errors import ModelError
from tinylm.model._files import is_gguf

COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
)
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

    if out.suffix != ".gguf" or out.is_dir():
        raise ModelError(f"--out: wanted the name of a file that ends in .gguf, got {out}")
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
    if out.suffix == ".gguf":
        raise ModelError(f"--out: wanted a directory with --to huggingface, got {out}")
    model = load(source, dtype)
    notes: list[str] = []
    if is_gguf(source):
        save(model, out)
        notes = _ends(source, out)
    else:
        save(model, out, read_provenance(source))
        for name in COMPANIONS:
            if (source / name).exists():
                with atomic_path(out / name) as path:
                    shutil.copyfile(source / name, path)
    return [f"{out}: {model.config.parameter_count():,} parameters in {str(model.embed.weight.dtype)[6:]}", *notes]


def _ends(source: Path, out: Path) -> list[str]:
    """generation_config.json with the ids that begin and end a text, where the GGUF file names them."""
    from tinylm.model.gguf.reader import GGUF

    file = GGUF(source)
    ids = {f"{name}_token_id": file.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")}
    known = {name: number for name, number in ids.items() if type(number) is int}
    if known:
        with atomic_path(out / "generation_config.json") as path:
            path.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    if "tokenizer.ggml.tokens" not in file.pairs:
        return ["the GGUF file carries no tokenizer"]
    return [f"tokenizer.json is still missing: tinylm-tokenizer convert {source} {out}"]
