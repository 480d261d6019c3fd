"""tinylm-obs · tables on the terminal. The only file beside cli.py that imports rich. It does NOT read or measure."""

import sys
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from . import _summary as words
from ._readers import read_alerts, read_metrics, read_run
from ._values import visible
from .tables import cell


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


def print_table(
    columns: list[str], rows: list[list[str]], numbers: range = range(0), spare: Sequence[str] = ()
) -> None:
    """A table as wide as the terminal; elsewhere as wide as it needs. `spare`: columns, the dearest first, that are
    left out, with a line that names them, where the terminal has no room."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    columns, rows = [*map(visible, columns)], [[*map(visible, row)] for row in rows]
    console = Console(width=None if sys.stdout.isatty() else 1000)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=bool(spare))
    shown = _fitting(columns, rows, spare, console.width)
    for index in shown:
        table.add_column(Text(columns[index]), justify="right" if index in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(row[index]) for index in shown))
    console.print(table)
    if len(shown) < len(columns):
        print(f"A wider terminal also shows: {', '.join(name for name in spare if columns.index(name) not in shown)}")


def _fitting(columns: list[str], rows: list[list[str]], spare: Sequence[str], width: int) -> list[int]:
    """The places of the columns that `width` characters have room for: first those that are not spare."""
    from rich.cells import cell_len

    sizes = [min(30, max(map(cell_len, cells))) + 2 for cells in zip(columns, *rows, strict=True)]  # longer ones fold
    shown = {index for index, name in enumerate(columns) if name not in spare}
    for index in map(columns.index, spare):
        if sum(sizes[one] for one in shown | {index}) <= width:
            shown.add(index)
    return sorted(shown)


def print_comparison(paths: Sequence[Path], names: Sequence[str]) -> None:
    """Runs side by side: what differs in their configurations, their metrics, alerts, and what seeds explain. `names`
    are used where two runs have the same name."""
    records, metrics = [read_run(path) for path in paths], [read_metrics(path) for path in paths]
    labels = [record["name"] for record in records]
    if len(set(labels)) < len(labels):
        labels = list(names)
    changed = words.differences([record["config"] for record in records])
    if changed:
        print_table(["configuration", *labels], [[name, *map(_config_cell, values)] for name, values in changed])
    else:
        print("The configurations are equal.")
    rows = [["status", *(record["status"] for record in records)]]
    rows.append(["last step", *(str(each[-1]["step"]) if each else "–" for each in metrics)])
    alerts = [read_alerts(path) for path in paths]
    if any(alerts):
        side_by_side = zip_longest(*(map(words.alert_line, each) if each else ["–"] for each in alerts), fillvalue="")
        rows += [["" if number else "alerts", *line] for number, line in enumerate(side_by_side)]
    curves = {name: [words.series(each, name) for each in metrics] for name in words.metric_names(metrics)}
    curves = {name: lines for name, lines in curves.items() if "/" not in name}  # per layer: hundreds; export has them
    for name, lines in curves.items():
        rows.append(
            [name, *(f"{cell(line[-1])} (lowest {cell(words.lowest(line))})" if line else "–" for line in lines)]
        )
        if name.endswith("loss"):
            rows.append(["", *map(words.sparkline, lines)])
    print_table(["metric, last", *labels], rows)
    tested = words.significance([record["config"] for record in records], curves)
    if tested:
        sizes = [", ".join(labels[index] for index in group) for group in words.groups([r["config"] for r in records])]
        seeds = [
            [name, *(f"{cell(mean)} ± {cell(deviation)}" for mean, deviation in spread), cell(p)]
            for name, spread, p in tested
        ]
        print_table(["over seeds: mean ± deviation", *sizes, "p (Welch's t-test)"], seeds)


def _config_cell(value: object) -> str:
    return "–" if value is None else str(value)
