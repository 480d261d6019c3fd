"""Where you are: learning WordPiece pieces, in plain Python. `wordpiece.py` uses what is learned here.

Schuster and Nakajima 2012, section 3: "choose the new word unit out of all possible ones that increases the likelihood
on the training data the most". The likelihood is that of pieces drawn one by one, each with its share of the corpus.
Pieces are characters at first; again and again the pair is joined that explains the corpus best, not the most frequent
one. (What Hugging Face's `WordPieceTrainer` does is plain byte pair encoding with "##": it joins the pair of the
highest count.)

The counting is incremental, as in `byte_bpe_fast.py`: a join changes only the words that hold its pair. The score of
every pair may change with every join, because a piece's own count is in it, so all are scored again, by numpy.

What it does not do: read a corpus, or cut it into words (`_trainers/wordpiece.py`). Next: the same pieces from C++,
`kernels/wordpiece_training.py`.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from tinylm.tokenizer._errors import TokenizerError
from tinylm.tokenizer._text.wordpiece_text import Rules
from tinylm.tokenizer.wordpiece import CONTINUES, SPECIAL_TOKENS, WordPieces

Floats = NDArray[np.float64]
Score = Callable[[Floats, Floats, Floats, float], Floats]

ALPHABET = 1000  # characters that are kept: there are thousands of Chinese ones, and each costs an id
_BLOCK = 1 << 14  # pairs that there is room for at first


def likelihood_gain(pair: Floats, left: Floats, right: Floats, total: float) -> Floats:
    """How much the log-likelihood of the corpus grows when a pair becomes a piece of its own.

    pair, left, right: how often the pair and its two pieces occur (shape: pairs); total: how many pieces there are.
    The likelihood of a corpus of N pieces is the product of n/N for every piece, so its logarithm is the sum of n log n
    over the pieces, minus N log N. A pair that becomes one piece takes its count c from both sides, l and r, and from
    N. What that changes is c log(c N / (l r)), the pair's pointwise mutual information for each time that it occurs,
    and for what is left of n = l, r and (taken away) N: (n - c) log(1 - c/n).
    """

    def rest(n: Floats) -> Floats:
        return (n - pair) * np.log1p(-pair / np.maximum(n, pair + 1))  # 0 where nothing is left

    all_pieces = np.full_like(pair, total)
    own = pair * np.log(pair / (left * right)) + (rest(left) + rest(right))
    return own + (pair * np.log(all_pieces) - rest(all_pieces))


def ratio(pair: Floats, left: Floats, right: Floats, total: float) -> Floats:
    """freq(pair) / (freq(left) · freq(right)), the score that courses show: the gain for each occurrence, not for all.

    The rarest pairs of the rarest pieces come first, so frequent words stay in pieces for a long time.
    """
    return pair / (left * right)


def train(
    word_freq: Mapping[str, int],
    vocab_size: int,
    special_tokens: Iterable[str] = SPECIAL_TOKENS,
    rules: Rules | None = None,
    score: Score = likelihood_gain,
    progress: Callable[[int, int], None] = lambda done, wanted: None,
) -> WordPieces:
    """Learn a vocabulary of at most `vocab_size` ids: special tokens, characters (sorted), pieces as they are learned.

    word_freq: words, as `Splitter(rules).words` cuts them, and how often each occurs; their order makes no difference.
    The 1,000 commonest characters are kept: words with another one are unknown, and teach nothing. score:
    `likelihood_gain`, or `ratio`. Errors: TokenizerError if the special tokens and the characters alone are more than
    vocab_size.
    """
    characters = Counter[str]()
    for word, freq in word_freq.items():
        for character in word:
            characters[character] += freq
    kept = {character for character, _ in sorted(characters.items(), key=lambda item: (-item[1], item[0]))[:ALPHABET]}
    words = {
        (word[0], *(CONTINUES + character for character in word[1:])): freq
        for word, freq in sorted(word_freq.items())
        if kept.issuperset(word)
    }
    alphabet = sorted({piece for word in words for piece in word})
    specials = list(special_tokens)
    wanted = room(vocab_size, specials, alphabet)
    learned = learn(words, wanted, joined, score, lambda done: progress(done, wanted))
    return vocabulary(specials, [*alphabet, *learned], rules)


def room(vocab_size: int, special_tokens: list[str], alphabet: list[str]) -> int:
    """How many pieces there is room for beside the special tokens and the characters. Errors: TokenizerError."""
    least = len(special_tokens) + len(alphabet)
    if vocab_size < least:
        raise TokenizerError(
            f"wanted a vocab_size of at least {least} ({len(special_tokens)} special tokens, {len(alphabet)} "
            f"characters, counting those inside words apart), got {vocab_size}"
        )
    return vocab_size - least


def joined(left: str, right: str) -> str:
    """The piece of two pieces: "##a" and "##b" make "##ab"."""
    return left + right.removeprefix(CONTINUES)


def vocabulary(special_tokens: list[str], pieces: list[str], rules: Rules | None) -> WordPieces:
    """The special tokens, then the pieces, with ids from 0 on; [CLS] and [SEP] go around a text."""
    specials = {text: id for id, text in enumerate(special_tokens)}
    tokens = {piece: len(specials) + place for place, piece in enumerate(pieces)}
    around = [(specials[text],) if text in specials else () for text in ("[CLS]", "[SEP]")]
    return WordPieces(tokens, specials, rules=rules or Rules(), prefix=around[0], suffix=around[1])


def learn(
    words: Mapping[tuple[str, ...], int],
    wanted: int,
    name: Callable[[str, str], str],
    score: Score = likelihood_gain,
    progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """At most `wanted` new pieces, in the order learned. Of equal scores the pair met first wins.

    words: each word as its pieces → how often it occurs; name(left, right) is the new piece's. It ends early when no
    join makes the corpus likelier.
    """
    corpus = _Corpus(words)
    known = set(corpus.names)
    pieces: list[str] = []
    while len(pieces) < wanted and (best := corpus.best(score)) is not None:
        piece = name(corpus.names[best[0]], corpus.names[best[1]])
        corpus.join(best, piece)
        if piece not in known:  # two ways to one piece
            known.add(piece)
            pieces.append(piece)
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
