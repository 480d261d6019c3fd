"""Learning WordPiece pieces in C++, the top rung: the pieces of `wordpiece_training.py` beside this folder.

The C++ stands in `src/kernels/`: `wordpiece_words.hpp` cuts text into words, `wordpiece_train.hpp` counts them and
learns, `wordpiece.cpp` is the border to Python. Learns by `likelihood_gain` only, and does not read files: see
`_trainers/wordpiece.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinylm.tokenizer import kernels
from tinylm.tokenizer.kernels.wordpiece import _characters
from tinylm.tokenizer.wordpiece_training import ALPHABET, room, vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tinylm.tokenizer._text.wordpiece_text import Rules
    from tinylm.tokenizer._trainers.corpus import Chunk
    from tinylm.tokenizer.wordpiece import WordPieces

_STEP = 64  # pieces between two calls of `progress`: often enough for a progress bar and for Ctrl-C


class WordCounter:
    """Counts the words of chunks of text, then learns from them. Each thread needs one of its own to count with."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._counts = kernels._compiled().WordCounts(rules.lower, *_characters(rules))

    def count(self, chunks: Sequence[Chunk]) -> None:
        """Count the words of `chunks`, with the GIL released. Errors: TokenizerError for bytes that are no text."""
        counted = self._counts.count([(chunk.data, chunk.stop, chunk.of_file) for chunk in chunks])
        if counted < len(chunks):
            chunks[counted].text()

    def absorb(self, other: WordCounter) -> None:
        """Add what `other` has counted, and empty it."""
        self._counts.absorb(other._counts)

    @property
    def distinct(self) -> int:
        """How many different words there are."""
        return int(self._counts.distinct)

    @property
    def memory(self) -> int:
        """The bytes that learning from these words will need, about."""
        return int(300 * self._counts.distinct + 40 * self._counts.word_bytes)

    def learn(self, vocab_size: int, special_tokens: list[str], progress: Callable[[int, int], None]) -> WordPieces:
        """`wordpiece_training.train` of all that was counted. The counter is empty afterwards."""
        trainer = self._counts.trainer(ALPHABET)
        pieces: list[str] = list(trainer.alphabet)
        first = len(pieces)
        wanted = room(vocab_size, special_tokens, pieces)
        while len(pieces) - first < wanted:
            learned: list[str] = trainer.step(min(_STEP, wanted - (len(pieces) - first)))
            pieces += learned
            progress(len(pieces) - first, wanted)
            if not learned:
                break
        return vocabulary(special_tokens, pieces, self._rules)
