"""Learning WordPiece pieces: start from characters, and join again and again the pair that explains the corpus best.

Schuster and Nakajima 2012, section 3: "choose the new word unit out of all possible ones that increases the likelihood
on the training data the most". The likelihood is that of pieces drawn one by one, each with its share of the corpus.
`wordpiece.py` uses what is learned here, and its `train` is the door.

The counting is incremental, as in `byte_bpe_fast.py`: a join changes only the words that hold its pair. The score of
every pair may change with every join, because a piece's own count is in it, so all are scored again, by numpy.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Score = Callable[[Floats, Floats, Floats, float], Floats]

_BLOCK = 1 << 14  # pairs that there is room for at first


def likelihood_gain(pair: Floats, left: Floats, right: Floats, total: float) -> Floats:
    """How much the log-likelihood of the corpus grows when a pair becomes a piece of its own.

    pair, left, right: how often the pair and its two pieces occur (shape: pairs); total: how many pieces there are.
    The likelihood of a corpus of N pieces is the product of n/N for every piece, so its logarithm is the sum of n log n
    over the pieces, minus N log N. A pair that becomes one piece takes its count from both sides, and from N.
    """

    def xlogx(n: Floats) -> Floats:
        return n * np.log(np.maximum(n, 1))

    before = xlogx(left) + xlogx(right) - xlogx(np.array(total))
    left_after = np.maximum(left - pair, 0)
    return xlogx(pair) + xlogx(left_after) + xlogx(np.maximum(right - pair, 0)) - xlogx(total - pair) - before


def ratio(pair: Floats, left: Floats, right: Floats, total: float) -> Floats:
    """freq(pair) / (freq(left) · freq(right)), the score that courses show: the gain for each occurrence, not for all.

    The rarest pairs of the rarest pieces come first, so frequent words stay in pieces for a long time.
    """
    return pair / (left * right)


def learn(
    words: Mapping[tuple[str, ...], int],
    wanted: int,
    joined: Callable[[str, str], str],
    score: Score = likelihood_gain,
    progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """At most `wanted` new pieces, in the order learned. Of equal scores the pair met first wins.

    words: each word as its pieces → how often it occurs; joined(left, right) names the new piece. It ends early when no
    join makes the corpus likelier.
    """
    corpus = _Corpus(words)
    known = set(corpus.names)
    pieces: list[str] = []
    while len(pieces) < wanted and (best := corpus.best(score)) is not None:
        name = joined(corpus.names[best[0]], corpus.names[best[1]])
        corpus.join(best, name)
        if name not in known:  # two ways to one piece
            known.add(name)
            pieces.append(name)
            progress(len(pieces))
    return pieces


class _Corpus:
    """Words as piece numbers, and how often every piece and every pair of neighbours occurs."""

    def __init__(self, words: Mapping[tuple[str, ...], int]) -> None:
        self.names: list[str] = []
        self._numbers: dict[str, int] = {}
        self._words = [[self._number(piece) for piece in word] for word in words]
        self._freqs = list(words.values())
        counts = Counter[int]()
        for word, freq in zip(self._words, self._freqs, strict=True):
            for piece in word:
                counts[piece] += freq
        self._piece_count = np.array([counts[number] for number in range(len(self.names))], np.float64)
        self._pair_numbers: dict[tuple[int, int], int] = {}
        self._pairs = np.zeros((_BLOCK, 2), np.int64)
        self._pair_count = np.zeros(_BLOCK, np.float64)
        self._words_with: dict[int, set[int]] = defaultdict(set)
        for number in range(len(self._words)):
            self._count(number, 1)

    def _number(self, name: str) -> int:
        if name not in self._numbers:
            self._numbers[name] = len(self.names)
            self.names.append(name)
        return self._numbers[name]

    def _pair(self, pair: tuple[int, int]) -> int:
        number = self._pair_numbers.get(pair)
        if number is None:
            number = self._pair_numbers[pair] = len(self._pair_numbers)
            if number == len(self._pair_count):
                self._pairs = np.concatenate([self._pairs, np.zeros_like(self._pairs)])
                self._pair_count = np.concatenate([self._pair_count, np.zeros_like(self._pair_count)])
            self._pairs[number] = pair
        return number

    def _count(self, number: int, sign: int) -> None:
        """Add (or take away) the pairs of one word."""
        freq = sign * self._freqs[number]
        for pair in itertools.pairwise(self._words[number]):
            found = self._pair(pair)
            self._pair_count[found] += freq
            if sign > 0:
                self._words_with[found].add(number)

    def best(self, score: Score) -> tuple[int, int] | None:
        """The pair of the highest score above 0, or None."""
        alive = np.flatnonzero(self._pair_count[: len(self._pair_numbers)])
        if not len(alive):
            return None
        left, right = self._piece_count[self._pairs[alive].T]
        scores = score(self._pair_count[alive], left, right, float(self._piece_count.sum()))
        place = int(np.argmax(scores))
        if scores[place] <= 0:
            return None
        first, second = self._pairs[alive[place]]
        return int(first), int(second)

    def join(self, pair: tuple[int, int], name: str) -> None:
        """Write `pair` as one piece, wherever it stands, from left to right."""
        new = self._number(name)
        if new == len(self._piece_count):
            self._piece_count = np.append(self._piece_count, 0.0)
        for number in sorted(self._words_with.pop(self._pair_numbers[pair])):
            word = self._words[number]
            if pair not in itertools.pairwise(word):
                continue
            self._count(number, -1)
            merged: list[int] = []
            for piece in word:
                if merged and (merged[-1], piece) == pair:
                    merged[-1] = new
                else:
                    merged.append(piece)
            self._words[number] = merged
            joins = (len(word) - len(merged)) * self._freqs[number]
            self._piece_count[new] += joins
            self._piece_count[pair[0]] -= joins
            self._piece_count[pair[1]] -= joins
            self._count(number, 1)
