"""Training of the unigram language model, in plain Python: start with far too many pieces, and take away.

    seed:   every repeated part of the words, by how much text it covers, and every character.
    EM:     twice: count how often each piece is expected to be used, over all ways to cut each word (forward-backward);
            then set its probability from that count. The digamma function in place of the logarithm makes rare pieces
            rarer still (a sparse prior), and pieces that are expected less than half a time go.
    prune:  cut every word in the likeliest way, and see what each piece is worth: how much less likely the corpus is if
            the piece is replaced by the best pieces that spell it. Keep the worthiest three quarters.
    again:  until there are a tenth more pieces than wanted; then keep the likeliest, and every character.

Sources: Kudo 2018, section 3.2; Liang and Klein 2007 (the digamma step). The result depends on nothing but the corpus:
the order of sums is fixed and ties are decided by the pieces' texts.

What this file does not do: encode (`unigram.py`), or say what may be a piece (`_trainers/sentencepiece_corpus.py`). It
takes about a minute for a megabyte; the compiled rung is in `kernels/`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from tinylm.tokenizer._engines.sentencepiece_data import SentencePieceModel
from tinylm.tokenizer._trainers.sentencepiece_corpus import Options, _float32, count, may_be_piece, model

Lattice = list[list[tuple[int, int]]]  # for each place in a word: (end, number of the piece) of those that start there

_ITERATIONS = 2  # of EM between two prunings
_KEPT = 0.75  # by one pruning
_SURPLUS = 1.1  # pieces over the wanted number, before the last choice
_RARE = 0.5  # expected uses below which a piece goes
_DELTA = 0.0001  # between the scores of characters that EM did not keep
_BYTE_NAMES = "<0x123456789ABCDEF>"  # always pieces beside byte pieces, so that the text "<0x0A>" can be spelled
_PENALTY = 10.0  # nats below the rarest piece, for a character that is no piece


class _Pieces:
    """Pieces with their log probabilities, and the lattices of words under them."""

    def __init__(self, scores: Mapping[str, float]) -> None:
        self.texts = list(scores)
        self.scores = list(scores.values())
        self.number = {text: number for number, text in enumerate(self.texts)}
        self.longest = max(map(len, self.texts))
        self.unknown = min(self.scores) - _PENALTY

    def lattice(self, word: str, whole: bool = True) -> Lattice:
        """Every piece at every place; piece -1 is a character that is none. whole=False: without the word itself."""
        number = self.number
        lattice: Lattice = []
        for start in range(len(word)):
            ends = range(start + 1, min(start + self.longest, len(word)) + 1)
            edges = [(end, number[text]) for end in ends if (text := word[start:end]) in number]
            if not edges or edges[0][0] > start + 1:
                edges.insert(0, (start + 1, -1))
            lattice.append(edges)
        if not whole:
            lattice[0] = [edge for edge in lattice[0] if edge[0] < len(word)]
        return lattice

    def best(self, lattice: Lattice) -> tuple[list[int], float]:
        """The likeliest pieces and their log probability (Viterbi)."""
        size = len(lattice)
        best = [0.0] + [-math.inf] * size
        last = [(0, -1)] * (size + 1)
        for start, edges in enumerate(lattice):
            for end, piece in edges:
                score = best[start] + (self.scores[piece] if piece >= 0 else self.unknown)
                if score > best[end]:
                    best[end], last[end] = score, (start, piece)
        path: list[int] = []
        end = size
        while end:
            end, piece = last[end]
            path.append(piece)
        return path[::-1], best[size]


def train(
    texts: Iterable[str], options: Options, progress: Callable[[int, int], None] = lambda done, wanted: None
) -> SentencePieceModel:
    """Learn a vocabulary of at most `options.vocab_size` pieces (fewer if the corpus has no more).

    `progress(done, wanted)` is called after every pruning with how many pieces have gone. Errors: TokenizerError for
    options or a corpus that cannot be used.
    """
    options.check()
    counted = count(texts, options)
    room = options.vocab_size - len(options.first_pieces())
    pieces = _Pieces(seed(counted.words, options))
    first = len(pieces.texts)
    while True:
        for _ in range(_ITERATIONS):
            pieces = _Pieces(maximize(pieces, expect(pieces, counted.words)))
        pieces = _Pieces(prune(pieces, counted.words, int(options.vocab_size * _SURPLUS)))
        progress(first - len(pieces.texts), max(first - room, 1))
        if len(pieces.texts) <= int(options.vocab_size * _SURPLUS):
            break
    characters = dict.fromkeys((*counted.characters, *(_BYTE_NAMES if options.byte_fallback else "")))
    return model("unigram", _choose(pieces, list(characters)[:room], room), options)


def seed(words: Mapping[str, int], options: Options) -> dict[str, float]:
    """The first pieces: log(share of the text that each covers, overlaps counted again). A part that always goes on
    with the same character is left out, because the longer one says as much."""
    parts: Counter[str] = Counter()
    characters: Counter[str] = Counter()
    for word, number in words.items():
        for start in range(len(word)):
            characters[word[start]] += number
            for end in range(start + 2, min(start + options.longest, len(word)) + 1):
                parts[word[start:end]] += number
    goes_on = {text[:-1] for text, number in parts.items() if number == parts.get(text[:-1])}
    covers = [
        (number * len(text), text)
        for text, number in parts.items()
        if number > 1 and text not in goes_on and may_be_piece(text, options.longest)
    ]
    covers.sort(key=lambda item: (-item[0], item[1]))
    chosen = [(number, text) for text, number in sorted(characters.items(), key=lambda item: (-item[1], item[0]))]
    chosen += covers[: options.seeds]
    total = math.log(sum(number for number, _ in chosen))
    return {text: math.log(number) - total for number, text in chosen}


def expect(pieces: _Pieces, words: Mapping[str, int]) -> list[float]:
    """How often each piece is expected to be used: forward-backward, in probabilities that are scaled by each word's
    likeliest cut so that none gets too small for a float."""
    expected = [0.0] * len(pieces.texts)
    scores, exp = pieces.scores, math.exp
    for word, number in words.items():
        lattice = pieces.lattice(word)
        size = len(lattice)
        if size == 1:
            if lattice[0][0][1] >= 0:
                expected[lattice[0][0][1]] += number
            continue
        lift = -pieces.best(lattice)[1] / size  # a character
        weights = [
            [
                (end, piece, exp((scores[piece] if piece >= 0 else pieces.unknown) + lift * (end - start)))
                for end, piece in edges
            ]
            for start, edges in enumerate(lattice)
        ]
        forward = [1.0] + [0.0] * size
        for start, row in enumerate(weights):
            here = forward[start]
            for end, _, weight in row:
                forward[end] += here * weight
        backward = [0.0] * size + [1.0]
        for start in range(size - 1, -1, -1):
            backward[start] = sum(weight * backward[end] for end, _, weight in weights[start])
        share = number / forward[size]
        for start, row in enumerate(weights):
            here = forward[start] * share
            for end, piece, weight in row:
                if piece >= 0:
                    expected[piece] += here * weight * backward[end]
    return expected


def maximize(pieces: _Pieces, expected: list[float]) -> dict[str, float]:
    """The new log probabilities: digamma(expected uses) - digamma(their sum)."""
    kept = [(text, number) for text, number in zip(pieces.texts, expected, strict=True) if number >= _RARE]
    total = digamma(math.fsum(number for _, number in kept))
    return {text: digamma(number) - total for text, number in kept}


def digamma(x: float) -> float:
    """The derivative of log Γ(x), x > 0: recurrence up to 7, then its asymptotic series around x - 1/2."""
    result = 0.0
    while x < 7:
        result -= 1 / x
        x += 1
    x -= 0.5
    square = 1 / (x * x)
    series = square * (1 / 24 - square * (7 / 960 - square * (31 / 8064 - square * 127 / 30720)))
    return result + math.log(x) + series


def prune(pieces: _Pieces, words: Mapping[str, int], wanted: int) -> dict[str, float]:
    """Three quarters of the pieces, but not fewer than `wanted`: those whose loss would cost the most.

    A piece that others spell better, or that no likeliest cut uses, goes at once; one that nothing else can spell
    stays.
    """
    uses = [0] * len(pieces.texts)
    for word, number in words.items():
        for piece in pieces.best(pieces.lattice(word))[0]:
            if piece >= 0:
                uses[piece] += number
    total = sum(uses)
    kept: list[int] = []
    losses: list[tuple[float, int]] = []
    for piece, (text, used) in enumerate(zip(pieces.texts, uses, strict=True)):
        if len(text) == 1:
            if used:
                kept.append(piece)
            continue
        others, score = pieces.best(pieces.lattice(text, whole=False))
        if not used or score > pieces.scores[piece]:
            continue
        if -1 in others:
            kept.append(piece)
            continue
        # Without the piece its uses become uses of the others: what is that in log probability?
        total_then = math.log(total + used * (len(others) - 1))
        then = sum(math.log(uses[other] + used) - total_then for other in others)
        losses.append((used / total * (math.log(used) - math.log(total) - then), piece))
    losses.sort(key=lambda item: (-item[0], item[1]))
    room = max(wanted, int(_KEPT * len(pieces.texts))) - len(kept)
    kept += [piece for _, piece in losses[: max(room, 0)]]
    return {pieces.texts[piece]: pieces.scores[piece] for piece in kept}


def _choose(pieces: _Pieces, characters: list[str], room: int) -> list[tuple[str, float]]:
    """Every character, and the likeliest of the others that can be reached at all, in the order of their scores."""
    scores = dict(zip(pieces.texts, pieces.scores, strict=True))
    lowest = min(scores.values())
    missing = [character for character in characters if character not in scores]
    chosen = {character: scores[character] for character in characters if character in scores}
    chosen |= {character: lowest + place * _DELTA for place, character in enumerate(missing)}
    for text, score in sorted(scores.items(), key=_place):
        if len(chosen) >= room:
            break
        if text not in chosen and (len(text) == 1 or pieces.best(pieces.lattice(text, whole=False))[1] <= score):
            chosen[text] = score
    return sorted(chosen.items(), key=_place)


def _place(item: tuple[str, float]) -> tuple[float, str]:
    """By the score as it is stored: how sums were rounded does not decide between equals."""
    return -_float32(item[1]), item[0]
