"""Training byte-level BPE: check the options, count the corpus's pieces, learn the merges on the best rung at hand.

The merges do not depend on the order of the texts, on how these are cut into chunks, or on the number of threads: see
`counting.py`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence

from tinylm.tokenizer import byte_bpe_fast, kernels
from tinylm.tokenizer._engines.protocol import Progress
from tinylm.tokenizer._engines.vocabulary import Vocabulary, from_training
from tinylm.tokenizer._errors import TokenizerError
from tinylm.tokenizer._formats.json_byte_level import from_printable, is_printable
from tinylm.tokenizer._text.pretokenize import split
from tinylm.tokenizer._trainers import counting
from tinylm.tokenizer._trainers.corpus import Chunk, Corpus
from tinylm.tokenizer.byte_bpe import Pair
from tinylm.tokenizer.patterns import TRAINABLE


def train(
    corpus: Corpus,
    vocab_size: int,
    pattern: str,
    special_tokens: Sequence[str],
    progress: Progress,
    threads: int | None = None,
) -> Vocabulary:
    """See `Tokenizer.train`. Every option is checked before the corpus is read."""
    _check(vocab_size, pattern, special_tokens, threads)
    wanted = vocab_size - 256 - len(special_tokens)
    make: type[kernels.PieceCounter | _PythonCounter] = kernels.PieceCounter
    threads = threads or os.cpu_count() or 1
    if not kernels.available():
        kernels._warn_once()
        make, threads = _PythonCounter, 1  # Python threads would wait for each other
    counter = counting.count(corpus, lambda: make(pattern), threads, progress)
    merges = counter.learn(wanted, lambda done: progress("merges", done, wanted), threads)
    if len(merges) < wanted:
        got = 256 + len(merges) + len(special_tokens)
        warnings.warn(
            f"the corpus has no pair left to merge: the vocabulary has {got} tokens instead of {vocab_size}; "
            "give more text or a smaller vocab_size",
            stacklevel=4,
        )
    return from_training(merges, special_tokens, pattern)


class _PythonCounter(counting.PythonCounter):
    """The same as `kernels.PieceCounter` on the Python rung."""

    each = 2000

    def __init__(self, pattern: str) -> None:
        super().__init__()
        self._pattern = pattern

    def pieces(self, chunk: Chunk) -> list[str]:
        pieces = split(chunk.text(), (self._pattern,))
        return pieces[:-1] if chunk.stop < len(chunk.data) else pieces  # the last: only looked at

    def learn(self, wanted: int, progress: Callable[[int], None], threads: int = 1) -> list[Pair]:
        return byte_bpe_fast.train_merges(self.counts, wanted, progress)


def _check(vocab_size: int, pattern: str, special_tokens: Sequence[str], threads: int | None) -> None:
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise TokenizerError(f"wanted 1 or more threads, got {threads!r}")
    if pattern not in TRAINABLE:
        raise TokenizerError(f"unknown pattern {pattern!r}: choose one of {', '.join(TRAINABLE)}")
    if len(set(special_tokens)) != len(special_tokens) or not all(special_tokens):
        raise TokenizerError(f"wanted special tokens that differ and are not empty, got {list(special_tokens)}")
    for text in special_tokens:
        if _may_be_learned(text, pattern):
            raise TokenizerError(
                f"the special token {text!r} can be the name of a learned token, too; write it like <|this|>"
            )
    least = 256 + len(special_tokens)
    if not isinstance(vocab_size, int) or vocab_size < least:
        raise TokenizerError(
            f"wanted a vocab_size of at least {least} (256 bytes and {len(special_tokens)} special tokens), "
            f"got {vocab_size!r}"
        )
    if vocab_size >= 2**24:
        raise TokenizerError(f"wanted a vocab_size below 2**24 (16,777,216), got {vocab_size}")


def _may_be_learned(text: str, pattern: str) -> bool:
    """Whether a tokenizer.json, which has one place for a name, may have to hold `text` as a token, too."""
    if not is_printable(text):
        return False
    try:
        return len(text) == 1 or len(split(from_printable(text).decode(), (pattern,))) == 1
    except UnicodeDecodeError:
        return False
