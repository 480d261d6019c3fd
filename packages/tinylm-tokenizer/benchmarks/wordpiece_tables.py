"""Write src/tinylm/tokenizer/_text/wordpiece_tables.py: which characters Hugging Face's BERT normaliser takes for what.

Its tables are older than any Python's (categories of Unicode 8, decompositions of Unicode 9, lower case of Unicode 17),
and ids must be the same on every Python. So each character is put to the reference, and the answers are kept as ranges.

    python packages/tinylm-tokenizer/benchmarks/wordpiece_tables.py        (needs: pip install tokenizers==0.23.3)
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path

from tokenizers.normalizers import NFD, BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

TARGET = Path(__file__).parents[1] / "src" / "tinylm" / "tokenizer" / "_text" / "wordpiece_tables.py"
CHARACTERS = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
OFF = dict.fromkeys(("clean_text", "handle_chinese_chars", "strip_accents", "lowercase"), False)

HEADER = '''"""Which characters BERT's basic tokenisation takes for what: ranges of code points, both ends included.

Made by benchmarks/wordpiece_tables.py from tokenizers 0.23.3, whose tables are older than Python's: categories are of
Unicode 8, decompositions of Unicode 9. Holds no logic: `_text/wordpiece_text.py` reads it. Do not edit.
"""

'''


def ranges(characters: Iterable[str]) -> list[str]:
    """ "1D165-1D166" and the like."""
    found: list[list[int]] = []
    for code in sorted(map(ord, characters)):
        if found and found[-1][1] == code - 1:
            found[-1][1] = code
        else:
            found.append([code, code])
    return [f"{first:X}-{last:X}" if last > first else f"{first:X}" for first, last in found]


def written(name: str, comment: str, items: list[str]) -> str:
    """One constant: a string of items, in lines of readable length."""
    lines = [""]
    for item in items:
        if len(lines[-1]) + len(item) > 118:
            lines.append("")
        lines[-1] += f" {item}" if lines[-1] else item
    body = "\n".join(lines)
    return f'# {comment}\n{name} = """\n{body}\n"""\n'


def main() -> None:
    """Ask the reference about every character."""
    clean = BertNormalizer(**{**OFF, "clean_text": True}).normalize_str
    strip = BertNormalizer(**{**OFF, "strip_accents": True}).normalize_str
    lower = BertNormalizer(**{**OFF, "lowercase": True}).normalize_str
    decompose, cut = NFD().normalize_str, BertPreTokenizer().pre_tokenize_str

    nonspacing = {c for c in CHARACTERS if strip(c) == ""}
    low, high = "x\u0334", "x\u0345"  # of the lowest and the highest combining class: what is reordered meets one

    def reordered(c: str) -> bool:
        return decompose(f"x{c}\u0334") == low + c or decompose(high + c) == f"x{c}\u0345"

    classes = {c: unicodedata.combining(c) for c in CHARACTERS if unicodedata.combining(c) and c not in nonspacing}
    kept = [f"{ord(c):X}:{number}" for c, number in classes.items() if reordered(c)]
    newer = [f"{ord(c):X}:{ord(lower(c)):X}" for c in CHARACTERS if lower(c) != c.lower()]
    removed = [c for c in CHARACTERS if not clean(c) and c not in "\0\ufffd"]
    decomposed = [c for c in CHARACTERS if decompose(c) != c]
    constants = [
        written("CONTROL", "Removed from a text, beside U+0000 and U+FFFD.", ranges(removed)),
        written("SPACES", "Ends a word.", ranges(c for c in CHARACTERS if len(cut(f"a{c}b")) == 2)),
        written("PUNCTUATION", "A word of its own.", ranges(c for c in CHARACTERS if len(cut(f"a{c}b")) == 3)),
        written("NONSPACING", "Accents: removed after decomposition.", ranges(nonspacing)),
        written("DECOMPOSES", "Has a canonical decomposition (Hangul syllables too).", ranges(decomposed)),
        written("REORDERED", "No accent, but sorted by its canonical combining class, which follows the colon.", kept),
        written("LOWER", "Lower case that Python 3.11 does not know yet.", newer),
    ]  # fmt: skip
    TARGET.write_text(HEADER + "\n".join(constants), encoding="utf-8")


if __name__ == "__main__":
    main()
