"""Rewrite a tokenizer in another format. Says in words what the target format cannot hold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tinylm.tokenizer import _sentencepiece_model, _tiktoken_format
from tinylm.tokenizer._atomic import write_atomic
from tinylm.tokenizer._byte_level import ByteLevelEngine
from tinylm.tokenizer._errors import TokenizerError
from tinylm.tokenizer._sentencepiece import SentencePieceEngine

if TYPE_CHECKING:
    from tinylm.tokenizer.tokenizer import Tokenizer


def convert(tokenizer: Tokenizer, target: Path) -> list[str]:
    """Write `tokenizer` to `target`: *.model, *.tiktoken, a path ending in vocab.json (merges.txt beside it), or a
    directory.

    Returns one line for each thing that the format has no place for. Errors: TokenizerError where ids would change.
    """
    if target.suffix == ".model" and isinstance(tokenizer.engine, SentencePieceEngine):
        data = _sentencepiece_model.write(tokenizer.engine.model)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, data)
        return []
    if target.suffix == ".model":
        raise TokenizerError(f"a .model file holds SentencePiece's algorithms; this tokenizer is {tokenizer.algorithm}")
    if not isinstance(tokenizer.engine, ByteLevelEngine):
        if target.suffix == ".tiktoken" or target.name == "vocab.json":
            raise TokenizerError(f"{target.name} holds byte-level BPE only; this tokenizer is {tokenizer.algorithm}")
        tokenizer.save(target)
        return []
    vocabulary = tokenizer.engine.vocabulary
    if target.suffix == ".tiktoken":
        data = _tiktoken_format.write(vocabulary)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, data)
        return [
            f"a .tiktoken file names no pattern: load it with pattern={vocabulary.stages[-1]!r}",
            f"a .tiktoken file names no special tokens: load it with special_tokens={tokenizer.special_tokens}",
        ]
    if target.name == "vocab.json":
        vocab, merges = _tiktoken_format.write_gpt2(vocabulary)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target.with_name("merges.txt"), merges)
        write_atomic(target, vocab)
        return [f"vocab.json and merges.txt name no pattern: load them with pattern={vocabulary.stages[-1]!r}"]
    tokenizer.save(target)
    return []
