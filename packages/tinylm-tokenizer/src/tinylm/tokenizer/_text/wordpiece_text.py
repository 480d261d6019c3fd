"""BERT's basic tokenisation: a text → its words, as `wordpiece.py` takes them apart. Knows no vocabulary.

Four steps (Devlin et al. 2018, the `BasicTokenizer` of the released code), each of which can be turned off:

    clean        control characters are removed, every white space is a space
    cjk          each Chinese character is a word of its own (they are written without spaces)
    accents      text is decomposed (NFD), and combining accents are removed: "é" → "e"
    lower        upper case becomes lower case

Then words end at spaces, and each punctuation mark is a word of its own. Every step looks at one character at a time,
so all of them together are one table: character → what it becomes, with spaces around a word of its own, applied by
`str.translate`. The exception is decomposition, which also sorts combining characters by their class; few that are not
removed have a class, and a text that holds one of them is sorted first.

The characters are those of Hugging Face's tokenizers (see `wordpiece_tables.py`), so that ids agree on all of Unicode.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from tinylm.tokenizer._text import wordpiece_tables as tables

CHINESE = "3400-4DBF 4E00-9FFF F900-FAFF 20000-2A6DF 2A700-2B81F 2B920-2CEAF 2F800-2FA1F"
Located = tuple[str, int]  # a character, and the number of the character of the text that it comes from


def ranges(text: str) -> list[tuple[int, int]]:
    pairs = (item.partition("-") for item in text.split())
    return [(int(first, 16), int(last or first, 16)) for first, _, last in pairs]


@cache
def _codes(text: str) -> frozenset[int]:
    """The code points of a table of ranges."""
    return frozenset(code for first, last in ranges(text) for code in range(first, last + 1))


@cache
def _pairs(text: str, base: int) -> dict[int, int]:
    return {int(key, 16): int(value, base) for key, _, value in (item.partition(":") for item in text.split())}


def decomposed(character: str) -> str:
    """The canonical decomposition of one character, in Unicode 9."""
    known = ord(character) in _codes(tables.DECOMPOSES)
    return unicodedata.normalize("NFD", character) if known else character


def combining_class(character: str) -> int:
    """Its canonical combining class in Unicode 9; 0: it stays where it is."""
    kept = _pairs(tables.REORDERED, 10).get(ord(character))
    if kept is not None:
        return kept
    return unicodedata.combining(character) if ord(character) in _codes(tables.NONSPACING) else 0


def lowered(character: str) -> str:
    """Its lower case in Unicode 17, as tokenizers has it."""
    newer = _pairs(tables.LOWER, 16).get(ord(character))
    return character.lower() if newer is None else chr(newer)


@dataclass(frozen=True)
class Rules:
    """Which of the steps are done. `accents`: remove them. The default is that of BERT's uncased models."""

    clean: bool = True
    cjk: bool = True
    accents: bool = True
    lower: bool = True

    def of(self, character: str) -> str:
        """What one character becomes: "" if it is removed, " " if it ends a word, " x " if it is a word of its own."""
        code = ord(character)
        if self.clean and (character in "\0\ufffd" or code in _codes(tables.CONTROL)):
            return ""
        if code in _codes(tables.SPACES):
            return " "
        alone = self.cjk and code in _codes(CHINESE)
        parts = decomposed(character) if self.accents else character
        parts = "".join(c for c in parts if not self.accents or ord(c) not in _codes(tables.NONSPACING))
        if self.lower:
            parts = "".join(lowered(c) for c in parts)
        return "".join(f" {c} " if alone or ord(c) in _codes(tables.PUNCTUATION) else c for c in parts)


class Splitter(dict[int, str]):
    """Cuts texts into words by one set of rules. It is its own table for `str.translate`, filled as characters come."""

    def __init__(self, rules: Rules) -> None:
        super().__init__()
        self.rules = rules
        self._sorted = re.compile(f"[{''.join(map(re.escape, self.reordered()))}]") if rules.accents else None

    def __missing__(self, code: int) -> str:
        value = self[code] = self.rules.of(chr(code))
        return value

    @staticmethod
    def reordered() -> list[str]:
        """The characters that are, or hold, one that is kept and has a combining class."""
        held = {code: chr(code) for code in _pairs(tables.REORDERED, 10)}
        holders = [chr(code) for code in _codes(tables.DECOMPOSES) if code < 0xAC00 or code > 0xD7A3]
        return [*held.values(), *(c for c in holders if any(ord(part) in held for part in decomposed(c)))]

    def words(self, text: str) -> list[str]:
        """The words of `text`, each as it is looked up."""
        if self._sorted and self._sorted.search(text):
            text = "".join(character for character, _ in self._in_order(zip(text, range(len(text)), strict=True)))
        return [word for word in text.translate(self).split(" ") if word]

    def located(self, text: str) -> Iterator[list[Located]]:
        """The same words, each character with the number of the character of `text` that it comes from."""
        characters: Iterable[Located] = zip(text, range(len(text)), strict=True)
        if self._sorted and self._sorted.search(text):
            characters = self._in_order(characters)
        word: list[Located] = []
        for character, place in characters:
            for part in self[ord(character)]:
                if part != " ":
                    word.append((part, place))
                elif word:
                    yield word
                    word = []
        if word:
            yield word

    def _in_order(self, characters: Iterable[Located]) -> Iterator[Located]:
        """The canonical ordering algorithm (Unicode Standard Annex 15), on what is left after cleaning."""
        run: list[Located] = []
        for character, place in characters:
            if not self[ord(character)] and ord(character) not in _codes(tables.NONSPACING):
                continue  # a control character: it is removed before, and does not keep apart what is around it
            for part in decomposed(character):
                if combining_class(part) == 0:
                    yield from sorted(run, key=lambda one: combining_class(one[0]))
                    yield part, place
                    run = []
                else:
                    run.append((part, place))
        yield from sorted(run, key=lambda one: combining_class(one[0]))
