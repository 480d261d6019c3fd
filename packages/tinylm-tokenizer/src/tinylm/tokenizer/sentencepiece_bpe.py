"""Byte-pair encoding as SentencePiece does it, in plain Python: the rung to read.

Sources: Sennrich, Haddow and Birch 2016 (byte-pair encoding); Kudo and Richardson 2018 (SentencePiece: text is one
sequence of characters in which "▁" is a space, so that decoding is lossless); Provilkov et al. 2020 (BPE dropout).

    train:   see `sentencepiece_bpe_training.py`: the same counting as in `byte_bpe.py`, over characters.
    encode:  every character is a symbol; again and again, of all neighbours whose joined text is a piece, join those
             whose piece has the best score (of several the leftmost), until there are none. A character that is no
             piece becomes its UTF-8 bytes (byte fallback) or the unknown piece.
    decode:  put the pieces one after the other, "▁" as a space, without the one that encoding put first.

What this file does not do: normalise (`normalizer.py`), read files (`_sentencepiece_model.py`,
`_json_sentencepiece.py`), special tokens (`tokenizer.py`); and it is slow: the compiled rung is in `kernels/`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush
from itertools import pairwise
from random import Random

import regex

from tinylm.tokenizer._sentencepiece_data import SPACE, Kind, SentencePieceModel

Found = tuple[str, int]  # a part of the normalised text and its id; several ids (bytes) may follow from an unknown one
Joined = tuple[str, str, float, int]  # left, right, how early (lower is earlier), place of `left` among the characters

_FINDABLE = (Kind.NORMAL, Kind.USER_DEFINED, Kind.UNUSED)
_CACHED = 1 << 16  # words


class Encoder:
    """Normalised text → pieces. Threads may share one: the cache of words is all that changes."""

    def __init__(self, model: SentencePieceModel) -> None:
        self.model = model
        self.ids = {
            text: id
            for id, (text, kind) in enumerate(zip(model.pieces, model.kinds, strict=True))
            if kind in _FINDABLE and text
        }
        self.unused = {id for id, kind in enumerate(model.kinds) if kind == Kind.UNUSED}
        self.whole = user_defined(model)
        self.ranks: dict[tuple[str, str], int] | None = None
        if model.merges is not None:
            text = model.pieces
            self.ranks = {(text[left], text[right]): rank for rank, (left, right, _) in enumerate(model.merges)}
        inner = any(SPACE in piece[1:] for piece in self.ids)
        self._cut_words = model.words or not (inner or self.unused)
        self._cache: dict[str, list[Found]] = {}

    def order(self, left: str, right: str) -> float | None:
        """How early two neighbours are joined: lower is earlier; None: never."""
        if self.ranks is not None:
            return self.ranks.get((left, right))
        id = self.ids.get(left + right)
        return None if id is None else -self.model.scores[id]

    def encode(self, text: str, dropout: float = 0.0, chance: Random | None = None) -> list[Found]:
        """The pieces of normalised text, in order: (text, id), where the id of text that no piece covers is -1.

        dropout: the probability that a possible join is left out, drawn from `chance` (0: none; 1: characters).
        """
        if dropout:
            return [part for word in self.words(text) for part in self.encode_word(*word, dropout, chance or Random())]
        found: list[Found] = []
        for word, is_whole in self.words(text):
            known = self._cache.get(word)
            if known is None or is_whole:
                known = self.encode_word(word, is_whole)
                if len(self._cache) < _CACHED and not is_whole:
                    self._cache[word] = known
            found += known
        return found

    def words(self, text: str) -> list[tuple[str, bool]]:
        """Parts over whose borders nothing is joined; True: the part is a user-defined piece."""
        parts = cut_out(text, self.whole)
        if not self._cut_words:
            return parts
        return [
            (word, is_whole)
            for part, is_whole in parts
            for word in ([part] if is_whole else regex.findall(f"{SPACE}?[^{SPACE}]+|{SPACE}", part))
        ]

    def encode_word(
        self, word: str, is_whole: bool = False, dropout: float = 0.0, chance: Random | None = None
    ) -> list[Found]:
        """The pieces of one part of the text."""
        if is_whole:
            return [(word, self.ids[word])]
        split: dict[str, tuple[str, str]] = {}  # an unused piece → what it was joined of

        def order(left: str, right: str) -> float | None:
            found = self.order(left, right)
            if found is not None and self.unused and self.ids[left + right] in self.unused:
                split[left + right] = left, right
            return found

        symbols = join(list(word), order, skip=lambda: dropout > 0 and (chance or Random()).random() < dropout)
        found: list[Found] = []
        while symbols:
            symbol = symbols.pop(0) if not split else symbols.pop(0)
            id = self.ids.get(symbol, -1)
            if id in self.unused:
                if symbol in split:
                    symbols[:0] = split[symbol]
                    continue
                id = -1
            found.append((symbol, id))
        return found


def join(
    symbols: list[str],
    order: Callable[[str, str], float | None],
    skip: Callable[[], bool] = lambda: False,
    record: Callable[[Joined], None] = lambda joined: None,
) -> list[str]:
    """Join neighbours, the earliest in `order` first and the leftmost of several, until none is left.

    A heap holds what may be joined; an entry whose symbols have changed since is passed over. The symbols are a linked
    list: what is joined stays at the place of its left part. O(n log n) for n symbols.
    """
    symbols = list(symbols)
    after = [*range(1, len(symbols)), -1]
    before = list(range(-1, len(symbols) - 1))
    heap: list[tuple[float, int, str, str]] = []
    for place, (left, right) in enumerate(pairwise(symbols)):
        if (early := order(left, right)) is not None:
            heap.append((early, place, left, right))
    heapify(heap)
    while heap:
        early, place, left, right = heappop(heap)
        next = after[place]
        if next < 0 or symbols[place] != left or symbols[next] != right or skip():
            continue
        record((left, right, early, place))
        symbols[place] = left + right
        symbols[next] = ""
        after[place] = after[next]
        if after[place] >= 0:
            before[after[place]] = place
        for start, end in ((before[place], place), (place, after[place])):
            if start >= 0 and end >= 0 and (early := order(symbols[start], symbols[end])) is not None:
                heappush(heap, (early, start, symbols[start], symbols[end]))
    return [symbol for symbol in symbols if symbol]


def user_defined(model: SentencePieceModel) -> regex.Pattern[str] | None:
    """Finds the user-defined pieces, the longest first; None if there are none."""
    texts = [text for text, kind in zip(model.pieces, model.kinds, strict=True) if kind == Kind.USER_DEFINED]
    return regex.compile("|".join(map(regex.escape, sorted(texts, key=len, reverse=True)))) if texts else None


def cut_out(text: str, whole: regex.Pattern[str] | None) -> list[tuple[str, bool]]:
    """`text` in parts; True for those that `whole` found."""
    parts: list[tuple[str, bool]] = []
    done = 0
    for found in whole.finditer(text) if whole else ():
        parts += [(text[done : found.start()], False)] if done < found.start() else []
        parts.append((found.group(), True))
        done = found.end()
    return parts + ([(text[done:], False)] if done < len(text) else [])


def ids_of(found: Sequence[Found], model: SentencePieceModel) -> list[int]:
    """Pieces → ids. Text that no piece covers becomes its bytes, or one unknown id a run (or a character)."""
    ids: list[int] = []
    unknown_before = False
    for text, id in found:
        unknown = id < 0
        if not unknown:
            ids.append(id)
        elif model.byte_fallback:
            ids += [byte_ids(model)[byte] for byte in text.encode()]
        elif model.unk_id is not None and not (unknown_before and model.fuse_unknown):
            ids.append(model.unk_id)
        unknown_before = unknown
    return ids
