"""Byte-level BPE in C++, the top rung: the same merges and ids as `byte_bpe_fast.py`.

The C++ stands in `src/kernels/` of the package's source: `merge.hpp` merges one piece, `train.hpp` learns the merges,
`module.cpp` is the border to Python. Text is still cut into pieces by Python's `regex`. Where the package was installed
without a compiler the compiled module is missing: `make_encoder` and `train_merges` then use `byte_bpe_fast.py`, and
one warning says so at first use.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from tinylm.tokenizer import byte_bpe_fast
from tinylm.tokenizer.byte_bpe import ID_OF_BYTE, Pair

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tinylm.tokenizer._vocabulary import Vocabulary

_STEP = 32  # merges between two calls of `progress`: often enough for a progress bar and for Ctrl-C


@cache
def _compiled() -> Any:
    """The compiled module, or None."""
    try:
        return import_module("tinylm.tokenizer._kernels")
    except ImportError:
        return None


@cache
def _warn_once() -> None:
    warnings.warn(
        "tinylm-tokenizer was installed without its compiled kernel and uses plain Python, which is slower; "
        "to get it, install a C++20 compiler and then tinylm-tokenizer again",
        RuntimeWarning,
        stacklevel=2,
    )


def available() -> bool:
    """Whether the compiled kernel is installed."""
    return _compiled() is not None


class Encoder:
    """Pieces → ids. One object may be shared by threads: nothing in it changes, and the GIL is free while it merges."""

    name = "kernels"

    def __init__(self, vocabulary: Vocabulary) -> None:
        merges = np.array(vocabulary.merges, dtype=np.uint32).reshape(-1, 3)
        ids, tokens = list(vocabulary.tokens), list(vocabulary.tokens.values())
        self._encoder = _compiled().Encoder(vocabulary.byte_ids(), merges, tokens, ids, vocabulary.whole_piece_first)

    def encode_pieces(self, pieces: list[str]) -> list[int]:
        """The ids of `pieces`, one piece after the other."""
        ids: list[int] = self._encoder.encode_pieces(pieces).tolist()
        return ids

    def encode_pieces_array(self, pieces: list[str]) -> NDArray[np.uint32]:
        """The same, as an array."""
        array: NDArray[np.uint32] = self._encoder.encode_pieces(pieces)
        return array


def make_encoder(vocabulary: Vocabulary) -> Encoder | byte_bpe_fast.Encoder:
    """The fastest encoder at hand."""
    if available():
        return Encoder(vocabulary)
    _warn_once()
    return byte_bpe_fast.Encoder(vocabulary)


def train_merges(
    pieces: Mapping[str, int], wanted: int, progress: Callable[[int], None] = lambda done: None
) -> list[Pair]:
    """Learn at most `wanted` merges; `progress(n)` is called now and then with how many there are."""
    if not available():
        _warn_once()
        return byte_bpe_fast.train_merges(pieces, wanted, progress)
    trainer = _compiled().make_trainer(list(pieces), list(pieces.values()), ID_OF_BYTE)
    merges: list[Pair] = []
    while len(merges) < wanted:
        learned = trainer.step(min(_STEP, wanted - len(merges)))
        merges += learned
        progress(len(merges))
        if not learned:
            break
    return merges
