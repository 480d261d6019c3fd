"""The unigram language model of subwords, in plain Python: the rung to read.

Sources: Kudo 2018 ("Subword Regularization"): a text is any sequence of pieces, and its probability is the product of
theirs; Viterbi finds the likeliest sequence, and others can be drawn by their probability.

    train:   `unigram_training.py`: EM, and pruning of the pieces that matter least.
    encode:  for each place in the text, the best sequence of pieces that ends there: the best one at the start of its
             last piece, and that piece (Viterbi). A character that is no piece is "unknown" and costs 10 nats more
             than the rarest piece.
    n-best:  the n likeliest sequences, exactly: A* from the end, where Viterbi says what is left at best.
    sample:  forward filtering, backward sampling: draw the last piece by the probability of all sequences that end in
             it, then the one before.

What this file does not do: normalise (`normalizer.py`), decode (`_engines/sentencepiece.py`), read files. The scores
are added in float32 over the whole text, as SentencePiece does, if the model says so: it decides near-ties. The
compiled rung is in `kernels/`.
"""

from __future__ import annotations

import math
from array import array
from heapq import heappop, heappush
from random import Random
from typing import Any, Literal

from tinylm.tokenizer._engines.sentencepiece_data import Kind, SentencePieceModel
from tinylm.tokenizer._text.sentencepiece_words import Found, findable

_UNKNOWN_PENALTY = 10.0  # nats below the rarest piece
_RESET = 100_000.0  # float32 sums are brought back near zero beyond this, as SentencePiece does

Edge = tuple[int, int, float, int]  # a piece in the text: start, end, score, id


class Encoder:
    """Normalised text → pieces. Threads may share one: nothing in it changes."""

    def __init__(self, model: SentencePieceModel) -> None:
        self._kinds = model.kinds
        self._sum: Literal["d", "f"] = "d" if model.double else "f"  # how sums are stored: this rounds them
        scored = zip(model.scores, model.kinds, strict=True)
        rarest = min((score for score, kind in scored if model.double or kind == Kind.NORMAL), default=0.0)
        self._unknown = _rounded(rarest - _UNKNOWN_PENALTY, self._sum)
        self._trie: dict[str, Any] = {}  # character → the trie below it; "" → (score, id) of the piece that ends here
        for text, id in findable(model).items():
            if model.kinds[id] == Kind.UNUSED:
                continue
            node = self._trie
            for character in text:
                node = node.setdefault(character, {})
            is_whole = model.kinds[id] == Kind.USER_DEFINED
            node[""] = (_user_defined_score(len(text.encode())) if is_whole else model.scores[id], id)

    def edges(self, text: str, start: int) -> list[Edge]:
        """Every piece that stands at `start`, the shortest first; if none has one character, the unknown one, last."""
        found: list[Edge] = []
        node = self._trie
        for end in range(start, len(text)):
            if text[end] not in node:
                break
            node = node[text[end]]
            if "" in node:
                found.append((start, end + 1, *node[""]))
        if not found or found[0][1] != start + 1:
            found.append((start, start + 1, self._unknown, -1))
        return found

    def encode(self, text: str) -> list[Found]:
        """The likeliest pieces, in order: (text, id), where the id is -1 for an unknown character (Viterbi)."""
        return self.encode_on(text, 0.0)[0]

    def encode_on(self, text: str, total: float) -> tuple[list[Found], float]:
        """`encode` of a text that goes on where the sum of the scores is `total`; and the sum at its end."""
        best = array(self._sum, bytes((len(text) + 1) * array(self._sum).itemsize))  # score of the best way to a place
        best[0] = total
        last: list[tuple[int, int]] = [(-1, -1)] * (len(text) + 1)  # where its last piece starts, and its id
        rounded = array(self._sum, [0.0])
        furthest = 0
        for place in range(len(text)):
            if self._sum == "f" and abs(best[place]) > _RESET:
                _bring_back(best, last, place, furthest)
            here = best[place]
            for _, end, score, id in self.edges(text, place):
                rounded[0] = score + here
                if last[end][0] < 0 or rounded[0] > best[end]:
                    best[end] = rounded[0]
                    last[end] = place, id
                furthest = max(furthest, end)
        found: list[Found] = []
        end = len(text)
        while end > 0:
            start, id = last[end]
            found.append((text[start:end], id))
            end = start
        return found[::-1], best[-1]

    # ---- more than the best ----

    def nbest(self, text: str, n: int) -> list[tuple[list[Found], float]]:
        """The `n` likeliest sequences of pieces and their log probabilities, the likeliest first (fewer if there are
        fewer). Sums are in float64."""
        ending = self._ending(text)
        best = [0.0] + [-math.inf] * len(text)  # the likeliest way to each place
        for end in range(1, len(text) + 1):
            best[end] = max(best[start] + score for start, _, score, _ in ending[end])
        found: list[tuple[list[Found], float]] = []
        drawn = 0  # decides between equals: the earlier found first
        heap: list[tuple[float, int, int, float, tuple[Any, ...]]] = [(-best[-1], drawn, len(text), 0.0, ())]
        while heap and len(found) < n:
            _, _, place, behind, path = heappop(heap)
            if place == 0:
                pieces: list[Found] = []
                while path:
                    piece, path = path
                    pieces.append(piece)
                found.append((pieces, behind))
            for start, end, score, id in ending[place]:
                drawn += 1
                total = behind + score
                heappush(heap, (-(best[start] + total), drawn, start, total, ((text[start:end], id), path)))
        return found

    def sample(self, text: str, alpha: float, chance: Random) -> list[Found]:
        """A sequence of pieces drawn with probability proportional to P(sequence) ** alpha (1: the model's own
        distribution; 0: all alike; large: nearly always the likeliest)."""
        ending = self._ending(text)
        forward = [0.0]  # log of the sum over all ways to each place
        for end in range(1, len(text) + 1):
            forward.append(log_sum(forward[start] + alpha * score for start, _, score, _ in ending[end]))
        found: list[Found] = []
        place = len(text)
        while place > 0:
            weights = [
                math.exp(forward[start] + alpha * score - forward[place]) for start, _, score, _ in ending[place]
            ]
            start, end, _, id = chance.choices(ending[place], weights)[0]
            found.append((text[start:end], id))
            place = start
        return found[::-1]

    def _ending(self, text: str) -> list[list[Edge]]:
        """For each place, the pieces that end there; the text "<0x0A>" is not the byte, as it may be in `encode`."""
        ending: list[list[Edge]] = [[] for _ in range(len(text) + 1)]
        for place in range(len(text)):
            for edge in self.edges(text, place):
                if edge[3] < 0 or self._kinds[edge[3]] != Kind.BYTE:
                    ending[edge[1]].append(edge)
        return ending


def log_sum(values: Any) -> float:
    """log(Σ exp(value)), without overflow."""
    values = list(values)
    largest = max(values)
    return float(largest + math.log(math.fsum(math.exp(value - largest) for value in values)))


def _user_defined_score(size: int) -> float:
    """Above every log probability; of several user-defined pieces that cover the same text, the fewest win."""
    return _rounded(0.1 * (size - 1), "f")


def _rounded(value: float, type_code: Literal["d", "f"]) -> float:
    return array(type_code, [value])[0]


def _bring_back(best: array[float], last: list[tuple[int, int]], place: int, furthest: int) -> None:
    """Take the sum at `place` off all sums from there on: only their differences matter."""
    offset = best[place]
    for at in range(place, furthest + 1):
        if at == place or last[at][0] >= 0:
            best[at] -= offset
