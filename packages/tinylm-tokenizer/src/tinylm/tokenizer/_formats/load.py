"""Find out which format a path holds, and hand it to the file of this folder that reads that format.

Not here: what stands in the files. Next: `json_format.py` (tokenizer.json), `tiktoken_format.py`,
`sentencepiece_model.py`, `gguf.py`; convert.py writes.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinylm.tokenizer._errors import TokenizerError
from tinylm.tokenizer.patterns import TRAINABLE

if TYPE_CHECKING:
    from tinylm.tokenizer._engines.protocol import Engine


@dataclass(frozen=True)
class Loaded:
    """What a path holds: the engine, the files to write back as they are (if they were a tokenizer.json), and what
    stands beside it: the chat template and the names that tokenizer_config.json gives to the first and last token."""

    engine: Engine
    files: dict[str, bytes] | None = None
    chat_template: str | None = None
    bos_token: str | None = None
    eos_token: str | None = None


def load(path: str | os.PathLike[str], pattern: str | None, special_tokens: dict[str, int] | None) -> Loaded:
    """Read a tokenizer directory or file. Errors: TokenizerError that says what was wanted and what is there."""
    path = Path(path)
    if pattern is not None and pattern not in TRAINABLE:
        raise TokenizerError(f"unknown pattern {pattern!r}: choose one of {', '.join(TRAINABLE)}")
    try:
        path = _in_directory(path) if path.is_dir() else path
        path.stat()
    except (OSError, ValueError) as error:  # ValueError: a zero character in the name
        raise _no_tokenizer(path, error) from None
    if path.suffix == ".tiktoken":
        return Loaded(_ranks(path, pattern, special_tokens or {}))
    if special_tokens is not None:
        raise TokenizerError(f"special_tokens= is for .tiktoken files, which name none; {path.name} has its own")
    if path.name in ("vocab.json", "merges.txt"):
        return Loaded(_gpt2(path.parent, pattern))
    if pattern is not None:
        raise TokenizerError(f"pattern= is for files that name no pattern; {path.name} has its own")
    if path.name == "vocab.txt":
        from tinylm.tokenizer import wordpiece
        from tinylm.tokenizer._engines import wordpiece as _wordpiece

        return Loaded(_wordpiece.WordPieceEngine(wordpiece.read_vocab(_bytes(path), str(path))), **_beside(path.parent))
    if path.name == "merge_rules.txt":
        from tinylm.tokenizer._engines import naive

        return Loaded(naive.load(path.parent))
    if path.suffix == ".model":
        from tinylm.tokenizer._engines import sentencepiece
        from tinylm.tokenizer._formats import sentencepiece_model

        return Loaded(sentencepiece.SentencePieceEngine(sentencepiece_model.read(_bytes(path), str(path))))
    if path.suffix == ".gguf":
        from tinylm.tokenizer._formats import gguf

        held = gguf.load(path)
        return Loaded(held.engine, None, held.chat_template, held.bos_token, held.eos_token)
    if path.suffix != ".json":
        raise TokenizerError(
            f"wanted tokenizer.json, vocab.json + merges.txt, *.tiktoken, *.model or *.gguf, got {path}"
        )
    from tinylm.tokenizer._formats import json_format

    data = _bytes(path)
    return Loaded(json_format.read(data, str(path)), {"tokenizer.json": data}, **_beside(path.parent))


def _ranks(path: Path, pattern: str | None, special_tokens: dict[str, int]) -> Engine:
    from tinylm.tokenizer._engines import byte_level
    from tinylm.tokenizer._formats import tiktoken_format

    return byte_level.ByteLevelEngine(tiktoken_format.read(_bytes(path), str(path), pattern, special_tokens))


def _gpt2(directory: Path, pattern: str | None) -> Engine:
    from tinylm.tokenizer._engines import byte_level
    from tinylm.tokenizer._formats import tiktoken_format

    vocab, merges = _bytes(directory / "vocab.json"), _bytes(directory / "merges.txt")
    return byte_level.byte_level_engine(tiktoken_format.read_gpt2(vocab, merges, str(directory), pattern))


def _in_directory(directory: Path) -> Path:
    for name in ("tokenizer.json", "vocab.json"):
        if (directory / name).is_file() and (name == "tokenizer.json" or (directory / "merges.txt").is_file()):
            return directory / name
    alone = sorted(path for suffix in ("tiktoken", "model", "gguf") for path in directory.glob(f"*.{suffix}"))
    if len(alone) == 1:
        return alone[0]
    if (directory / "merge_rules.txt").is_file():
        return directory / "merge_rules.txt"
    if (directory / "vocab.txt").is_file():
        return directory / "vocab.txt"
    names = ", ".join(sorted(entry.name for entry in directory.iterdir())[:8]) or "nothing"
    raise TokenizerError(
        f"wanted tokenizer.json, vocab.json + merges.txt, or one *.tiktoken, *.model or *.gguf in {directory}, got "
        f"{names}"
    )


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _no_tokenizer(path, error) from None


def _no_tokenizer(path: Path, error: OSError | ValueError) -> TokenizerError:
    reason = getattr(error, "strerror", None) or error
    return TokenizerError(
        f"wanted a tokenizer, got {path}: {reason}; check the path, or make one with `tinylm-tokenizer train`"
    )


def _beside(directory: Path) -> dict[str, Any]:
    """The chat template and special names in the files beside a tokenizer.json, as Hugging Face keeps them."""
    found: dict[str, Any] = {}
    settings = directory / "tokenizer_config.json"
    if settings.is_file():
        try:
            config = json.loads(settings.read_bytes().decode())
            found["chat_template"] = _template_of(config.get("chat_template"))
            for name in ("bos_token", "eos_token"):
                token = config.get(name)
                found[name] = token.get("content") if isinstance(token, dict) else token
                if not isinstance(found[name], (str, type(None))):
                    raise TypeError(f"{name} is {token!r}")
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise TokenizerError(f"wanted Hugging Face's settings in {settings}, got a broken file: {error}") from None
    template = directory / "chat_template.jinja"
    if template.is_file():
        try:
            found["chat_template"] = template.read_bytes().decode()
        except UnicodeDecodeError as error:
            raise TokenizerError(f"wanted UTF-8 text in {template}, got a broken file: {error}") from None
    return found


def _template_of(entry: Any) -> str | None:
    """A template, or the one called "default" in a list of named ones."""
    if isinstance(entry, list):
        named = {item.get("name"): item.get("template") for item in entry}
        entry = named.get("default")
    return entry if isinstance(entry, str) else None
