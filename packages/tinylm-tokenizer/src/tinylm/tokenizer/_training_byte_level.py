"""Training byte-level BPE: check the options, count the corpus's pieces, learn the merges on the best rung at hand."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence

from tinylm.tokenizer import kernels
from tinylm.tokenizer._corpus import texts
from tinylm.tokenizer._engine import Progress
from tinylm.tokenizer._errors import TokenizerError
from tinylm.tokenizer._pretokenize import count_pieces
from tinylm.tokenizer._vocabulary import Vocabulary, from_training
from tinylm.tokenizer.patterns import TRAINABLE


def train(
    corpus: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    vocab_size: int,
    pattern: str,
    special_tokens: Sequence[str],
    progress: Progress,
) -> Vocabulary:
    """See `Tokenizer.train`. Every option is checked before the corpus is read."""
    _check(vocab_size, pattern, special_tokens)
    wanted = vocab_size - 256 - len(special_tokens)
    try:
        pieces = count_pieces(texts(corpus), (pattern,))
        if not pieces:
            raise TokenizerError("wanted a corpus with text, got an empty one")
        merges = kernels.train_merges(pieces, wanted, lambda done: progress("merges", done, wanted))
    except UnicodeEncodeError as error:
        surrogate = ord(error.object[error.start])
        raise TokenizerError(f"wanted text, got the lone surrogate U+{surrogate:04X} in the corpus") from None
    if len(merges) < wanted:
        got = 256 + len(merges) + len(special_tokens)
        warnings.warn(
            f"the corpus has no pair left to merge: the vocabulary has {got} tokens instead of {vocab_size}; "
            "give more text or a smaller vocab_size",
            stacklevel=4,
        )
    return from_training(merges, special_tokens, pattern)


def _check(vocab_size: int, pattern: str, special_tokens: Sequence[str]) -> None:
    if pattern not in TRAINABLE:
        raise TokenizerError(f"unknown pattern {pattern!r}: choose one of {', '.join(TRAINABLE)}")
    if isinstance(special_tokens, str):
        raise TokenizerError(f"wanted a list of special tokens, got the string {special_tokens!r}; put it into a list")
    if len(set(special_tokens)) != len(special_tokens) or not all(special_tokens):
        raise TokenizerError(f"wanted special tokens that differ and are not empty, got {list(special_tokens)}")
    least = 256 + len(special_tokens)
    if not isinstance(vocab_size, int) or vocab_size < least:
        raise TokenizerError(
            f"wanted a vocab_size of at least {least} (256 bytes and {len(special_tokens)} special tokens), "
            f"got {vocab_size!r}"
        )
    if vocab_size > 2**31:
        raise TokenizerError(f"wanted a vocab_size of at most 2**31, got {vocab_size}")
