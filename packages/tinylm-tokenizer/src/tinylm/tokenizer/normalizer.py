"""Normalisation: what happens to a text before a SentencePiece-like tokenizer looks at it, and where it came from.

    normalize(text, steps)          the normalised text
    normalize_with_starts(...)      the same, and for each of its characters the place in `text` that it came from

A step (`_engines/sentencepiece_data.py`) says what to rewrite; here each is a function that gives its edits, from left
to right: (start, end, replacement). All that is not edited stays. One mechanism so makes the new text and the places.

What this file does not do: parse compiled rules (`_text/charsmap.py`), make the rules of nmt_nfkc
(`_text/nfkc_rules.py`), split text into words, or encode (`sentencepiece_bpe.py`, `unigram.py`). The forms nfc, nfd,
nfkc and nfkd are those of Python's `unicodedata`: a character newer than `unicodedata.unidata_version` stays as it is
(tokenizers: newer than Unicode 9).
Sources: Unicode Standard Annex 15; Kudo and Richardson 2018, sections 3.2 and 3.5.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Literal

import regex

from tinylm.tokenizer._engines.sentencepiece_data import (
    SPACE,
    Charsmap,
    Form,
    Only,
    Prepend,
    Replace,
    ReplaceSpaces,
    Spaces,
    Step,
    Strip,
    WhiteSpace,
)
from tinylm.tokenizer._text import charsmap
from tinylm.tokenizer._text.wordpiece_text import lowered

Edit = tuple[int, int, str]
Kept = dict[int, int]  # stretches of a text that no rule may touch: start → end

_MARKS = ("Mn", "Mc", "Me")  # what strip_accents removes, as in tokenizers; BERT removes the first kind only
# A normal form never looks beyond these: a character, and after it what may combine with what stands before (marks, the
# vowels and final consonants of Korean in their three spellings, the voice marks of Japanese).
_COMBINES = r"\p{M}\u1160-\u11ff\u3130-\u318f\uffa0-\uffdc\uff9e\uff9f"
_BEGINNING = 64  # characters: more than any rule for the first one looks at
_RUN = regex.compile(rf"[^{_COMBINES}][{_COMBINES}]*|[{_COMBINES}]+")
# A grapheme cluster (Unicode Standard Annex 29). \X alone would join a virama with the consonant behind it whatever
# stands before them: only a consonant may (rule GB9c).
_CLUSTER = regex.compile(
    r"\p{GCB=Prepend}*[^\p{InCB=Consonant}\p{GCB=Prepend}\p{GCB=Control}\r\n]"
    r"[\p{GCB=Extend}\p{GCB=SpacingMark}\u200d]*(?=\p{InCB=Consonant})|\X",
    regex.VERSION1,
)


def normalize(text: str, steps: Sequence[Step], first: bool = True, keep: re.Pattern[str] | None = None) -> str:
    """The normalised text. first: `text` starts the whole text; keep: finds what no rule may touch."""
    whole, kept = text, _kept(text, keep)
    for number, step in enumerate(steps):
        if isinstance(step, Form) and step.name in _NORMAL_FORMS:  # faster than edits
            text = unicodedata.normalize(_NORMAL_FORMS[step.name], text)
        else:
            if isinstance(step, Prepend) and step.first_only:
                first = first and _keeps_its_start(whole, steps[:number])
            edits: Iterator[Edit] | list[Edit] = _edits(text, step, first, kept)
            if kept:
                edits = list(edits)
                kept = _moved(kept, edits)
            text = _rewrite(text, edits)
    return text


def normalize_with_starts(
    text: str, steps: Sequence[Step], first: bool = True, keep: re.Pattern[str] | None = None
) -> tuple[str, list[int]]:
    """The normalised text, and where each of its characters, and its end, came from: len(result) + 1 places in `text`.

    What was inserted comes from the place where it was put, what was deleted belongs to the character before it.
    """
    starts = list(range(len(text) + 1))
    whole, kept = text, _kept(text, keep)
    for number, step in enumerate(steps):
        if isinstance(step, Prepend) and step.first_only:
            first = first and _keeps_its_start(whole, steps[:number])
        edits = list(_edits(text, step, first, kept))
        kept = _moved(kept, edits)
        new_starts: list[int] = []
        done = 0
        for start, end, replacement in edits:
            new_starts += starts[done:start]
            new_starts += [starts[start]] * len(replacement)
            done = end
        trimmed = isinstance(step, (Spaces, Strip, ReplaceSpaces)) and edits and edits[-1][1:] == (len(text), "")
        new_starts += [starts[edits[-1][0]]] if trimmed else starts[done:]
        text, starts = _rewrite(text, edits), new_starts
    return text, starts


def _kept(text: str, keep: re.Pattern[str] | None) -> Kept:
    return {found.start(): found.end() for found in keep.finditer(text)} if keep else {}


def _moved(kept: Kept, edits: Iterable[Edit]) -> Kept:
    """Where these stretches are behind the edits, without those that an edit begins before and ends in."""
    moved: Kept = {}
    shift = 0
    rest = iter([*edits, (sys.maxsize, sys.maxsize, "")])
    start, end, new = next(rest)
    for left, right in kept.items():
        while end <= left:
            shift += len(new) - (end - start)
            start, end, new = next(rest)
        if start >= right:
            moved[left + shift] = right + shift
    return moved


def _rewrite(text: str, edits: Iterator[Edit] | list[Edit]) -> str:
    parts: list[str] = []
    done = 0
    for start, end, replacement in edits:
        parts += (text[done:start], replacement)
        done = end
    return "".join(parts) + text[done:] if parts else text


def _keeps_its_start(text: str, steps: Sequence[Step]) -> bool:
    """Whether normalised text begins with what `text` begins with, as tokenizers sees it: a part whose first character
    is removed, or is replaced together with more, does not start the whole text any more. Compiled rules do not count.
    """
    if all(step == Replace(" ", SPACE) for step in steps):
        return True
    text = text[:_BEGINNING]
    leading = 1  # so many characters come from the first one, or were put before it
    for step in steps:
        edits = list(_edits(text, step, True, {}))
        left = 1 if isinstance(step, Charsmap) else leading
        for start, end, new in [] if isinstance(step, Charsmap) else edits:
            if start >= leading and not isinstance(step, Prepend):
                break
            if end > leading:
                if start == 0 and (not new or isinstance(step, (Replace, ReplaceSpaces))):
                    return False
                break
            left += len(new) - (end - start)
        if left <= 0:
            return False
        leading = left
        text = _rewrite(text, edits)
    return True


# ---- one function for each kind of step ----


def _edits(text: str, step: Step, first: bool, kept: Kept) -> Iterator[Edit]:
    match step:
        case Charsmap():
            return _graphemes(text, step) if step.by_grapheme else _charsmap_edits(text, step, kept)
        case Form():
            return FORMS[step.name](text)
        case Replace():
            return ((at.start(), at.end(), step.new) for at in regex.finditer(regex.escape(step.old), text))
        case ReplaceSpaces():
            return _runs(text, step)
        case Strip():
            return _strip(text, step)
        case Prepend():
            there = step.unless_there and text.startswith(step.text)
            return iter([(0, 0, step.text)] if text and not there and (first or not step.first_only) else [])
        case Spaces():
            return _spaces(text, step, first, kept)
        case WhiteSpace():
            return _white_space(text)
        case Only():
            return ((at, at + 1, "") for at, character in enumerate(text) if character not in step.characters)


def _charsmap_edits(text: str, step: Charsmap, kept: Kept) -> Iterator[Edit]:
    """The longest rule wins at each place; what is kept there is passed over."""
    longest = charsmap.read(step.rules).longest
    at = 0
    while at < len(text):
        if at in kept:
            at = kept[at]
        elif (rule := longest(text, at)) is not None:
            yield at, rule[0], rule[1]
            at = rule[0]
        else:
            at += 1


def _graphemes(text: str, step: Charsmap) -> Iterator[Edit]:
    """As Hugging Face's tokenizers do it: look a short grapheme cluster up as a whole, else character by character.

    The rule that they take is the shortest that begins there, and it replaces the whole that was looked up.
    """
    shortest = charsmap.read(step.rules).shortest
    for cluster in _CLUSTER.finditer(text):
        start, end = cluster.span()
        whole = shortest(cluster.group()) if len(cluster.group().encode()) < 6 else None
        if whole is not None:
            yield start, end, whole
            continue
        for at in range(start, end):
            if (replacement := shortest(text[at])) is not None:
                yield at, at + 1, replacement


def _spaces(text: str, step: Spaces, first: bool, kept: Kept) -> Iterator[Edit]:
    """Only the start of the whole text loses its spaces and gets a dummy one; a later part keeps one. What is kept has
    its own still, but for those that follow a space."""
    mark = SPACE if step.escape else " "
    start, end = 0, len(text)
    if step.remove_extra:
        end = len(text.rstrip(" " + mark))
        start = len(text) - len(text.lstrip(" ")) if first else 0
        if start >= end:  # nothing but spaces; where a text ends with one, a "▁" that was written is one
            ends = first and step.suffix and step.dummy_prefix and (start < len(text) or not text or kept.get(0, 1) > 1)
            yield 0, len(text), mark if ends else ""
            return
    dummy = step.dummy_prefix and first and not step.suffix
    if start:
        yield 0, start, ""
    if dummy:
        yield start, start, mark
    if step.remove_extra and any("  " in text[left:right] for left, right in kept.items()):
        yield from _kept_spaces(text, start, end, mark, kept)
    else:
        for run in regex.finditer(" +" if step.remove_extra else " ", text, pos=start, endpos=end):
            yield run.start(), run.end(), mark
    if step.suffix and step.dummy_prefix:
        yield end, len(text), mark
    elif end < len(text):
        yield end, len(text), ""


def _kept_spaces(text: str, start: int, end: int, mark: str, kept: Kept) -> Iterator[Edit]:
    at, after_space = start, False
    while at < end:
        stop = min(kept.get(at, at + 1), end)
        for place in range(at, stop):
            if text[place] == " ":
                yield place, place + 1, "" if after_space else mark
            else:
                after_space = False
        after_space = text[stop - 1] == " "
        at = stop


def _white_space(text: str) -> Iterator[Edit]:
    for word in regex.finditer(r"(\s*)(\S|$)", text):
        start, end = word.span(1)
        if start < end or not start:
            mark = SPACE if word.group(2) not in ("", SPACE) else ""
            yield start, end, mark


def _runs(text: str, step: ReplaceSpaces) -> Iterator[Edit]:
    if step.at == "anywhere":
        return ((run.start(), run.end(), step.new) for run in regex.finditer(" {2,}", text))
    start = len(text.rstrip(" " + SPACE)) if step.at == "end" else 0
    end = len(text) - len(text.lstrip(" ")) if step.at == "start" else len(text)
    return iter([(start, end, step.new)] if start < end else [])


# Unicode's White_Space: str.strip would also take U+001C to U+001F, which tokenizers keeps.
_WHITE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


def _strip(text: str, step: Strip) -> Iterator[Edit]:
    left = len(text) - len(text.lstrip(_WHITE)) if step.left else 0
    right = max(len(text.rstrip(_WHITE)), left) if step.right else len(text)
    return iter([edit for edit in ((0, left, ""), (right, len(text), "")) if edit[0] < edit[1]])


def _normal_form(form: Literal["NFC", "NFD", "NFKC", "NFKD"], text: str) -> Iterator[Edit]:
    for run in _RUN.finditer(text):
        normal = unicodedata.normalize(form, run.group())
        if normal != run.group():
            yield run.start(), run.end(), normal


def _lower(text: str) -> Iterator[Edit]:
    """Character by character, as tokenizers does it: a final sigma is not special."""
    return ((at, at + 1, lower) for at, character in enumerate(text) if (lower := lowered(character)) != character)


def _strip_accents(text: str) -> Iterator[Edit]:
    """Remove combining marks; they are characters of their own only after nfd or nfkd."""
    return ((at, at + 1, "") for at, character in enumerate(text) if unicodedata.category(character) in _MARKS)


_NMT = dict.fromkeys([*range(0x01, 0x09), 0x0B, *range(0x0E, 0x20), 0x7F, 0x8F, 0x9F], "") | dict.fromkeys(
    map(ord, "\t\n\f\r\u1680\u200b\u200c\u200d\u200e\u200f\u2028\u2029\u2581\ufeff\ufffd"), " "
)


def _nmt(text: str) -> Iterator[Edit]:
    """The step `Nmt` of tokenizers: white space and invisible marks become spaces, control characters vanish."""
    return ((at, at + 1, _NMT[ord(character)]) for at, character in enumerate(text) if ord(character) in _NMT)


_NORMAL_FORMS: dict[str, Literal["NFC", "NFD", "NFKC", "NFKD"]] = {
    "nfc": "NFC",
    "nfd": "NFD",
    "nfkc": "NFKC",
    "nfkd": "NFKD",
}
FORMS: dict[str, Callable[[str], Iterator[Edit]]] = {
    **{name: partial(_normal_form, form) for name, form in _NORMAL_FORMS.items()},
    "lower": _lower,
    "strip_accents": _strip_accents,
    "nmt": _nmt,
}
