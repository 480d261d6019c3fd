"""Learning byte-level merges in C++, the top rung: the same pieces as `_text/pretokenize.py`, merges as
`byte_bpe_fast.py`.

The C++: `src/kernels/count.hpp` counts pieces, `train.hpp` learns the merges, `train.cpp` is the border to Python. Does
not read files: see `_trainers/corpus.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tinylm.tokenizer import byte_bpe_fast, kernels
from tinylm.tokenizer._trainers.corpus import Chunk
from tinylm.tokenizer.byte_bpe import ID_OF_BYTE, Pair

_STEP = 256  # merges between two calls of `progress`: often enough for a progress bar


def train_merges(
    pieces: Mapping[str, int], wanted: int, progress: Callable[[int], None] = lambda done: None, threads: int = 1
) -> list[Pair]:
    """Learn at most `wanted` merges; `progress(n)` is called now and then with how many there are."""
    if not kernels.available():
        kernels._warn_once()
        return byte_bpe_fast.train_merges(pieces, wanted, progress)
    wanted = max(wanted, 0)
    numbers = list(pieces.values())
    with kernels._corpus_limits():
        trainer = kernels._compiled().make_trainer(list(pieces), numbers, ID_OF_BYTE, wanted, threads)
    return _learn(trainer, wanted, progress)


class PieceCounter:
    """Counts the pieces of chunks of text, then learns from them. Each thread needs one of its own to count with."""

    def __init__(self, pattern: str) -> None:
        self._counter = kernels._compiled().PieceCounter(pattern)

    def count(self, chunks: Sequence[Chunk]) -> None:
        """Count the pieces of `chunks`, with the GIL released. Errors: TokenizerError for bytes that are no text."""
        counted = self._counter.count([(chunk.data, chunk.stop, chunk.of_file) for chunk in chunks])
        if counted < len(chunks):
            chunks[counted].text()

    def absorb(self, other: PieceCounter) -> None:
        """Add what `other` has counted, and empty it."""
        self._counter.absorb(other._counter)

    @property
    def distinct(self) -> int:
        """How many different pieces there are."""
        return int(self._counter.distinct)

    @property
    def memory(self) -> int:
        """The bytes that learning from these pieces will need, about."""
        return int(80 * self._counter.distinct + 16 * self._counter.piece_bytes)

    def learn(self, wanted: int, progress: Callable[[int], None], threads: int = 1) -> list[Pair]:
        """Learn at most `wanted` merges from all that was counted. The counter is empty afterwards."""
        with kernels._corpus_limits():
            trainer = self._counter.trainer(ID_OF_BYTE, wanted, threads)
        return _learn(trainer, wanted, progress)


def _learn(trainer: Any, wanted: int, progress: Callable[[int], None]) -> list[Pair]:
    merges: list[Pair] = []
    while len(merges) < wanted:
        learned = trainer.step(min(_STEP, wanted - len(merges)))
        merges += learned
        progress(len(merges))
        if not learned:
            break
    return merges
