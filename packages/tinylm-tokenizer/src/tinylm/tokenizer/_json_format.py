"""`tokenizer.json` in the schema of Hugging Face's tokenizers: parse it and give it to the reader of its algorithm.

Does not touch the disk (see `_load.py`). Next: `_json_byte_level.py`, `_json_sentencepiece.py`, `_json_wordpiece.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tinylm.tokenizer._errors import TokenizerError
from tinylm.tokenizer._json_parts import flat

if TYPE_CHECKING:
    from tinylm.tokenizer._engine import Engine


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
    kind = content["model"].get("type", "BPE")
    stages = [part["type"] for part in flat(content.get("pre_tokenizer"), "pretokenizers")]
    if kind == "BPE" and "ByteLevel" in stages:
        from tinylm.tokenizer import _byte_level, _json_byte_level

        return _byte_level.ByteLevelEngine(_json_byte_level.read(content, where))
    if kind in ("BPE", "Unigram"):
        from tinylm.tokenizer import _json_sentencepiece, _sentencepiece

        return _sentencepiece.SentencePieceEngine(_json_sentencepiece.read(content, where))
    if kind == "WordPiece":
        from tinylm.tokenizer import _json_wordpiece, _wordpiece

        return _wordpiece.WordPieceEngine(_json_wordpiece.read(content, where))
    raise TokenizerError(
        f"{where}: the model is {kind} and the pre-tokenizer {' and '.join(stages) or 'none'}, which is not supported; "
        "wanted BPE, Unigram or WordPiece"
    )
