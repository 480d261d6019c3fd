"""`Tokenizer.train` for "wordpiece": options, the words of the corpus, the rung at hand, the engine of what it learned.

Text is cut into words by BERT's rules for lower-cased text; for other rules or another score call the rung
(`wordpiece_training.py`) and make `WordPieceEngine(pieces)`. The pieces do not depend on the order of the texts, on how
these are cut into chunks, or on the number of threads: see `counting.py`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tinylm.tokenizer import kernels, wordpiece_training
from tinylm.tokenizer._engines.wordpiece import WordPieceEngine
from tinylm.tokenizer._errors import TokenizerError
from tinylm.tokenizer._text.wordpiece_text import Rules, Splitter
from tinylm.tokenizer._trainers import counting
from tinylm.tokenizer.kernels.wordpiece_training import WordCounter
from tinylm.tokenizer.wordpiece import CONTINUES, SPECIAL_TOKENS, WordPieces

if TYPE_CHECKING:
    from tinylm.tokenizer._engines.protocol import Progress
    from tinylm.tokenizer._trainers.corpus import Chunk, Corpus


def train(
    corpus: Corpus,
    vocab_size: int,
    special_tokens: Sequence[str] | None,
    progress: Progress,
    threads: int | None = None,
) -> WordPieceEngine:
    """See `Tokenizer.train`. special_tokens: BERT's are always there. Every option is checked before the corpus is
    read."""
    specials = _check(vocab_size, special_tokens)
    make: type[WordCounter | _PythonCounter] = WordCounter
    threads = threads or os.cpu_count() or 1
    if not kernels.available():
        kernels._warn_once()
        make, threads = _PythonCounter, 1  # Python threads would wait for each other
    counter = counting.count(corpus, lambda: make(Rules()), threads, progress)
    pieces = counter.learn(vocab_size, specials, lambda done, wanted: progress("pieces", done, wanted))
    got = len(pieces.tokens) + len(specials)
    if got < vocab_size:
        warnings.warn(
            f"no further piece makes the corpus likelier: the vocabulary has {got} tokens instead of {vocab_size}; "
            "give more text or a smaller vocab_size",
            stacklevel=4,
        )
    return WordPieceEngine(pieces)


def _check(vocab_size: int, special_tokens: Sequence[str] | None) -> list[str]:
    """All special tokens: BERT's, and those that are named."""
    specials = [*SPECIAL_TOKENS, *(text for text in special_tokens or () if text not in SPECIAL_TOKENS)]
    if len(set(specials)) != len(specials) or not all(specials):
        raise TokenizerError(f"wanted special tokens that differ and are not empty, got {special_tokens}")
    splitter = Splitter(Rules())
    for text in specials:
        if (part := text.removeprefix(CONTINUES)) and splitter.words(part) == [part]:
            raise TokenizerError(f"the special token {text!r} can be a piece of a word, too; write it like [THIS]")
    if type(vocab_size) is not int or not len(specials) < vocab_size <= 2**31:
        raise TokenizerError(f"wanted a vocab_size from {len(specials) + 1} to 2**31, got {vocab_size!r}")
    return specials


class _PythonCounter(counting.PythonCounter):
    """The same as `WordCounter` on the Python rung."""

    each = 4000

    def __init__(self, rules: Rules) -> None:
        super().__init__()
        self._splitter = Splitter(rules)

    def pieces(self, chunk: Chunk) -> list[str]:
        """The words; a chunk stops at white space, or behind it, where every word ends."""
        return self._splitter.words(chunk._replace(data=chunk.data[: chunk.stop]).text())

    def learn(self, vocab_size: int, special_tokens: list[str], progress: Callable[[int, int], None]) -> WordPieces:
        rules = self._splitter.rules
        return wordpiece_training.train(self.counts, vocab_size, special_tokens, rules, progress=progress)
