"""A made corpus whose entropy is known exactly: the floor that a correct trainer comes down to, and never goes below.

Sentences are drawn from a small probabilistic grammar. The alternatives of a symbol begin with different characters, so
a text has one derivation (a simple grammar: Korenjak and Hopcroft 1966), and what a text tells is what was chosen:

    entropy(A) = Σ p ln(1/p) + Σ p Σ entropy(B)      over A's alternatives, of probability p, and the symbols B in each
    length(A)  = Σ p (characters + Σ length(B))

two linear systems. Sentences are independent, so entropy(sentence) / length(sentence) is the entropy of a character.
    tinylm-train synthetic corpus.txt --characters 1000000
Not here: training on it (the test test_training_synthetic.py does).
"""

from __future__ import annotations

import dataclasses
import math
import os
import random
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from tinylm.training._errors import TrainingError

Rules = Mapping[str, list[tuple[float, str]]]

RULES: Rules = {
    "sentence": [
        (0.6, "the <noun><rest>"),
        (0.3, "a <noun> <verb>, and <sentence>"),
        (0.1, "look: <noun>!\n"),
    ],
    "rest": [(0.7, " <verb>.\n"), (0.3, ", which <verb>, <verb>.\n")],
    "noun": [(0.5, "cat"), (0.25, "dog"), (0.15, "old <noun>"), (0.1, "bird")],
    "verb": [(0.4, "sleeps"), (0.3, "runs"), (0.2, "finds <object>"), (0.1, "eats <object>")],
    "object": [(0.7, "the <noun>"), (0.3, "nothing")],
}


@dataclasses.dataclass(frozen=True)
class Grammar:
    """Symbols and their alternatives, each with its probability; `<name>` in one is a symbol. Begins with `start`.

    Raises TrainingError if probabilities do not add up to 1, a symbol has no rules, two alternatives of one begin with
    the same character, or sentences would have no finite length.
    """

    rules: Rules = dataclasses.field(default_factory=lambda: RULES)
    start: str = "sentence"

    def __post_init__(self) -> None:
        for symbol, alternatives in self.rules.items():
            if not math.isclose(sum(p for p, _ in alternatives), 1.0) or min(p for p, _ in alternatives) <= 0:
                raise TrainingError(f"wanted probabilities of <{symbol}> that are above 0 and add up to 1")
            first = [text[:1] for _, text in alternatives]
            if len(set(first)) < len(first) or {"", "<"} & set(first):
                raise TrainingError(
                    f"wanted alternatives of <{symbol}> that begin with different characters, got {first}"
                )
            unknown = {part for _, text in alternatives for part in _parts(text)[1::2]} - set(self.rules)
            if unknown:
                raise TrainingError(f"wanted rules for every symbol, got none for {', '.join(sorted(unknown))}")
        growth = np.abs(np.linalg.eigvals(self._expected())).max()
        if growth >= 1:
            raise TrainingError(f"wanted a grammar whose sentences end, got one where a symbol makes {growth:.2f} more")

    def entropy(self) -> float:
        """Nats per character of an endless text of sentences, exactly."""
        chosen = [sum(-p * math.log(p) for p, _ in alternatives) for alternatives in self.rules.values()]
        written = [
            sum(p * sum(map(len, _parts(text)[::2])) for p, text in alternatives)
            for alternatives in self.rules.values()
        ]
        solved = np.linalg.solve(np.eye(len(self.rules)) - self._expected(), np.array([chosen, written]).T)
        nats, characters = solved[list(self.rules).index(self.start)]
        return float(nats / characters)

    def _expected(self) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        """How many of each symbol (columns) an expansion of each symbol (rows) has on average."""
        names = list(self.rules)
        expected = np.zeros((len(names), len(names)))
        for row, alternatives in enumerate(self.rules.values()):
            for p, text in alternatives:
                for symbol in _parts(text)[1::2]:
                    expected[row, names.index(symbol)] += p
        return expected

    def sentences(self, seed: int) -> Iterator[str]:
        """Endless, independent draws."""
        draw = random.Random(seed)
        weights = {symbol: [p for p, _ in alternatives] for symbol, alternatives in self.rules.items()}
        while True:
            done, open_parts = [], [f"<{self.start}>"]
            while open_parts:
                text = open_parts.pop()
                before, *rest = _parts(text)
                done.append(before)
                if rest:
                    symbol = rest[0]
                    open_parts.append(text[len(before) + len(symbol) + 2 :])
                    open_parts.append(draw.choices(self.rules[symbol], weights[symbol])[0][1])
            yield "".join(done)

    def nats(self, text: str) -> float:
        """-ln of the probability of `text`, one or more whole sentences: what the best model of all pays for it."""
        total, place = 0.0, 0
        open_parts: list[str] = []
        while place < len(text) or open_parts:
            part = open_parts.pop() if open_parts else f"<{self.start}>"
            before, *rest = _parts(part)
            if not text.startswith(before, place):
                raise TrainingError(f"wanted {before!r} at character {place}, got {text[place : place + 20]!r}")
            place += len(before)
            if rest:
                symbol = rest[0]
                open_parts.append(part[len(before) + len(symbol) + 2 :])
                found = [(p, t) for p, t in self.rules[symbol] if text.startswith(t[0], place)]
                if not found:
                    raise TrainingError(f"wanted a <{symbol}> at character {place}, got {text[place : place + 20]!r}")
                total -= math.log(found[0][0])
                open_parts.append(found[0][1])
        return total


def _parts(text: str) -> list[str]:
    """Characters, symbol, characters, symbol, ..., characters."""
    return re.split("<([a-z]+)>", text)


def write(path: str | Path, characters: int, seed: int = 0, grammar: Grammar | None = None) -> float:
    """Write sentences of at least so many characters to `path`; returns the entropy, nats per character. The file
    appears as a whole. TrainingError when one stands there already."""
    grammar, path = grammar or Grammar(), Path(path)
    if path.exists():
        raise TrainingError(f"wanted a new file for the text, got {path}, which stands there already: choose another")
    new = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with new.open("w", encoding="utf-8", newline="") as file:
            written = 0
            for sentence in grammar.sentences(seed):
                written += file.write(sentence)
                if written >= characters:
                    break
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    return grammar.entropy()
