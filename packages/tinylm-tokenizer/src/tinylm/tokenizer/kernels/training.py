"""Learning byte-level merges in C++, the top rung: the same merges as `byte_bpe_fast.py`.

The C++: `src/kernels/train.hpp` learns the merges, `train.cpp` is the border to Python. Does not cut or count pieces:
see `_pretokenize.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tinylm.tokenizer import byte_bpe_fast, kernels
from tinylm.tokenizer.byte_bpe import ID_OF_BYTE, Pair

_STEP = 32  # merges between two calls of `progress`: often enough for a progress bar and for Ctrl-C


def train_merges(
    pieces: Mapping[str, int], wanted: int, progress: Callable[[int], None] = lambda done: None
) -> list[Pair]:
    """Learn at most `wanted` merges; `progress(n)` is called now and then with how many there are."""
    if not kernels.available():
        kernels._warn_once()
        return byte_bpe_fast.train_merges(pieces, wanted, progress)
    trainer = kernels._compiled().make_trainer(list(pieces), list(pieces.values()), ID_OF_BYTE, max(wanted, 0))
    merges: list[Pair] = []
    while len(merges) < wanted:
        learned = trainer.step(min(_STEP, wanted - len(merges)))
        merges += learned
        progress(len(merges))
        if not learned:
            break
    return merges
