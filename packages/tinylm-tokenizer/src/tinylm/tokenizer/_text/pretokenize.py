"""Cut text into pieces with the patterns of `patterns.py`. Does not merge anything: that is the rungs' work.

The ids of a tokenizer depend on which characters count as letters and numbers, and every Unicode version and so every
version of `regex` knows more of them. So the classes are pinned here to Unicode 16.0 (`unicode_runs.py`), the version
of tiktoken 0.14: where the installed `regex` has another one, its classes are corrected by the difference.

Used by every Python rung of byte-level BPE; `src/kernels/scan.hpp` does the same in C++. Next: `byte_bpe.py`.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING

from tinylm.tokenizer._errors import TokenizerError
from tinylm.tokenizer.patterns import PATTERNS

if TYPE_CHECKING:
    import regex

# Unicode class → the letters that its members have in `unicode_runs.py`. \s is the same in every version.
_LETTERS = {
    r"\p{Lu}\p{Lt}": "U",
    r"\p{Ll}": "l",
    r"\p{Lm}\p{Lo}": "o",
    r"\p{L}": "Ulo",
    r"\p{M}": "M",
    r"\p{N}": "N",
}


@cache
def compiled(name: str, pinned: bool = True) -> regex.Pattern[str]:
    """The compiled pattern called `name`, with the classes pinned or as the installed `regex` has them, which is a
    third quicker. Errors: TokenizerError for an unknown name."""
    import regex

    if name not in PATTERNS:
        raise TokenizerError(f"unknown pattern {name!r}: choose one of {', '.join(sorted(PATTERNS))}")
    pattern = PATTERNS[name]
    for unicode_class in _LETTERS if pinned else ():
        if unicode_class in pattern:
            pattern = pattern.replace(unicode_class, _pinned(unicode_class))
    return regex.compile(pattern, regex.VERSION1)  # version 1: sets in sets, and "--" for their difference


def _pattern_for(name: str, text: str) -> regex.Pattern[str]:
    """The quickest pattern that cuts `text` as the pinned one does: nearly every text has no character that differs."""
    if text.isascii():
        return compiled(name, pinned=False)
    suspects, differing = _differing_characters(name)
    return compiled(name, any(found[0] in differing for found in suspects.finditer(text)))


@cache
def _differing_characters(name: str) -> tuple[re.Pattern[str], set[str]]:
    """The characters whose class is another one in the installed `regex`, and what finds them and some more: all beyond
    U+FFFF, for a set of runs there is looked through one by one."""
    classes = [unicode_class for unicode_class in _LETTERS if unicode_class in PATTERNS[name]]
    differing = {code for unicode_class in classes for codes in _difference(unicode_class) for code in codes}
    near = _members({code for code in differing if code < 0x10000})
    return re.compile(f"[{near}\U00010000-\U0010ffff]"), set(map(chr, differing))


@cache
def _difference(unicode_class: str) -> tuple[set[int], set[int]]:
    """What the installed `regex` has in `unicode_class` beyond Unicode 16.0, and what it lacks."""
    import regex

    runs = {run.span() for run in regex.finditer(f"[{unicode_class}]+", _everything())}
    pinned = set(_runs(_LETTERS[unicode_class]))
    installed, wanted = ({code for run in which for code in range(*run)} for which in (runs - pinned, pinned - runs))
    return installed - wanted, wanted - installed


@cache
def _pinned(unicode_class: str) -> str:
    """`unicode_class` as it is in Unicode 16.0, in the language of the installed `regex`: a set or the class itself."""
    beyond, lacking = _difference(unicode_class)
    if not beyond and not lacking:
        return f"[{unicode_class}]"
    corrected = f"[{unicode_class}--[{_members(beyond)}]]" if beyond else unicode_class
    runs = sorted(_runs(_LETTERS[unicode_class]))
    ascii_first = "".join(f"{chr(start)}-{chr(stop - 1)}" for start, stop in runs if stop < 128)
    return f"[{ascii_first}{corrected}{_members(lacking)}]"


@cache
def _everything() -> str:
    return "".join(map(chr, range(0x110000)))


def _runs(letters: str) -> Iterator[tuple[int, int]]:
    """The runs of code points that have one of these letters, as (start, stop); neighbours are one run."""
    from tinylm.tokenizer._text.unicode_runs import RUNS

    lengths = ((int(length), letter in letters) for length, letter in re.findall(r"(\d+)(.)", RUNS))
    start = 0
    for inside, group in itertools.groupby(lengths, lambda run: run[1]):
        stop = start + sum(length for length, _ in group)
        if inside:
            yield start, stop
        start = stop


def _members(codes: set[int]) -> str:
    """A set of code points as what stands between the brackets of a regular expression."""
    runs = itertools.groupby(enumerate(sorted(codes)), lambda item: item[1] - item[0])
    ends = [(run[0][1], run[-1][1]) for run in (list(members) for _, members in runs)]
    return "".join(rf"\U{first:08x}-\U{last:08x}" for first, last in ends)


def split(text: str, stages: tuple[str, ...]) -> list[str]:
    """The pieces of `text`, in order; `"".join(split(text, stages)) == text`. Each stage cuts the last one's pieces."""
    words = _pattern_for(stages[-1], text)
    if len(stages) == 1:
        return words.findall(text)
    digits = _pattern_for(stages[0], text)
    ends = itertools.chain((number.span() for number in digits.finditer(text)), [(len(text), len(text))])
    pieces, start = [], 0
    for first, end in ends:
        pieces += words.findall(text[start:first])
        if end > first:
            pieces.append(text[first:end])
        start = end
    return pieces


def count_pieces(texts: Iterable[str], stages: tuple[str, ...]) -> Counter[str]:
    """How often each piece occurs in all `texts`: training needs to see each distinct piece only once."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(split(text, stages))
    return counts
