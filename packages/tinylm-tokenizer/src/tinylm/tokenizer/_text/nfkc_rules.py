"""The normalisation rules that SentencePiece's trainer uses, derived from Unicode's tables: nfkc, nmt_nfkc and the case
folding ones. Used for training; a model that is loaded brings its own rules.

NFKC of a whole text also puts combining marks in order; rules that look at the longest match at one place cannot. They
are: every character → its NFKC, and every way of writing a decomposed character → its composed form. "nmt" adds what
machine translation wants: other white space and invisible marks become a space, control characters vanish. The tables
are those of this Python (`unicodedata.unidata_version`): a character that is newer than they are stays as it is.
How they are stored: `charsmap.py`; how they are applied: `normalizer.py`. Sources: Unicode Standard Annex 15;
SentencePiece's documentation of its normalisation rules.
"""

from __future__ import annotations

import itertools
import sys
import unicodedata
from functools import cache

from tinylm.tokenizer._text import charsmap

NAMES = ("nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf")

_SPACES = "\t\n\f\r\u061c\u1680\u200b\u200c\u200e\u200f\u2028\u2029\u2581\ufeff\ufffd"
_NOTHING = [*range(0x01, 0x09), 0x0B, *range(0x0E, 0x20), 0x7F, 0x8F, 0x9F]


@cache
def compiled(name: str) -> bytes:
    """The rules called `name` as the bytes of a `precompiled_charsmap`. Takes seconds; done once."""
    return charsmap.build(rules(name))


def rules(name: str) -> dict[str, str]:
    """What is replaced → what replaces it."""
    found = _nfkc()
    if name.startswith("nmt_"):
        found |= dict.fromkeys(_SPACES, " ") | {chr(code): "" for code in _NOTHING}
        del found["\uff5e"]  # the wide tilde stays: in Japanese it is a dash
    if name.endswith("_cf"):
        found = {key: _fold(value) for key, value in found.items()}
        found |= {
            character: _fold(character)
            for character in map(chr, range(1, sys.maxunicode + 1))
            if character not in found and _fold(character) != character
        }
    return found


def _fold(text: str) -> str:
    """Simple case folding: one character becomes one character ("ß" stays)."""
    forms = ((character.casefold(), character.lower(), character) for character in text)
    return "".join(next(form for form in choice if len(form) == 1) for choice in forms)


def _nfkc() -> dict[str, str]:
    rules: dict[str, str] = {}
    written_as: dict[str, list[str]] = {}  # a decomposed character → the characters that decompose to it alone
    sequences: set[str] = set()
    for character in map(chr, range(1, sys.maxunicode + 1)):
        if unicodedata.category(character) in ("Cn", "Cs"):
            continue
        decomposed = unicodedata.normalize("NFKD", character)
        if len(decomposed) == 1:
            written_as.setdefault(decomposed, []).append(character)
        else:
            sequences.add(decomposed)
        if (composed := unicodedata.normalize("NFKC", character)) != character:
            rules[character] = composed
    for sequence in sequences:
        composed = unicodedata.normalize("NFKC", sequence)
        if composed != sequence:
            for spelling in map("".join, itertools.product(*(written_as[part] for part in sequence))):
                if spelling != composed:
                    rules[spelling] = composed
    return rules
