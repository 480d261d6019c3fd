"""Where you are: the second rung of character-level BPE: the merges and ids of `naive_bpe`, ties included, much sooner.

Source: Sennrich, Haddow and Birch 2015, https://arxiv.org/abs/1508.07909, as `naive_bpe`.

Three observations, each from the profile of the rung below:

1. Training: a merge changes only the words that hold its pair. Every pair keeps its count and its words, and a heap
   gives the most frequent pair, so a merge costs as much as the words that it touches, not as much as the corpus.
2. Encoding: a word needs only those merges whose pairs it holds, in the order learned; the others are never tried.
3. Both: a word that the text repeats is taken apart once, and one of letters alone has no punctuation to look for.

The one thing to get right is which of several equally frequent pairs is merged: the first met, reading the words in
their order. So a heap entry is (-count, word, place in the word): of equal counts the pair that stands first wins.
Entries are corrected when they come to the top (lazy deletion): a count that fell and a first place that moved back
only make an entry too early, which the check finds; for the opposite a new entry is pushed.

What it does not do: anything that `naive_bpe` does not (bytes, another end-of-word marker), or leave plain Python.
`merge`, `build_vocab`, `decode` and the files are those of `naive_bpe`. Next: `byte_bpe.py`, where nothing is unknown.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator

from tinylm.tokenizer._errors import TokenizerError
from tinylm.tokenizer.naive_bpe import END_OF_WORD, UNKNOWN, Pair, _merge_symbols, char_spaced_words

_Entry = tuple[int, int, int, Pair]  # -count, first word, first place in it, the pair


def char_spaced_word_freq(text: str) -> dict[str, int]:
    """`naive_bpe.char_spaced_word_freq`: what stands between two spaces is taken apart once."""
    word_freq: Counter[str] = Counter()
    for written, freq in Counter(filter(None, text.split(" "))).items():
        for word in _words(written):
            word_freq[word] += freq
    return dict(word_freq)


def _words(written: str) -> list[str]:
    """`char_spaced_words` of what stands between two spaces."""
    return [" ".join([*written, END_OF_WORD])] if written.isalnum() else char_spaced_words(written)


def learn_merges(word_freq: dict[str, int], number_of_merges: int) -> list[Pair]:
    """`naive_bpe.learn_merges`, counting again only the words that a merge changes."""
    if number_of_merges < 0:
        raise TokenizerError(f"wanted 0 or more merges, got {number_of_merges}")
    counts = _PairCounts(word_freq)
    merges: list[Pair] = []
    while len(merges) < number_of_merges and (best := counts.most_frequent()):
        counts.merge(best)
        merges.append(best)
    return merges


class _PairCounts:
    """The words, how often each pair occurs in them, and where it occurs first."""

    def __init__(self, word_freq: dict[str, int]) -> None:
        self._words = [word.split(" ") for word in word_freq]
        self._freqs = list(word_freq.values())
        self._starts = [[*range(len(symbols))] for symbols in self._words]  # a symbol's place before any merge
        self._counts: dict[Pair, int] = defaultdict(int)
        self._words_with: dict[Pair, list[int]] = defaultdict(list)  # a heap of word numbers; some lost the pair since
        for number in range(len(self._words)):
            self._add(number, self._pairs(number))
        self._heap: list[_Entry] = [entry for pair in self._counts if (entry := self._entry(pair))]
        heapq.heapify(self._heap)

    def most_frequent(self) -> Pair | None:
        """The pair with the highest count, the first met of several; None if no pair is left."""
        while self._heap:
            entry = self._heap[0]
            now = self._entry(entry[-1])
            if now == entry:
                return entry[-1]
            if now is None:
                heapq.heappop(self._heap)
            else:
                heapq.heapreplace(self._heap, now)
        return None

    def merge(self, pair: Pair) -> None:
        """Join `pair` in every word that holds it, and count those words again."""
        new = "".join(pair)
        grown: set[Pair] = set()
        for number in sorted(set(self._words_with.pop(pair))):
            before = self._pairs(number)
            if pair not in before:
                continue
            for old in before:
                self._counts[old] -= self._freqs[number]
            self._join(number, pair)
            after = self._pairs(number)
            self._add(number, after, before)
            grown.update(found for found in after if new in found)
        for found in grown:  # only these can have become more frequent, or stand earlier than before
            if entry := self._entry(found):
                heapq.heappush(self._heap, entry)

    def _pairs(self, number: int) -> list[Pair]:
        return list(itertools.pairwise(self._words[number]))

    def _add(self, number: int, pairs: list[Pair], already: list[Pair] | tuple[()] = ()) -> None:
        for pair in pairs:
            self._counts[pair] += self._freqs[number]
        for pair in set(pairs).difference(already):
            heapq.heappush(self._words_with[pair], number)

    def _join(self, number: int, pair: Pair) -> None:
        symbols, starts = self._words[number], self._starts[number]
        merged = _merge_symbols(pair, symbols)
        kept: list[int] = []
        at = 0
        for _ in merged:
            kept.append(starts[at])
            at += 2 if tuple(symbols[at : at + 2]) == pair else 1
        self._words[number], self._starts[number] = merged, kept

    def _entry(self, pair: Pair) -> _Entry | None:
        """What the heap should hold for `pair` now; None if no word has it any more."""
        holders = self._words_with.get(pair, [])
        while holders:
            number = holders[0]
            for place, found in enumerate(itertools.pairwise(self._words[number])):
                if found == pair:
                    return -self._counts[pair], number, self._starts[number][place], pair
            heapq.heappop(holders)
        self._words_with.pop(pair, None)
        self._counts.pop(pair, None)
        return None


def encode(text: str, merges: list[Pair], vocab: dict[str, int]) -> list[int]:
    """`naive_bpe.encode`: each distinct word meets only those merges whose pairs it holds."""
    ranks: dict[Pair, list[int]] = defaultdict(list)  # two ways to one symbol: the same pair can be learned again
    for rank, pair in enumerate(merges):
        ranks[pair].append(rank)
    chunks = [written for written in text.split(" ") if written]
    ids_of: dict[str, list[int]] = {}
    for written in dict.fromkeys(chunks):
        ids_of[written] = [
            vocab.get(symbol, UNKNOWN) for word in _words(written) for symbol in _replay(word.split(" "), ranks)
        ]
    return [id for written in chunks for id in ids_of[written]]


def _replay(symbols: list[str], ranks: dict[Pair, list[int]]) -> list[str]:
    """Every merge that applies, in the order learned; one that comes too late for its turn is not done."""

    def upcoming(after: int) -> Iterator[tuple[int, Pair]]:
        for pair in itertools.pairwise(symbols):
            for rank in ranks.get(pair, ()):
                if rank > after:
                    yield rank, pair
                    break

    done = -1
    while (found := min(upcoming(done), default=None)) is not None:
        done, pair = found
        symbols = _merge_symbols(pair, symbols)
    return symbols
