"""`Tokenizer.train` for "sentencepiece-bpe" and "unigram": options, the rung at hand, the engine of what it learned.

In memory are about a megabyte of a file (or its longest line) and the distinct words, never the corpus; where learning
from them would need more memory than there is, it stops and says so. With the defaults nothing of a text is
lost: spaces are "▁", and what no piece covers becomes bytes. For other options call `train` of the rungs
(`sentencepiece_bpe_training.py`, `unigram_training.py`) with `Options` and make `SentencePieceEngine(model)`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tinylm.tokenizer._engines.sentencepiece import SentencePieceEngine
from tinylm.tokenizer._errors import TokenizerError
from tinylm.tokenizer._trainers.corpus import Corpus, lines, size_of
from tinylm.tokenizer._trainers.sentencepiece_corpus import Options
from tinylm.tokenizer.kernels.sentencepiece_training import train_bpe, train_unigram

if TYPE_CHECKING:
    from tinylm.tokenizer._engines.protocol import Progress


def train(
    corpus: Corpus,
    vocab_size: int,
    algorithm: str,
    special_tokens: Sequence[str] | None,
    progress: Progress,
    threads: int | None = None,
) -> SentencePieceEngine:
    """See `Tokenizer.train`. special_tokens: default <s> and </s>; <unk> is always there. Every option is checked
    before the corpus is read."""
    control = Options.control if special_tokens is None else tuple(special_tokens)
    options = Options(vocab_size, control=tuple(text for text in control if text != "<unk>"))
    options.check()
    size = size_of(corpus)
    texts = lines(corpus, lambda read: progress("bytes", read, size))
    try:
        if algorithm == "unigram":
            model = train_unigram(
                texts, options, lambda done, wanted: progress("pruned", done, wanted), threads=threads
            )
        else:
            model = train_bpe(texts, options, lambda done, wanted: progress("merges", done, wanted))
    except UnicodeEncodeError as error:
        surrogate = ord(error.object[error.start])
        raise TokenizerError(f"wanted text, got the lone surrogate U+{surrogate:04X} in the corpus") from None
    if len(model.pieces) < vocab_size:
        warnings.warn(
            f"the corpus has no more pieces: the vocabulary has {len(model.pieces)} tokens instead of {vocab_size}; "
            "give more text or a smaller vocab_size",
            stacklevel=4,
        )
    return SentencePieceEngine(model)
