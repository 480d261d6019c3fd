"""tinylm-obs · tables on the terminal. The only file beside cli.py that imports rich. It does NOT read or measure."""

import sys
from typing import Any


def print_ladders(table: dict[str, Any]) -> None:
    """One table per ladder; what changed and why stands below it, a line per rung."""
    from .climb import COLUMNS
    from .tables import cells, origin

    columns = [column for column in COLUMNS if column not in ("ladder", "what changed", "hotspots of the rung below")]
    for name in dict.fromkeys(row["ladder"] for row in table["rows"]):
        rows = [row for row in table["rows"] if row["ladder"] == name]
        print(f"\n{name}")
        print_table(columns, cells({"columns": columns, "rows": rows}), numbers=range(1, len(columns)))
        for row in rows:
            print(f"  {row['rung']}: {row['what changed']}")
            if row["hotspots of the rung below"]:
                print(f"    because the time below went to: {row['hotspots of the rung below']}")
    print(f"\n{origin(table)}")


def print_table(columns: list[str], rows: list[list[str]], numbers: range = range(0)) -> None:
    """A table as wide as the terminal; elsewhere as wide as it needs."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 1000)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(Text(column), justify="right" if index in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
