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

import sys
import unicodedata
from collections.abc import Callable, Iterator
from functools import cache

from tinylm.tokenizer._text import charsmap

NAMES = ("nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf")

_SPACES = "\t\n\f\r\u061c\u1680\u200b\u200c\u200e\u200f\u2028\u2029\u2581\ufeff\ufffd"
_NOTHING = [*range(0x01, 0x09), 0x0B, *range(0x0E, 0x20), 0x7F, 0x8F, 0x9F]


@cache
def compiled(name: str) -> bytes:
    """The rules called `name` as the bytes of a `precompiled_charsmap`; made once."""
    return charsmap.build(tree(name))


def tree(name: str) -> charsmap.Tree:
    """What is replaced → what replaces it."""
    spellings: dict[str, list[str]] = {}  # a decomposed character → the other characters that decompose to it alone
    sequences: set[str] = set()
    alone: dict[str, str] = {}  # the rules of one character
    for character in _characters(lambda text: not unicodedata.is_normalized("NFKD", text)):
        decomposed = unicodedata.normalize("NFKD", character)
        if len(decomposed) > 1:
            sequences.add(decomposed)
        elif decomposed != character:
            spellings.setdefault(decomposed, []).append(character)
        if (composed := unicodedata.normalize("NFKC", character)) != character:
            alone[character] = composed
    if name.startswith("nmt_"):
        alone |= dict.fromkeys(_SPACES, " ") | {chr(code): "" for code in _NOTHING}
        del alone["\uff5e"]  # the wide tilde stays: in Japanese it is a dash
    fold = _fold if name.endswith("_cf") else str
    alone = {character: fold(value) for character, value in alone.items()}
    if fold is _fold:
        folded = _characters(lambda text: text.casefold() != text or text.lower() != text)
        alone |= {one: other for one in folded if one not in alone and (other := fold(one)) != one}
    rules = charsmap.Tree()
    for sequence in sorted(sequences):
        if (composed := unicodedata.normalize("NFKC", sequence)) != sequence:
            rules.add(sequence, fold(composed))
    _spell(rules, spellings)
    for character, value in sorted(alone.items()):  # what goes on from here may go on from its other spellings, too
        rules.children[character] = charsmap.Tree(value, rules.children.get(character, charsmap.Tree()).children)
    return rules


def _characters(is_wanted: Callable[[str], bool]) -> Iterator[str]:
    """All characters of which `is_wanted` is true. It is asked of 256 at a time first, and is never true of one alone
    that it denies of those."""
    for start in range(0, sys.maxunicode + 1, 256):
        block = "".join(map(chr, range(max(start, 1), start + 256)))
        if not 0xD800 <= start < 0xE000 and is_wanted(block):
            yield from filter(is_wanted, block)


def _spell(rules: charsmap.Tree, spellings: dict[str, list[str]]) -> None:
    """Let every other spelling of a character lead where the character leads."""
    for character, branch in list(rules.children.items()):
        _spell(branch, spellings)
        for other in spellings.get(character, ()):
            rules.children[other] = branch


def _fold(text: str) -> str:
    """Simple case folding: one character becomes one character ("ß" stays)."""
    forms = ((character.casefold(), character.lower(), character) for character in text)
    return "".join(next(form for form in choice if len(form) == 1) for choice in forms)
