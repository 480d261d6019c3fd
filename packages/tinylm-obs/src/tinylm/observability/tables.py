"""tinylm-obs · results in JSON → tables in Markdown.

One schema for every measured table of the project (ladders and benchmarks):

    {"format": 1, "title": "...", "command": "...", "machine": {...}, "versions": {...}, "date": "2026-11-22",
     "columns": ["rung", "time (s)"], "rows": [{"rung": "naive", "time (s)": 1.5}, ["fast", 0.2]]}

A row is a list in the order of `columns`, or an object (what it holds beyond the columns is kept in the file, not
shown). A document says `<!-- table: FILE -->` and `<!-- /table -->`, each alone on a line, FILE relative to the
document:

    python -m tinylm.observability.tables README.md            renders what stands between them
    python -m tinylm.observability.tables --check README.md    exits 1 and names the blocks that are stale

A part of a table: `<!-- table: FILE | rows: loops; blocks, torch | columns: rung; time (s) -->` shows the rows that
have a cell of one of these texts, and these columns, in this order; either may be left out.

It does NOT measure (`climb.py`, `timing.py`) and does NOT print to a terminal (`cli.py`).
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ._atomic import write_text
from ._errors import ObservabilityError
from ._facts import counted, machine, now, versions
from ._readers import FORMAT, check_format

_BLOCK = re.compile(r"^<!-- table: (?P<file>.+?) -->\n(?P<body>.*?)^<!-- /table -->$", re.MULTILINE | re.DOTALL)
_OPENING = re.compile(r"^<!-- table: .+ -->$", re.MULTILINE)


def new_table(title: str, command: str, columns: Sequence[str], rows: Sequence[object]) -> dict[str, Any]:
    """A table in the schema above with this machine, the versions in use and today's date filled in.

    command: what a reader types to measure again; no paths of this machine.
    """
    facts = {"machine": machine(), "versions": versions(), "date": now()[:10]}
    return {"format": FORMAT, "title": title, "command": command, **facts, "columns": list(columns), "rows": list(rows)}


def write_table(table: dict[str, Any], path: Path) -> None:
    """Check a table and write it as JSON, whole or not at all."""
    cells(table, path)
    write_text(path, json.dumps(table, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_table(path: Path) -> dict[str, Any]:
    """Read and check a table. Raises ObservabilityError when it is missing, not JSON, of a higher format or
    misshapen.
    """
    try:
        table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ObservabilityError(
            f"wanted a table at {path}, got no file; measure it, or mend the block's name"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ObservabilityError(f"wanted JSON at {path}, got {error}") from error
    check_format(table, path)
    cells(table, path)
    return table


def cells(table: dict[str, Any], path: Path | str = "the table") -> list[list[str]]:
    """The rows as text, one list per row in the order of the columns; checks the table on the way."""
    columns, rows = table.get("columns"), table.get("rows")
    if not isinstance(columns, list) or not columns or not all(isinstance(column, str) for column in columns):
        raise ObservabilityError(f'wanted "columns", a list of names, in {path}, got {columns!r}')
    if not isinstance(rows, list):
        raise ObservabilityError(f'wanted "rows", a list, in {path}, got {type(rows).__name__}')
    texts = []
    for number, row in enumerate(rows):
        if isinstance(row, dict):
            row = [row.get(column) for column in columns]
        if not isinstance(row, list) or len(row) != len(columns):
            raise ObservabilityError(f"wanted {len(columns)} cells in row {number} of {path}, got {row!r}")
        texts.append([cell(value) for value in row])
    return texts


def cell(value: object) -> str:
    """One value as a reader wants it: three significant digits, thousands apart, – for nothing."""
    if value is None:
        return "–"
    if isinstance(value, float):
        if value == 0 or abs(value) >= 1000:
            return f"{value:,.0f}"
        return f"{value:.3g}" if abs(value) >= 0.0001 else f"{value:.1e}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def select(table: dict[str, Any], choices: Sequence[str]) -> dict[str, Any]:
    """A part of a table. choices: "rows: TEXT; TEXT" and "columns: NAME; NAME". Raises ObservabilityError for another
    word, and for a text or a name that the table does not have."""
    columns, rows = table["columns"], cells(table)
    for choice in choices:
        kind, _, names = choice.partition(": ")
        wanted = names.split("; ")
        have = {"rows": {text for row in rows for text in row}, "columns": {*table["columns"]}}.get(kind)
        if have is None:
            raise ObservabilityError(f"wanted `rows: ...` or `columns: ...` after a table's file, got {choice!r}")
        if missing := [name for name in wanted if name not in have]:
            raise ObservabilityError(f"wanted {kind} of {table.get('title')!r}, got {missing[0]!r}, which is not there")
        if kind == "rows":
            rows = [row for row in rows if not {*wanted}.isdisjoint(row)]
        else:
            columns = wanted
    places = [table["columns"].index(name) for name in columns]
    return {**table, "columns": columns, "rows": [[row[place] for place in places] for row in rows]}


def markdown(table: dict[str, Any]) -> str:
    """The table in Markdown, and a line below that says where its figures come from."""
    lines = [_line(table["columns"]), _line(["---"] * len(table["columns"])), *map(_line, cells(table))]
    return "\n".join([*lines, "", origin(table)]) + "\n"


def origin(table: dict[str, Any]) -> str:
    """One line: command, machine, versions, date."""
    facts = table.get("machine") or {}
    on = f"{facts.get('cpu', 'unknown CPU')}, {counted(facts.get('cores', '?'), 'core')}"
    on += "".join(f", {gpu.get('name')}" for gpu in facts.get("gpus", []))
    used = ", ".join(f"{name} {version}" for name, version in (table.get("versions") or {}).items())
    return f"`{table.get('command')}` · {on} · {used} · {table.get('date')}"


def render(document: Path) -> tuple[str, list[str]]:
    """The document with every block rendered anew, and the names of the blocks that were stale."""
    try:
        text = document.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ObservabilityError(f"wanted a Markdown file at {document}, got {error}") from error
    stale: list[str] = []

    def block(match: re.Match[str]) -> str:
        file, *choices = match["file"].split(" | ")
        table = read_table(document.parent / file)
        body = "\n" + markdown(select(table, choices) if choices else table) + "\n"
        if body != match["body"]:
            stale.append(match["file"])
        return f"<!-- table: {match['file']} -->\n{body}<!-- /table -->"

    rendered, count = _BLOCK.subn(block, text)
    if count != len(_OPENING.findall(text)):
        raise ObservabilityError(
            f"wanted <!-- /table --> after each <!-- table: FILE --> in {document}; close the block"
        )
    return rendered, stale


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m tinylm.observability.tables [--check] FILE...`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tinylm.observability.tables",
        description="Render the tables of Markdown files from JSON results.",
    )
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit 1 and name the blocks that are stale"
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="Markdown files")
    options = parser.parse_args(arguments)
    code = 0
    for document in options.files:
        try:
            text, stale = render(document)
            if stale and not options.check:
                write_text(document, text)
        except ObservabilityError as error:
            print(f"error: {error}", file=sys.stderr)
            code = 1
            continue
        for name in stale:
            print(f"{document}: {'stale' if options.check else 'rendered'}: {name}")
        code = 1 if stale and options.check else code
    return code


def _line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(map(_plain, texts)) + " |"


def _plain(text: str) -> str:
    """Markdown that shows the text as it is: `__mul__` is not bold, `<listcomp>` no element, `|` ends no cell."""
    text = text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)


if __name__ == "__main__":
    sys.exit(main())
