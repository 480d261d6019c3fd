"""Writes the Unicode table that cutting text into pieces needs: `unicode_runs.hpp` here and `_text/unicode_runs.py` in
the package, the same runs for C++ and for Python.

    pip install regex==2024.11.6 && python packages/tinylm-tokenizer/src/kernels/unicode_runs.py

The ids of a tokenizer depend on which characters count as letters, so the table is pinned: to Unicode 16.0, which is
what tiktoken 0.14 has; `regex` 2024.11.6 has the same. It is a list of runs: how many code points, and their class

    U  upper and title case letters (Lu, Lt)    l  lower case letters (Ll)    o  other letters (Lm, Lo)
    M  marks    N  numbers    s  white space (White_Space)    -  everything else

in the order of the code points, from 0 to 0x10FFFF. No pattern of `patterns.py` tells apart more than that.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import regex

WANTED = "2024.11.6"
LETTERS = {"U": r"\p{Lu}\p{Lt}", "l": r"\p{Ll}", "o": r"\p{Lm}\p{Lo}", "M": r"\p{M}", "N": r"\p{N}", "s": r"\s"}
TITLE = "Unicode 16.0: code points in order as runs, length and class. Made by unicode_runs.py, which says more."


def runs() -> str:
    """All code points as one string of lengths and class letters."""
    classes = ["-"] * 0x110000
    everything = "".join(map(chr, range(0x110000)))
    for letter, members in LETTERS.items():
        for found in regex.finditer(f"[{members}]+", everything):
            classes[found.start() : found.end()] = letter * (found.end() - found.start())
    return "".join(f"{sum(1 for _ in group)}{letter}" for letter, group in itertools.groupby(classes))


def main() -> None:
    from importlib.metadata import version

    if version("regex") != WANTED:
        raise SystemExit(f"wanted regex {WANTED}, which has the tables of Unicode 16.0; this is {version('regex')}")
    lines = re.findall(r"(?:\d+.){1,28}", runs())
    here = Path(__file__).parent
    body = "\n".join(f'    "{line}"' for line in lines)
    header = (
        f"// {TITLE}\n#pragma once\n\nnamespace tinylm {{\n\ninline constexpr char kUnicodeRuns[] =\n{body};\n\n}}\n"
    )
    (here / "unicode_runs.hpp").write_text(header)
    module = f'"""{TITLE}"""\n\nRUNS = (\n{body}\n)\n'
    (here.parent / "tinylm" / "tokenizer" / "_text" / "unicode_runs.py").write_text(module)


if __name__ == "__main__":
    main()
