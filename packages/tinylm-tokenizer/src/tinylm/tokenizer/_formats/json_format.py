"""`tokenizer.json` in the schema of Hugging Face's tokenizers: parse it and give it to the reader of its algorithm.

Does not touch the disk (see `load.py`). Next: `json_byte_level.py`, `json_sentencepiece.py`, `json_wordpiece.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tinylm.tokenizer._errors import TokenizerError
from tinylm.tokenizer._formats.json_parts import flat

if TYPE_CHECKING:
    from tinylm.tokenizer._engines.protocol import Engine


_VERSION = "1.0"
_STEPS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_PARTS = ("version", "truncation", "padding", "added_tokens", *_STEPS, "model")


def read(data: bytes, where: str) -> Engine:
    """The engine of a tokenizer.json; `where` names the file in error messages.

    Errors: TokenizerError for JSON that is broken or no tokenizer, and for each part that is not understood.
    """
    try:
        content = json.loads(data.decode())
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise TokenizerError(
            f"wanted a tokenizer.json, got broken JSON in {where}: {error}; the file is damaged or cut short"
        ) from None
    try:
        return _engine(content, where)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        if isinstance(error, TokenizerError):
            raise
        raise TokenizerError(
            f"wanted a tokenizer.json in the schema of Hugging Face's tokenizers, got something else in {where} "
            f"({type(error).__name__}: {error})"
        ) from None


def _engine(content: Mapping[str, Any], where: str) -> Engine:
    if strange := [name for name in content if name not in _PARTS]:
        raise TokenizerError(f"{where}: the part {strange[0]!r} is not known; wanted only {', '.join(_PARTS)}")
    if content.get("version", _VERSION) != _VERSION:
        raise TokenizerError(f"{where}: the version is {content['version']!r}, which is not known; wanted {_VERSION}")
    kind = content["model"].get("type", "BPE")
    stages = [part["type"] for part in flat(content.get("pre_tokenizer"), "pretokenizers")]
    if kind == "BPE" and "ByteLevel" in stages:
        from tinylm.tokenizer._engines import byte_level
        from tinylm.tokenizer._formats import json_byte_level

        return byte_level.byte_level_engine(json_byte_level.read(content, where))
    if kind in ("BPE", "Unigram"):
        from tinylm.tokenizer._engines import sentencepiece
        from tinylm.tokenizer._formats import json_sentencepiece

        return sentencepiece.SentencePieceEngine(json_sentencepiece.read(content, where))
    if kind == "WordPiece":
        from tinylm.tokenizer._engines import wordpiece
        from tinylm.tokenizer._formats import json_wordpiece

        return wordpiece.WordPieceEngine(json_wordpiece.read(content, where))
    raise TokenizerError(
        f"{where}: the model is {kind} and the pre-tokenizer {' and '.join(stages) or 'none'}, which is not supported; "
        "wanted BPE, Unigram or WordPiece"
    )
