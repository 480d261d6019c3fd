"""The engine of SentencePiece's two algorithms: a `SentencePieceModel` and what `Tokenizer` asks of an algorithm.

    text → normalised text (`normalizer.py`) → pieces (`sentencepiece_bpe.py`, `unigram.py`) → ids, and back.

Does not know files (`_formats/sentencepiece_model.py`, `_formats/json_sentencepiece.py`) and does not train (the rungs
do).
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from random import Random
from typing import TYPE_CHECKING, Any

import regex

from tinylm.tokenizer import sentencepiece_bpe, unigram
from tinylm.tokenizer._engines.sentencepiece_data import (
    SPACE,
    Kind,
    Prepend,
    ReplaceSpaces,
    SentencePieceModel,
    Spaces,
    Strip,
)
from tinylm.tokenizer._explain import Merge
from tinylm.tokenizer._streaming import TAIL
from tinylm.tokenizer._text.sentencepiece_words import Found, byte_ids, fill_in, user_defined, words
from tinylm.tokenizer.kernels.sentencepiece import make_encoder
from tinylm.tokenizer.normalizer import normalize, normalize_with_starts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_AROUND = 32  # characters on each side of a cut that are looked at; no compiled rule is longer
_TRIED = 64  # places that are looked at, from the last one
_BEFORE_SPACE = re.compile(rf"[^\s{SPACE}](?= [^\s{SPACE}])")
# Letters without case and the marks between them: none combines, and none changes how another is written in lower case.
_UNSPACED = r"[\p{Lo}\u3001\u3002\u300c-\u300f\uff01\uff08\uff09\uff0c\uff1f]"
_BETWEEN = regex.compile(rf"{_UNSPACED}(?={_UNSPACED})")
_PAIR = regex.compile(_UNSPACED * 2)


@dataclass(frozen=True)
class Candidate:
    """One piece that Unigram looked at: at byte `position` of the text; `best` is the log probability of the likeliest
    pieces up to its end if it is the last of them; chosen: it is among those that `encode` returns."""

    piece: bytes
    id: int | None
    score: float
    position: int
    best: float
    chosen: bool


class SentencePieceEngine:
    """See `protocol.Engine`."""

    def __init__(self, model: SentencePieceModel) -> None:
        self.model = model
        self.algorithm: str = model.algorithm
        self.special_tokens = dict(model.special_tokens)
        self.added_tokens = dict(model.added_tokens)
        self.flags = dict(model.flags)
        self.prefix, self.suffix = model.prefix, model.suffix
        self.parts_alone = any(isinstance(step, Spaces) for step in model.steps)
        self._kernel = make_encoder(model)
        if (
            self._kernel and self._kernel.normalizes
        ):  # a short text costs no more than the calls on the way to the kernel
            self.encode = self._kernel.encode  # type: ignore[method-assign]
        self._byte_ids = byte_ids(model)
        self._keep = user_defined(model)
        added = {id: text.replace(SPACE, " ").encode() for text, id in self.added_tokens.items()}
        special = {id: text.encode() for text, id in self.special_tokens.items()}
        self._bytes = {**self._tokens(), **added, **special}
        # A text may be cut before a space if no piece crosses that; anywhere only if nothing is put at the end.
        self._may_end = not any(isinstance(step, Spaces) and step.suffix for step in model.steps)
        self._cuts = self._may_end and not any(
            re.search(f"[^{SPACE}]{SPACE}| ", text) for text in (*model.pieces, *self.added_tokens)
        )
        # What is done with the part behind a cut: nothing is put before it, and its first space stays.
        self._later_steps = tuple(
            Strip(False, step.right) if isinstance(step, Strip) else step
            for step in model.steps
            if not isinstance(step, Prepend) and not (isinstance(step, ReplaceSpaces) and step.at == "start")
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.model,)

    @property
    def backend(self) -> str:
        return self._kernel.name if self._kernel else "python"

    @cached_property
    def _encoder(self) -> unigram.Encoder | sentencepiece_bpe.Encoder:
        """The readable rung: encodes where there is no kernel, and always samples and explains."""
        if self.algorithm == "unigram":
            return unigram.Encoder(self.model)
        return sentencepiece_bpe.Encoder(self.model)

    @property
    def vocab_size(self) -> int:
        return max(self._bytes) + 1

    def _tokens(self) -> dict[int, bytes]:
        """Id → bytes, without the special and the added tokens."""
        named = {*self.special_tokens.values(), *self.added_tokens.values()}
        tokens: dict[int, bytes] = {}
        for id, (text, kind) in enumerate(zip(self.model.pieces, self.model.kinds, strict=True)):
            if id in named or not text:
                continue
            if kind == Kind.BYTE:
                tokens[id] = bytes([int(text[3:5], 16)])
            else:
                tokens[id] = (self.model.unk_surface if kind == Kind.UNKNOWN else text.replace(SPACE, " ")).encode()
        return tokens

    # ---- text → ids ----

    def normalize(self, text: str, first: bool = True) -> str:
        """What the algorithm looks at. Errors: UnicodeEncodeError for a lone surrogate."""
        text.encode()
        return normalize(text, self.model.steps, first, self._keep) if text else ""

    def _pieces(self, normal: str, encode: Callable[[str], list[Found]] | None = None) -> list[tuple[str, list[int]]]:
        """Parts of normalised text, each with its ids."""
        encode = encode or self._encoder.encode
        parts: list[tuple[str, list[int]]] = []
        for word in words(normal) if self.model.words else [normal]:
            parts += fill_in(encode(word), self.model, self._byte_ids)
        return parts

    def encode(self, text: str, first: bool = True) -> list[int]:
        if self._kernel:
            return self._kernel.encode(self._for_kernel(text, first), first)
        return [id for _, ids in self._pieces(self.normalize(text, first)) for id in ids]

    def encode_array(self, text: str, first: bool = True) -> NDArray[np.uint32]:
        if self._kernel:
            return self._kernel.encode_array(self._for_kernel(text, first), first)
        import numpy as np

        return np.array(self.encode(text, first), np.uint32)

    def _for_kernel(self, text: str, first: bool) -> str:
        return text if self._kernel and self._kernel.normalizes else self.normalize(text, first)

    def encode_batch(self, texts: Sequence[str], threads: int) -> list[list[int]]:
        if not self._kernel:
            return [self.encode(text) for text in texts]  # Python's lock lets one thread work at a time
        return self._kernel.encode_batch([self._for_kernel(text, True) for text in texts], threads)

    def count(self, text: str, first: bool = True) -> int:
        return len(self.encode_array(text, first))

    def sample(self, text: str, alpha: float, chance: Random, first: bool = True) -> list[int]:
        """See `Tokenizer.sample`."""
        encoder = self._encoder

        def encode(word: str) -> list[Found]:
            if isinstance(encoder, unigram.Encoder):
                return encoder.sample(word, alpha, chance)
            return encoder.encode(word, alpha, chance)

        return [id for _, ids in self._pieces(self.normalize(text, first), encode) for id in ids]

    # ---- ids → text ----

    def bytes_of(self, id: int) -> bytes:
        return self._bytes[id]

    def byte_stream(self) -> Callable[[int], bytes]:
        """The "▁" that stands before a text is no part of it: the first piece loses it (of "all": every piece, until
        there is text; of "first": all that it has; of "space": any space). Special tokens do not count as text."""
        special = set(self.special_tokens.values())
        drop = self.model.drop_space
        begun = drop == "never"

        def bytes_of(id: int) -> bytes:
            nonlocal begun
            data = self._bytes[id]
            if begun or id in special:
                return data
            if drop in ("space", "first"):
                begun = True
                if drop == "space" or self.model.kinds[id] == Kind.BYTE:
                    return data.removeprefix(b" ") if drop == "space" else data
                return self.model.pieces[id].replace(SPACE, "").encode()
            is_piece = self.model.kinds[id] in (Kind.NORMAL, Kind.USER_DEFINED, Kind.UNUSED)
            if is_piece and self.model.pieces[id].startswith(SPACE):
                data = data[1:]
            begun = drop == "once" or data != b""
            return data

        return bytes_of

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join(map(self.byte_stream(), ids))

    # ---- where and why ----

    def spans(self, text: str, first: bool = True) -> list[tuple[int, int]]:
        text.encode()
        if not text:
            return []
        normal, starts = normalize_with_starts(text, self.model.steps, first, self._keep)
        byte_of = [0, *accumulate(len(character.encode()) for character in text)]
        spans: list[tuple[int, int]] = []
        at = 0
        for part, ids in self._pieces(normal):
            start, end = byte_of[starts[at]], byte_of[starts[at + len(part)]]
            if len(ids) == end - start > 1 and text[starts[at] : starts[at + len(part)]] == part:
                spans += [(place, place + 1) for place in range(start, end)]  # bytes of a character that stands there
            else:
                spans += [(start, end)] * len(ids)
            at += len(part)
        return spans

    def explain(self, text: str, first: bool = True) -> list[Merge] | list[Candidate]:
        """BPE: every join in order, `rank` by score or merge. Unigram: every piece that Viterbi looked at."""
        text.encode()
        normal, starts = normalize_with_starts(text, self.model.steps, first, self._keep) if text else ("", [0])
        byte_of = [0, *accumulate(len(character.encode()) for character in text)]
        at = 0
        joins: list[Merge] = []
        candidates: list[Candidate] = []
        for word in words(normal) if self.model.words else [normal]:
            places = [byte_of[starts[place]] for place in range(at, at + len(word) + 1)]
            if isinstance(self._encoder, unigram.Encoder):
                candidates += self._candidates(self._encoder, word, places)
            else:
                joins += self._joins(self._encoder, word, places)
            at += len(word)
        return candidates or joins

    def _joins(self, encoder: sentencepiece_bpe.Encoder, word: str, places: list[int]) -> list[Merge]:
        merges: list[Merge] = []
        orders = sorted({-score for score in self.model.scores})
        at = 0
        for part in encoder.parts(word):

            def record(left: str, right: str, place: int, at: int = at) -> None:
                early = encoder.order(left, right)
                rank = int(early or 0) if self.model.merges is not None else bisect_right(orders, early or 0.0) - 1
                sides = left.replace(SPACE, " ").encode(), right.replace(SPACE, " ").encode()
                merges.append(Merge(*sides, sides[0] + sides[1], rank, places[at + place]))

            if not (self._keep and self._keep.fullmatch(part)):
                sentencepiece_bpe.join(part, encoder.order, record=record)
            at += len(part)
        return merges

    def _candidates(self, encoder: unigram.Encoder, word: str, places: list[int]) -> list[Candidate]:
        best = [0.0, *[float("-inf")] * len(word)]
        chosen: set[tuple[int, int]] = set()
        end = 0
        for piece, _ in encoder.encode(word):
            chosen.add((end, end + len(piece)))
            end += len(piece)
        found: list[Candidate] = []
        for place in range(len(word)):
            for start, end, score, id in encoder.edges(word, place):
                total = best[start] + score
                best[end] = max(best[end], total)
                text = word[start:end].replace(SPACE, " ").encode()
                is_chosen = (start, end) in chosen
                found.append(Candidate(text, None if id < 0 else id, score, places[start], total, is_chosen))
        return found

    def cut(self, text: str, first: bool = True) -> int:
        """The last place before a space, or else between two characters that no piece has side by side, where
        normalising does not look over it."""
        if self._cuts:
            for place in _last_places(_BEFORE_SPACE, text):
                left, right = self._sides(text, place) or ("", "")
                if left and left[-1] not in (SPACE, " ") and right.startswith((SPACE, " ")):
                    return place
        if self._may_end and not self.model.words:  # what is cut out as a word is encoded as a whole
            for place in _last_places(_BETWEEN, text):
                if text[place - 1 : place + 1] in self._all_pieces or not (sides := self._sides(text, place)):
                    continue
                pair = sides[0][-1:] + sides[1][:1]
                if _PAIR.fullmatch(pair) and pair not in self._all_pieces:
                    return place
        return 0

    @cached_property
    def _all_pieces(self) -> str:
        """Every piece, to look for a pair of characters in."""
        return "\0".join((*self.model.pieces, *self.added_tokens))

    def _sides(self, text: str, place: int) -> tuple[str, str] | None:
        """What stands around `place`, normalised; None if that is something else when it is normalised as one."""
        left, right = text[max(place - _AROUND, 0) : place], text[place : place + _AROUND]
        sides = self._normalize_later(left), self._normalize_later(right)
        return sides if self._normalize_later(left + right) == sides[0] + sides[1] else None

    def _normalize_later(self, text: str) -> str:
        text.encode()
        return normalize(text, self._later_steps, False, self._keep)

    def stream(self) -> Callable[[str, bool], list[int]]:
        """What one part leaves to the next: the sum of Unigram's scores, and whether it ends with an unknown piece."""
        left: tuple[float, bool] = 0.0, False
        begun = False

        def encode(text: str, first: bool) -> list[int]:
            nonlocal left, begun
            if not text:
                return []
            if not (self._kernel and self._kernel.normalizes):
                text = self._normalize_later(text) if begun else self.normalize(text, first)
            begun = True
            ids, left = self._kernel.encode_on(text, first, *left) if self._kernel else self._encode_on(text, *left)
            return ids

        return encode

    def _encode_on(self, normal: str, total: float, after_unknown: bool) -> tuple[list[int], tuple[float, bool]]:
        """The readable rung of the kernel's `encode_on`."""
        ids: list[int] = []
        for word in words(normal) if self.model.words else [normal]:
            if isinstance(self._encoder, unigram.Encoder):
                found, total = self._encoder.encode_on(word, 0.0 if self.model.words else total)
            else:
                found = self._encoder.encode(word)
            after_unknown = after_unknown and not self.model.words
            ids += (id for _, part in fill_in(found, self.model, self._byte_ids, after_unknown) for id in part)
            if found:
                last = found[-1][1]
                after_unknown = (last < 0 or (self.model.double and last == self.model.unk_id)) and not self._byte_ids
        return ids, (total, after_unknown)

    def files(self) -> dict[str, bytes]:
        from tinylm.tokenizer._formats.json_sentencepiece import write

        return {"tokenizer.json": write(self.model)}

    def written_otherwise(self) -> list[str]:
        """What the tokenizer.json does in another way, a line each."""
        from tinylm.tokenizer._formats.json_sentencepiece import otherwise

        return otherwise(self.model)


def _last_places(pattern: re.Pattern[str] | regex.Pattern[str], text: str) -> list[int]:
    """Up to `_TRIED` ends of what `pattern` finds, the last first: near the end of `text`, else anywhere."""
    for start in (max(len(text) - TAIL, 0), 0):
        places = [found.end() for found in pattern.finditer(text, start)]
        if places or not start:
            break
    return places[: -_TRIED - 1 : -1]
