"""Byte-level BPE encoding in C++, the top rung: the same ids as `byte_bpe_fast.py`.

The C++, in `src/kernels/`: `scan.hpp` cuts text into pieces, `byte_bpe_table.hpp` looks them up, `merge.hpp` merges
those that are no tokens, `merge_lanes.hpp` 16 at once, `byte_bpe.cpp` is the border to Python. Does not train: see
`training.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from tinylm.tokenizer import kernels

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tinylm.tokenizer import byte_bpe_fast
    from tinylm.tokenizer._engines.vocabulary import Vocabulary


class Encoder:
    """Text → ids and back. Threads may share one: what it remembers is guarded, and long texts are encoded without the
    GIL. It remembers at least 110,000 pieces, in tables of fixed size (12 MB; 20 to 22 beside 100,000 tokens)."""

    name = "kernels"

    def __init__(self, vocabulary: Vocabulary, named: Mapping[int, bytes] | None = None) -> None:
        ranked = vocabulary.ranked
        self._encoder = kernels._compiled().Encoder(
            "_".join(vocabulary.stages),
            ranked,
            vocabulary.whole_piece_first,
            vocabulary.merges_make_all,
            vocabulary.byte_ids(),
            [] if ranked else list(vocabulary.merges),
            vocabulary.tokens,
            dict(named or {}),
        )

    def encode(self, text: str) -> list[int]:
        """The ids of `text`. Errors: UnicodeEncodeError for a lone surrogate."""
        ids: list[int] = self._encoder.encode(text)
        return ids

    def encode_array(self, text: str) -> NDArray[np.uint32]:
        """The same as an array of shape (ids,)."""
        ids: NDArray[np.uint32] = self._encoder.encode_array(text)
        return ids

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """`encode` of each text, on `threads` threads that hold no GIL."""
        ids: list[list[int]] = self._encoder.encode_batch(list(texts), threads)
        return ids

    def count(self, text: str) -> int:
        """How many ids `text` has."""
        number: int = self._encoder.count(text)
        return number

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of `ids`. Errors: KeyError for an id that is neither a token nor in `named`."""
        if not isinstance(ids, list):
            ids = ids.tolist() if hasattr(ids, "tolist") else list(ids)
        data: bytes = self._encoder.decode_bytes(ids)
        return data


def make_encoder(vocabulary: Vocabulary, named: Mapping[int, bytes] | None = None) -> Encoder | byte_bpe_fast.Encoder:
    """The fastest encoder at hand. named: id → bytes of further ids that `decode_bytes` must know."""
    if kernels.available():
        return Encoder(vocabulary, named)
    from tinylm.tokenizer import byte_bpe_fast

    kernels._warn_once()
    return byte_bpe_fast.Encoder(vocabulary, named)


def read_ranks(data: bytes) -> dict[int, bytes] | None:
    """The tokens of a tiktoken rank file; None without the kernel and for a file that is not just as it should be."""
    tokens: dict[int, bytes] | None = kernels._compiled().read_ranks(data) if kernels.available() else None
    return tokens
