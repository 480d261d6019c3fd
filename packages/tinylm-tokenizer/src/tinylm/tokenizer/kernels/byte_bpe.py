"""Byte-level BPE encoding in C++, the top rung: the same ids as `byte_bpe_fast.py`.

The C++: `src/kernels/merge.hpp` merges one piece, `byte_bpe.cpp` is the border to Python. Text is still cut into pieces
by Python's `regex`. Does not train: see `training.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tinylm.tokenizer import byte_bpe_fast, kernels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tinylm.tokenizer._vocabulary import Vocabulary


class Encoder:
    """Pieces → ids. One object may be shared by threads: nothing in it changes, and the GIL is free while it merges."""

    name = "kernels"

    def __init__(self, vocabulary: Vocabulary) -> None:
        merges = np.array(vocabulary.merges, dtype=np.uint32).reshape(-1, 3)
        ids, tokens = list(vocabulary.tokens), list(vocabulary.tokens.values())
        self._encoder = kernels._compiled().Encoder(
            vocabulary.byte_ids(), merges, tokens, ids, vocabulary.whole_piece_first
        )

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
    if kernels.available():
        return Encoder(vocabulary)
    kernels._warn_once()
    return byte_bpe_fast.Encoder(vocabulary)
