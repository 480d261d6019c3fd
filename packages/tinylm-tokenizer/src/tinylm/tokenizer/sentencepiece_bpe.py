"""Byte-pair encoding as SentencePiece does it, in plain Python: the rung to read.

Sources: Sennrich, Haddow and Birch 2016 (byte-pair encoding); Kudo and Richardson 2018 (SentencePiece: text is one
sequence of characters in which "▁" is a space, so that decoding is lossless); Provilkov et al. 2020 (BPE dropout).

    train:   `sentencepiece_bpe_training.py`: count neighbours and join the most frequent, as in `byte_bpe.py`, but over
             characters, and only where the joined text may be a piece.
    encode:  every character is a symbol; of all neighbours whose joined text is a piece, join those whose piece has the
             best score (of several the leftmost); again and again, until there are none. A character that is no piece
             then becomes its UTF-8 bytes (byte fallback) or the unknown piece.
    decode:  put the pieces one after the other, "▁" as a space, without the one that encoding put first.

What this file does not do: normalise (`normalizer.py`), decode and look after spaces at the start
(`_engines/sentencepiece.py`), read files (`_formats/sentencepiece_model.py`, `_formats/json_sentencepiece.py`), find
special tokens (`tokenizer.py`). It is slow: the compiled rung is in `kernels/`.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import pairwise
from random import Random

from tinylm.tokenizer._engines.sentencepiece_data import SPACE, Kind, SentencePieceModel
from tinylm.tokenizer._text.sentencepiece_words import Found, cut_out, findable, user_defined, words

Order = Callable[[str, str], float | None]  # how early two neighbours are joined: lower is earlier; None: never

_MOST_CACHED = 1 << 16  # words


class Encoder:
    """Normalised text → pieces. Threads may share one: nothing but the cache of words changes."""

    def __init__(self, model: SentencePieceModel) -> None:
        self._ids = findable(model)
        self._scores = model.scores
        self._unused = {id for id in self._ids.values() if model.kinds[id] == Kind.UNUSED}
        self._whole = user_defined(model)
        self._ranks: dict[tuple[str, str], int] | None = None
        if model.merges is not None:
            pieces = model.pieces
            self._ranks = {(pieces[left], pieces[right]): rank for rank, (left, right, _) in enumerate(model.merges)}
        # Words can be encoded one by one where no piece crosses a space.
        self._by_word = not self._unused and not any(SPACE in piece[1:] for piece in self._ids)
        self._cache: dict[str, list[Found]] = {}

    def order(self, left: str, right: str) -> float | None:
        """By the rank of the merge (tokenizer.json), or by the score of what is made (SentencePiece)."""
        if self._ranks is not None:
            return self._ranks.get((left, right))
        id = self._ids.get(left + right)
        return None if id is None else -self._scores[id]

    def encode(self, text: str, dropout: float = 0.0, chance: Random | None = None) -> list[Found]:
        """The pieces of normalised text, in order: (text, id), where the id is -1 for a character that is no piece.

        dropout: the probability that a possible join is left out, drawn from `chance` (0: never; 1: only characters).
        """
        if dropout and chance is not None:
            return [
                piece for part in self.parts(text) for piece in self._encode(part, lambda: chance.random() < dropout)
            ]
        found: list[Found] = []
        for part in self.parts(text):
            if part not in self._cache:
                pieces = self._encode(part)
                if len(self._cache) >= _MOST_CACHED:
                    found += pieces
                    continue
                self._cache[part] = pieces
            found += self._cache[part]
        return found

    def parts(self, text: str) -> list[str]:
        """`text` cut where nothing is joined: around user-defined pieces, and before spaces if no piece crosses one."""
        parts = cut_out(text, self._whole)
        if not self._by_word:
            return [part for part, _ in parts]
        return [word for part, is_whole in parts for word in ([part] if is_whole else words(part))]

    def _encode(self, word: str, skip: Callable[[], bool] | None = None) -> list[Found]:
        if self._whole and self._whole.fullmatch(word):
            return [(word, self._ids[word])]
        if not self._unused:
            return [(symbol, self._ids.get(symbol, -1)) for symbol in join(word, self.order, skip)]
        made_of: dict[str, tuple[str, str]] = {}  # an unused piece → what it was, or could have been, joined of

        def order(left: str, right: str) -> float | None:
            if self._ids.get(left + right) in self._unused:
                made_of[left + right] = left, right
            return self.order(left, right)

        found: list[Found] = []
        symbols = join(word, order, skip)[::-1]
        while symbols:
            symbol = symbols.pop()
            id = self._ids.get(symbol, -1)
            if id in self._unused and symbol in made_of:
                symbols += made_of[symbol][::-1]
            else:
                found.append((symbol, -1 if id in self._unused else id))
        return found


def join(
    text: str,
    order: Order,
    skip: Callable[[], bool] | None = None,
    record: Callable[[str, str, int], None] | None = None,
) -> list[str]:
    """Join neighbours, starting with characters, the earliest in `order` first and of several the leftmost.

    skip: called before each join, True leaves it out; record(left, right, place in text): called for each join. A heap
    holds the possible joins; one whose symbols have changed since is passed over. The symbols are a linked list: a
    joined one stays at the place of its first character. O(n log n) for n characters.
    """
    symbols = list(text)
    after = [*range(1, len(symbols)), -1]
    before = list(range(-1, len(symbols) - 1))
    heap = [
        (early, place, left, right)
        for place, (left, right) in enumerate(pairwise(symbols))
        if (early := order(left, right)) is not None
    ]
    heapify(heap)
    while heap:
        _, place, left, right = heappop(heap)
        gone = after[place]
        if gone < 0 or symbols[place] != left or symbols[gone] != right or (skip and skip()):
            continue
        if record:
            record(left, right, place)
        symbols[place] = left + right
        symbols[gone] = ""
        after[place] = after[gone]
        if after[place] >= 0:
            before[after[place]] = place
        for start, end in ((before[place], place), (place, after[place])):
            if start >= 0 and end >= 0:
                left, right = symbols[start], symbols[end]
                if (early := order(left, right)) is not None:
                    heappush(heap, (early, start, left, right))
    return [symbol for symbol in symbols if symbol]
