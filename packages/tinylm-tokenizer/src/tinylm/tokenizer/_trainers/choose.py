"""`Tokenizer.train`: give the corpus and the options to the training of the algorithm that was asked for."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tinylm.tokenizer._errors import TokenizerError

if TYPE_CHECKING:
    from tinylm.tokenizer._engines.protocol import Engine, Progress

ALGORITHMS = ("bpe", "sentencepiece-bpe", "unigram", "wordpiece")


def train(
    corpus: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    vocab_size: int,
    algorithm: str,
    pattern: str | None,
    special_tokens: Sequence[str] | None,
    progress: Progress,
    threads: int | None = None,
) -> Engine:
    """See `Tokenizer.train`. Every option is checked before the corpus is read."""
    if algorithm not in ALGORITHMS:
        raise TokenizerError(f"unknown algorithm {algorithm!r}: choose one of {', '.join(ALGORITHMS)}")
    if pattern is not None and algorithm != "bpe":
        raise TokenizerError(f"pattern= is for the algorithm 'bpe'; {algorithm!r} cuts text in its own way")
    if threads is not None and algorithm == "sentencepiece-bpe":
        raise TokenizerError("threads= is for the other algorithms; 'sentencepiece-bpe' is trained on one")
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise TokenizerError(f"wanted 1 or more threads, got {threads!r}")
    if special_tokens is not None:
        special_tokens = _checked(special_tokens)
    if algorithm in ("sentencepiece-bpe", "unigram"):
        from tinylm.tokenizer._trainers import sentencepiece

        return sentencepiece.train(corpus, vocab_size, algorithm, special_tokens, progress, threads)
    if algorithm == "wordpiece":
        from tinylm.tokenizer._trainers import wordpiece

        return wordpiece.train(corpus, vocab_size, special_tokens, progress, threads)
    from tinylm.tokenizer._engines.byte_level import ByteLevelEngine
    from tinylm.tokenizer._trainers import byte_level

    special_tokens = ("<|endoftext|>",) if special_tokens is None else special_tokens
    vocabulary = byte_level.train(corpus, vocab_size, pattern or "cl100k", special_tokens, progress, threads)
    return ByteLevelEngine(vocabulary)


def _checked(special_tokens: Iterable[str]) -> tuple[str, ...]:
    """The special tokens. Errors: TokenizerError for what is no list of texts."""
    if isinstance(special_tokens, str):
        raise TokenizerError(f"wanted a list of special tokens, got the string {special_tokens!r}; put it into a list")
    try:
        texts = tuple(special_tokens)
        for text in texts:
            text.encode()
    except (TypeError, AttributeError, UnicodeEncodeError):  # the last: a lone surrogate
        raise TokenizerError(f"wanted special tokens that are text, got {special_tokens!r}") from None
    return texts
