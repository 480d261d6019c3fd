"""Find out which format a path holds, and hand it to the file of this folder that reads that format.

Not here: what stands in the files. Next: `json_format.py` (tokenizer.json), `tiktoken_format.py`,
`sentencepiece_model.py`, `gguf.py`; convert.py writes.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinylm.tokenizer._errors import TokenizerError
from tinylm.tokenizer.patterns import TRAINABLE

if TYPE_CHECKING:
    from tinylm.tokenizer._engines.protocol import Engine
    from tinylm.tokenizer._text.wordpiece_text import Rules


@dataclass(frozen=True)
class Loaded:
    """What a path holds: the engine, the files to write back as they are and the settings to keep (if they were a
    tokenizer.json and a tokenizer_config.json), and what stands beside it: the chat template and the names that
    tokenizer_config.json gives to the first and last token."""

    engine: Engine
    files: dict[str, bytes] | None = None
    chat_template: str | None = None
    bos_token: str | None = None
    eos_token: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)


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
        return Loaded(_gpt2(path.parent, pattern), **_beside(path.parent, _settings(path.parent)))
    if pattern is not None:
        raise TokenizerError(f"pattern= is for files that name no pattern; {path.name} has its own")
    if path.name == "vocab.txt":
        from tinylm.tokenizer import wordpiece
        from tinylm.tokenizer._engines import wordpiece as _wordpiece

        settings = _settings(path.parent)
        pieces = wordpiece.read_vocab(_bytes(path), str(path), _rules(settings))
        return Loaded(_wordpiece.WordPieceEngine(pieces), **_beside(path.parent, settings))
    if path.name == "merge_rules.txt":
        from tinylm.tokenizer._engines import naive

        return Loaded(naive.load(path.parent))
    if path.suffix == ".model":
        from tinylm.tokenizer._engines import sentencepiece
        from tinylm.tokenizer._formats import sentencepiece_model

        model = sentencepiece_model.read(_bytes(path), str(path))
        return Loaded(sentencepiece.SentencePieceEngine(model), **_beside(path.parent, _settings(path.parent)))
    if path.suffix == ".gguf":
        from tinylm.tokenizer._formats import gguf

        held = gguf.load(path)
        return Loaded(held.engine, None, held.chat_template, held.bos_token, held.eos_token)
    if path.suffix != ".json":
        raise TokenizerError(
            f"wanted tokenizer.json, vocab.json + merges.txt, vocab.txt, *.tiktoken, *.model or *.gguf, got {path}"
        )
    from tinylm.tokenizer._formats import json_format

    data, settings = _bytes(path), _settings(path.parent)
    beside = _beside(path.parent, settings)
    settings.pop("chat_template", None)  # it may change, and has a file of its own
    engine = json_format.read(data, str(path))
    return Loaded(engine, {"tokenizer.json": data}, settings=settings, **beside)


def says_no_pattern(path: str | os.PathLike[str]) -> bool:
    """Whether `path` names no pattern: a *.tiktoken that is not known, or vocab.json + merges.txt."""
    from tinylm.tokenizer._formats import tiktoken_format

    path = Path(path)
    path = _in_directory(path) if path.is_dir() else path
    if path.suffix == ".tiktoken":
        return not tiktoken_format.is_known(_bytes(path))
    return path.name in ("vocab.json", "merges.txt")


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
        "wanted tokenizer.json, vocab.json + merges.txt, vocab.txt, or one *.tiktoken, *.model or *.gguf in "
        f"{directory}, got {names}"
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


def _settings(directory: Path) -> dict[str, Any]:
    """What tokenizer_config.json says, where Hugging Face keeps what vocabularies do not; nothing if there is none."""
    path = directory / "tokenizer_config.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes().decode())
        if not isinstance(content, dict):
            raise ValueError("it is no object")
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"wanted JSON in {path}, got a broken file: {error}") from None
    return content


def _rules(settings: dict[str, Any]) -> Rules | None:
    """How BERT cuts text, if the settings say so."""
    names = ("do_lower_case", "strip_accents", "tokenize_chinese_chars")
    if not any(name in settings for name in names):
        return None
    lower, accents, chinese = (settings.get(name) for name in names)
    if any(value is not None and not isinstance(value, bool) for value in (lower, accents, chinese)):
        raise TokenizerError(f"wanted true, false or null for {', '.join(names)} in tokenizer_config.json")
    from tinylm.tokenizer._text.wordpiece_text import Rules

    lower = lower is not False  # the defaults are those of transformers
    return Rules(cjk=chinese is not False, accents=lower if accents is None else accents, lower=lower)


def _beside(directory: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The chat template and special names in `settings` and the file beside a vocabulary, as Hugging Face has them."""
    found: dict[str, Any] = {"chat_template": _template_of(settings.get("chat_template"))}
    for name in ("bos_token", "eos_token"):
        token = settings.get(name)
        found[name] = token.get("content") if isinstance(token, dict) else token
        if not isinstance(found[name], (str, type(None))):
            raise TokenizerError(f"wanted a text for {name} in {directory}/tokenizer_config.json, got {token!r}")
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
        try:
            entry = {item["name"]: item["template"] for item in entry}.get("default")
        except (TypeError, KeyError) as error:
            raise TokenizerError(f"wanted templates and their names in tokenizer_config.json, got {error!r}") from None
    return entry if isinstance(entry, str) else None
