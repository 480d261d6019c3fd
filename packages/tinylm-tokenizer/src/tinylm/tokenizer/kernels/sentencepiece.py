"""SentencePiece-BPE and Unigram encoding in C++: the same ids as `sentencepiece_bpe.py` and `unigram.py`.

The C++ stands in `src/kernels/` of the package's source: `charsmap.hpp` normalises, `sentencepiece.hpp` cuts the text
into parts that no piece crosses and keeps a cache of them, `sentencepiece_bpe.hpp` and `unigram.hpp` encode one part.
Normalisation of the kinds that SentencePiece's own files hold is done there too, in the same pass; for any other the
caller normalises (`normalizes` is False). Does not cut out special or added tokens, and does not decode.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tinylm.tokenizer import kernels
from tinylm.tokenizer._engines.sentencepiece_data import SPACE, Charsmap, Kind, Replace, SentencePieceModel, Spaces

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from tinylm.tokenizer._engines.sentencepiece_data import Step

_MATCHED = (Kind.NORMAL, Kind.USER_DEFINED)  # the kinds that are found in text
_UNKNOWN_PENALTY = 10.0  # an unknown character scores that much less than the worst piece (SentencePiece)


class Encoder:
    """Text → ids. Threads may share one: each call takes a cache of its own, and the GIL is free meanwhile.

    normalizes: whether it takes ordinary text (True) or text that went through the model's steps already (False).
    """

    name = "kernels"

    def __init__(self, model: SentencePieceModel) -> None:
        bpe = model.algorithm == "sentencepiece-bpe"
        steps = fused(model.steps)
        spaces, charsmap = steps or (Spaces(dummy_prefix=False, remove_extra=False, escape=False), b"")
        symbols = {piece: id for id, (piece, kind) in _numbered(model) if kind == Kind.USER_DEFINED}
        byte_ids = {piece: id for id, (piece, kind) in _numbered(model) if kind == Kind.BYTE}
        scores, unknown_score = _scores(model)
        merges = None if model.merges is None else np.array(model.merges, dtype=np.uint32).reshape(-1, 3)
        matched = (Kind.NORMAL,) if bpe else (*_MATCHED, Kind.BYTE) if model.double else _MATCHED
        self.normalizes = steps is not None
        self._encoder = kernels._compiled().SentencePieceEncoder(
            pieces=[piece if kind in matched else "" for piece, kind in zip(model.pieces, model.kinds, strict=True)],
            scores=scores,
            unknown_score=unknown_score,
            merges=merges if bpe else None,
            bpe=bpe,
            words=model.words,
            fuse_unknown=model.fuse_unknown,
            in_double=model.double,
            unknown_id=model.unk_id,
            byte_ids=[byte_ids[f"<0x{byte:02X}>"] for byte in range(256)] if model.byte_fallback else [],
            symbols=list(symbols),
            symbol_ids=list(symbols.values()),
            normalizes=self.normalizes,
            charsmap=charsmap,
            spaces=(spaces.dummy_prefix, spaces.remove_extra, spaces.suffix, spaces.escape),
        )
        # encode(text, first=True): the ids; first: it starts the whole text. UnicodeEncodeError: a lone surrogate.
        self.encode: Callable[..., list[int]] = self._encoder.encode
        kernels._with_locks.add(self)

    def after_fork(self) -> None:
        """Threads of the process that this one was forked from hold nothing here."""
        self._encoder.after_fork()

    def encode_array(self, text: str, first: bool = True) -> NDArray[np.uint32]:
        """What `encode` gives, as an array."""
        ids: NDArray[np.uint32] = self._encoder.encode_array(text, first)
        return ids

    def encode_on(
        self, text: str, first: bool, total: float, after_unknown: bool
    ) -> tuple[list[int], tuple[float, bool]]:
        """`encode` of a text that goes on where no piece crosses: with what the part before leaves to it, the sum of
        Unigram's scores and whether an unknown piece was last; and what it leaves to the next."""
        ids, total, after_unknown = self._encoder.encode_on(text, first, total, after_unknown)
        return ids, (total, after_unknown)

    def encode_batch(self, texts: list[str], threads: int) -> list[list[int]]:
        """`encode` of each text, on `threads` threads."""
        ids: list[list[int]] = self._encoder.encode_batch(texts, threads)
        return ids


def make_encoder(model: SentencePieceModel) -> Encoder | None:
    """The kernel for `model`, or None: it is not installed, or the model needs what only the readable rungs do."""
    if not kernels.available():
        kernels._warn_once()
        return None
    unused = any(piece and kind == Kind.UNUSED for piece, kind in zip(model.pieces, model.kinds, strict=True))
    if unused if model.algorithm == "sentencepiece-bpe" else model.words and not model.double:
        return None
    return Encoder(model)


def _numbered(model: SentencePieceModel) -> Any:
    return enumerate(zip(model.pieces, model.kinds, strict=True))


def fused(steps: Sequence[Step]) -> tuple[Spaces, bytes] | None:
    """The steps as the one pass that the kernel knows: what to do with spaces, and the compiled rules. None: they are
    something else."""
    match steps:
        case (Spaces() as spaces,):
            return spaces, b""
        case (Charsmap(rules=rules, by_grapheme=False), Spaces() as spaces):
            return spaces, rules
        case (Replace(old=" ", new=new),) if new == SPACE:
            return Spaces(dummy_prefix=False, remove_extra=False), b""
        case _:
            return None


def _scores(model: SentencePieceModel) -> tuple[list[float], float]:
    """The score of each id and that of an unknown character, rounded as the sums of the model are.

    A user-defined symbol gets 0.1 for each byte after the first one: more than any log-probability.
    """
    scores = [
        0.1 * (len(piece.encode()) - 1) if kind == Kind.USER_DEFINED else score
        for piece, score, kind in zip(model.pieces, model.scores, model.kinds, strict=True)
    ]
    scored = zip(model.scores, model.kinds, strict=True)
    lowest = min((score for score, kind in scored if model.double or kind == Kind.NORMAL), default=0.0)
    if model.double:
        return scores, lowest - _UNKNOWN_PENALTY
    return np.array(scores, dtype=np.float32).tolist(), float(np.float32(lowest - _UNKNOWN_PENALTY))
