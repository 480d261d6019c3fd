"""WordPiece in C++, the top rung: the same ids as the `Encoder` of `wordpiece.py`.

The C++ stands in `src/kernels/`: `wordpiece.hpp` finds the words and looks them up, `wordpiece_text.hpp` knows what
each character becomes, `wordpiece_trie.hpp` takes apart the words that are no piece, `wordpiece.cpp` is the border to
Python.
This file computes the table of characters, from the same rules that the Python rung reads.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from tinylm.tokenizer import kernels, wordpiece
from tinylm.tokenizer._text import wordpiece_tables as tables
from tinylm.tokenizer._text import wordpiece_text as _wordpiece_text
from tinylm.tokenizer._text.wordpiece_text import Rules, combining_class, decomposed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# As in wordpiece_text.hpp.
_LETTER, _REMOVED, _SPACE, _ALONE, _MAPPED, _FENCE, _SORTED, _HANGUL = range(8)
_FIRST_SYLLABLE, _LAST_SYLLABLE = 0xAC00, 0xD7A3

Row = list[int]  # first code point, last code point, kind


@cache
def _characters(rules: Rules) -> tuple[list[Row], list[int], list[str]]:
    """What each character becomes: rows of one kind, then the characters that become a string, and these strings."""
    rows: list[Row] = []
    if rules.clean:
        rows += [[first, last, _REMOVED] for first, last in _wordpiece_text.ranges(tables.CONTROL)]
    if rules.cjk:
        rows += [[first, last, _ALONE] for first, last in _wordpiece_text.ranges(_wordpiece_text.CHINESE)]
    if rules.accents:
        rows.append([_FIRST_SYLLABLE, _LAST_SYLLABLE, _HANGUL])
    codes: list[int] = []
    strings: list[str] = []
    for code in _special():
        becomes = rules.of(chr(code))
        kind = _kind(chr(code), becomes, rules)
        if kind == _MAPPED:
            codes.append(code)
            strings.append(becomes)
        else:
            rows.append([code, code, kind])
    return rows, codes, strings


@cache
def _special() -> list[int]:
    """Every character that some rule may change, without the large ranges above."""
    codes = {0, 0xFFFD}
    for table in (tables.SPACES, tables.PUNCTUATION, tables.NONSPACING, tables.DECOMPOSES):
        for first, last in _wordpiece_text.ranges(table):
            codes.update(range(first, last + 1) if first != _FIRST_SYLLABLE else ())
    for table in (tables.REORDERED, tables.LOWER):
        codes.update(int(item.partition(":")[0], 16) for item in table.split())
    for page in range(0, 0x20000, 256):  # no upper case beyond
        block = [code for code in range(page, page + 256) if not 0xD800 <= code < 0xE000]
        text = "".join(map(chr, block))
        if text.lower() != text:
            codes.update(code for code in block if chr(code).lower() != chr(code))
    return sorted(codes)


def _kind(character: str, becomes: str, rules: Rules) -> int:
    sorts = rules.accents and all(combining_class(part) for part in decomposed(character))
    if becomes == "":
        kept_apart = rules.accents and rules.of(character) == "" and not _cleaned(character, rules) and not sorts
        return _FENCE if kept_apart else _REMOVED
    if becomes == " ":
        return _SPACE
    if becomes == f" {character} ":
        return _ALONE
    if becomes == character:
        return _SORTED | combining_class(character) << 3 if sorts else _LETTER
    return _MAPPED


def _cleaned(character: str, rules: Rules) -> bool:
    """Whether cleaning removes it, before decomposition can see it."""
    return rules.clean and Rules(clean=True, cjk=False, accents=False, lower=False).of(character) == ""


class Encoder:
    """Text → ids. One object may be shared by threads; the GIL is free while it works."""

    name = "kernels"

    def __init__(self, pieces: wordpiece.WordPieces) -> None:
        rules = pieces.rules
        self._encoder = kernels._compiled().WordPiece(
            list(pieces.tokens),
            list(pieces.tokens.values()),
            pieces.unknown_id,
            pieces.longest,
            rules.lower,
            *_characters(rules),
        )
        kernels._with_locks.add(self)

    def after_fork(self) -> None:
        """Threads of the process that this one was forked from hold nothing here."""
        self._encoder.after_fork()

    def encode(self, text: str) -> list[int]:
        """The ids of `text`. Errors: UnicodeEncodeError for a lone surrogate."""
        ids: list[int] = self._encoder.encode(text).tolist()
        return ids

    def encode_array(self, text: str) -> NDArray[np.uint32]:
        """The same, as an array."""
        array: NDArray[np.uint32] = self._encoder.encode(text)
        return array


def make_encoder(pieces: wordpiece.WordPieces) -> Encoder | wordpiece.Encoder:
    """The fastest encoder at hand."""
    if kernels.available():
        return Encoder(pieces)
    kernels._warn_once()
    return wordpiece.Encoder(pieces)
