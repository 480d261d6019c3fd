"""Training of SentencePiece's byte-pair encoding, in plain Python: the same pieces as its own trainer learns.

    a word is a list of characters; again and again, of all pairs of neighbours whose joined text may be a piece, join
    the most frequent one everywhere, until there are enough pieces. Of equally frequent pairs the one whose text is
    shorter wins, then the one that comes first in Unicode. A text becomes a piece once, however it can be made. At the
    end the characters of the corpus become pieces too. The score of a piece is minus its place.

Sources: Sennrich, Haddow and Birch 2016; Kudo and Richardson 2018. Counts are kept up to date as in `byte_bpe_fast.py`:
after a join only the words that hold the pair are counted again.

What this file does not do: say what may be a piece and count the corpus (`_trainers/sentencepiece_corpus.py`), or
encode (`sentencepiece_bpe.py`). The compiled rung is in `kernels/`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from heapq import heapify, heappop, heappush
from itertools import pairwise

from tinylm.tokenizer._engines.sentencepiece_data import SentencePieceModel
from tinylm.tokenizer._text.sentencepiece_words import ranked_merges
from tinylm.tokenizer._trainers.sentencepiece_corpus import Options, count, may_be_piece, model

Pair = tuple[str, str]


def train(
    texts: Iterable[str], options: Options, progress: Callable[[int, int], None] = lambda done, wanted: None
) -> SentencePieceModel:
    """Learn a vocabulary of at most `options.vocab_size` pieces (fewer if the corpus has no pair left).

    `progress(done, wanted)` is called after every piece. Errors: TokenizerError for options or a corpus that cannot be
    used.
    """
    options.check()
    counted = count(texts, options)
    wanted = options.vocab_size - len(options.first_pieces()) - len(counted.characters)
    pieces = learn(counted.words, wanted, options.longest, lambda done: progress(done, wanted))
    pieces += counted.characters
    learned = model("sentencepiece-bpe", [(piece, -float(place)) for place, piece in enumerate(pieces)], options)
    return replace(learned, merges=ranked_merges(learned))  # as a tokenizer.json has them


def learn(words: dict[str, int], wanted: int, longest: int, progress: Callable[[int], None]) -> list[str]:
    """At most `wanted` pieces of two characters or more, in the order in which they are joined."""
    symbols = [list(word) for word in words]
    numbers = list(words.values())
    counts: dict[Pair, int] = defaultdict(int)
    where: dict[Pair, set[int]] = defaultdict(set)  # the words in which a pair stands, or stood
    for word, parts in enumerate(symbols):
        for pair in pairwise(parts):
            counts[pair] += numbers[word]
            where[pair].add(word)
    heap = [_entry(pair, number) for pair, number in counts.items() if may_be_piece("".join(pair), longest)]
    heapify(heap)
    pieces: dict[str, None] = {}
    while heap and len(pieces) < wanted:
        number, _, text, pair = heappop(heap)
        if counts[pair] != -number:  # it has changed since: look at it again in its new place
            if counts[pair]:
                heappush(heap, _entry(pair, counts[pair]))
            continue
        if text in pieces:
            continue
        pieces[text] = None
        progress(len(pieces))
        changed: dict[Pair, None] = {}
        for word in sorted(where.pop(pair)):
            _join(symbols[word], pair, word, numbers[word], counts, where, changed)
        for new in changed:
            if counts[new] and "".join(new) not in pieces and may_be_piece("".join(new), longest):
                heappush(heap, _entry(new, counts[new]))
    return list(pieces)


def _entry(pair: Pair, number: int) -> tuple[int, int, str, Pair]:
    text = "".join(pair)
    return -number, len(text), text, pair


def _join(
    parts: list[str],
    pair: Pair,
    word: int,
    number: int,
    counts: dict[Pair, int],
    where: dict[Pair, set[int]],
    changed: dict[Pair, None],
) -> None:
    """Join `pair` everywhere in one word, from left to right, and count the word's pairs again."""
    joined = []
    place = 0
    while place < len(parts):
        if tuple(parts[place : place + 2]) == pair:
            joined.append(pair[0] + pair[1])
            place += 2
        else:
            joined.append(parts[place])
            place += 1
    if len(joined) == len(parts):
        return
    for old in pairwise(parts):
        counts[old] -= number
    for new in pairwise(joined):
        counts[new] += number
        where[new].add(word)
        if pair[0] + pair[1] in new:
            changed[new] = None
    parts[:] = joined
