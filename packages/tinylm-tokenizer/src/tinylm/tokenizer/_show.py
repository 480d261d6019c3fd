"""What `tinylm-tokenizer inspect` prints: a text in its tokens, and a table of several tokenizers on several texts.

Returns lines of text, coloured by ANSI sequences where asked. Does not print and does not read files (`cli.py` does).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from tinylm.tokenizer.tokenizer import Tokenizer

_BACKGROUNDS = (106, 103, 102, 105)  # bright cyan, yellow, green, magenta: black letters on them can be read
_LETTERS = (36, 33, 32, 35)


def _painted(text: str, code: str, colour: bool) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if colour else text


def visible(token: bytes) -> str:
    r"""A token as text on one line: what cannot be shown becomes an escape ("\n", "\xe6" for a part of a character)."""
    text = token.decode("utf-8", errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def tokens(tokenizer: Tokenizer, text: str, colour: bool) -> list[str]:
    """The text with a colour (or a bar) at each token, the ids in the same colours, and the average."""
    ids = tokenizer.encode(text)
    shown, numbers = [], []
    for id, background, letters in zip(ids, cycle(_BACKGROUNDS), cycle(_LETTERS), strict=False):
        token = tokenizer.id_to_bytes(id)
        line_end = "\n" if b"\n" in token else ""
        bar = "" if colour or line_end else "|"
        shown.append(_painted(visible(token), f"30;{background}", colour) + bar + line_end)
        numbers.append(_painted(str(id), str(letters), colour))
    return [*"".join(shown).split("\n"), " ".join(numbers), average(text, len(ids))]


def average(text: str, count: int) -> str:
    size = len(text.encode("utf-8", errors="surrogatepass"))
    ratio = f"{size / count:.2f} bytes per token" if count else "no tokens"
    return f"{len(text)} characters, {size} bytes, {count} tokens: {ratio}"


def each(tokenizer: Tokenizer, text: str, colour: bool) -> list[str]:
    """One line for each token: its id, how many bytes it has, and what it is."""
    ids = tokenizer.encode(text)
    width = max((len(str(id)) for id in ids), default=2)
    lines = [f"{'id':>{width}}  bytes  token"]
    for id, background in zip(ids, cycle(_BACKGROUNDS), strict=False):
        token = tokenizer.id_to_bytes(id)
        shown = _painted(visible(token), f"30;{background}", True) if colour else f'"{visible(token)}"'
        lines.append(f"{id:>{width}}  {len(token):>5}  {shown}")
    return [*lines, average(text, len(ids))]


def names_of(paths: Sequence[Path]) -> list[str]:
    """A short name for each tokenizer: its folder's or its file's; the whole path where these are not different."""
    short = [
        path.stem if path.stem not in ("tokenizer", "vocab", "merges") else path.resolve().parent.name for path in paths
    ]
    return short if len(set(short)) == len(short) else [str(path) for path in paths]


def comparison(
    tokenizers: Sequence[Tokenizer],
    names: Sequence[str],
    texts: Sequence[str],
    titles: Sequence[str],
    colour: bool,
    columns: int | None = None,
) -> list[str]:
    """A table: for each text and tokenizer the tokens and the bytes per token; the fewest tokens in bold green.

    columns: of the terminal; a table that would be wider becomes one line for each text and tokenizer.
    """
    counts = [[tokenizer.count(text) for tokenizer in tokenizers] for text in texts]
    sizes = [len(text.encode()) for text in texts]
    if len(texts) > 1:
        counts.append([sum(column) for column in zip(*counts, strict=True)])
        sizes.append(sum(sizes))
        titles = [*titles, "together"]
    cells = [
        [f"{count:,} · {size / count:.2f}" if count else "0 · –" for count in row]
        for row, size in zip(counts, sizes, strict=True)
    ]
    first = max(map(len, ["text", *titles]))
    second = max(len("bytes"), *(len(f"{size:,}") for size in sizes))
    widths = [max(map(len, [name, *column])) for name, *column in zip(names, *cells, strict=True)]
    if columns is not None and first + second + 4 + sum(widths) + 2 * len(widths) - 2 > columns:
        headings = [f"{title}, {size:,} bytes" for title, size in zip(titles, sizes, strict=True)]
        return _stacked(names, cells, counts, headings, colour)
    heading = "  ".join(f"{name:>{width}}" for name, width in zip(names, widths, strict=True))
    lines = ["tokens · bytes per token", f"{'text':{first}}  {'bytes':>{second}}  {heading}"]
    for title, size, row, row_counts in zip(titles, sizes, cells, counts, strict=True):
        painted = [
            _painted(f"{cell:>{width}}", "1;32", colour and count == min(row_counts))
            for cell, width, count in zip(row, widths, row_counts, strict=True)
        ]
        lines.append(f"{title:{first}}  {size:>{second},}  {'  '.join(painted)}")
    return lines


def _stacked(
    names: Sequence[str], cells: list[list[str]], counts: list[list[int]], titles: Sequence[str], colour: bool
) -> list[str]:
    """The same table for a narrow terminal: under each text a line for each tokenizer."""
    name_width, width = max(map(len, names)), max(len(cell) for row in cells for cell in row)
    lines = ["tokens · bytes per token"]
    for title, row, row_counts in zip(titles, cells, counts, strict=True):
        lines.append(title)
        for name, cell, count in zip(names, row, row_counts, strict=True):
            painted = _painted(f"{cell:>{width}}", "1;32", colour and count == min(row_counts))
            lines.append(f"  {name:{name_width}}  {painted}")
    return lines
