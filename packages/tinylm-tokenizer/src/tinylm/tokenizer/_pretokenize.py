"""Cut text into pieces with the patterns of `patterns.py`. Does not merge anything: that is the rungs' work.

Used by every byte-level rung. Next: `byte_bpe.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cache

import regex

from tinylm.tokenizer._errors import TokenizerError
from tinylm.tokenizer.patterns import PATTERNS


@cache
def compiled(name: str) -> regex.Pattern[str]:
    """The compiled pattern called `name`."""
    if name not in PATTERNS:
        raise TokenizerError(f"unknown pattern {name!r}: choose one of {', '.join(sorted(PATTERNS))}")
    return regex.compile(PATTERNS[name])


def split(text: str, stages: tuple[str, ...]) -> list[str]:
    """The pieces of `text`, in order; `"".join(split(text, stages)) == text`. Each stage cuts the last one's pieces."""
    if stages == ("digits", "gpt2"):
        parts = [part for part in regex.splititer(rf"({PATTERNS['digits']})", text) if part]
        return [piece for part in parts for piece in compiled("gpt2").findall(part)]
    (name,) = stages
    return compiled(name).findall(text)


def count_pieces(texts: Iterable[str], stages: tuple[str, ...]) -> Counter[str]:
    """How often each piece occurs in all `texts`: training needs to see each distinct piece only once."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(split(text, stages))
    return counts
