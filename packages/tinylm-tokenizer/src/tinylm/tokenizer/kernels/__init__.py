"""The C++ rungs: the same results as the Python rungs, sooner. One module for each algorithm:

    byte_bpe.py                 text → ids by byte-level BPE, as `byte_bpe_fast.py` does it
    sentencepiece.py            text → ids by SentencePiece-BPE and Unigram, as `sentencepiece_bpe.py` and `unigram.py`
    sentencepiece_training.py   learning their pieces, as `sentencepiece_bpe_training.py` and `unigram_training.py`
    training.py                 learning byte-level merges, as `byte_bpe_fast.py` does it
    wordpiece.py                text → ids by WordPiece, as `wordpiece.py` beside this folder does it
    wordpiece_training.py       learning WordPiece pieces, as `wordpiece_training.py` beside this folder does it

This file only loads the compiled module `tinylm.tokenizer._kernels`, whose source stands in `src/kernels/` of the
package's source. Where the package was installed without a compiler that module is missing: the functions here then use
the Python rung, and one warning says so at first use.
"""

from __future__ import annotations

import os
import warnings
import weakref
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tinylm.tokenizer._errors import TokenizerError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tinylm.tokenizer.kernels.byte_bpe import Encoder, make_encoder, read_ranks
    from tinylm.tokenizer.kernels.training import PieceCounter, train_merges


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


_with_locks: weakref.WeakSet[Any] = weakref.WeakSet()  # encoders whose `after_fork` is to be called


def _after_fork() -> None:
    """A thread that encoded when the process was forked (DataLoader's workers) may have held a lock, and in the child
    nobody would ever give it back."""
    for encoder in _with_locks:
        encoder.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def available() -> bool:
    """Whether the compiled kernel is installed."""
    return _compiled() is not None


@contextmanager
def _corpus_limits() -> Iterator[None]:
    """What the training kernels refuse because it does not fit their 32-bit places, as a TokenizerError."""
    try:
        yield
    except UnicodeError:
        raise
    except ValueError as error:
        raise TokenizerError(
            f"wanted a corpus with fewer distinct words, got: {error}; train on a part of it"
        ) from None


# The modules of the algorithms ask the functions above, and each is imported when it is needed.
_HOME = {
    "Encoder": "byte_bpe",
    "make_encoder": "byte_bpe",
    "read_ranks": "byte_bpe",
    "PieceCounter": "training",
    "train_merges": "training",
}

__all__ = ["Encoder", "PieceCounter", "available", "make_encoder", "read_ranks", "train_merges"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
