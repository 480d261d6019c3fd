"""tinylm-obs · a ladder as a picture: one bar per rung, its throughput on a logarithmic scale, each on its own work.

The ratio beside a bar is to the rung that it equals, on the same work: where a rung's own work is larger (attention
takes the square of it), the bars alone do not tell.

SVG text without a library. It does NOT measure (`climb.py`). Next: `_svg.py`.
"""

import re
from collections.abc import Mapping
from typing import Any

from ._errors import ObservabilityError
from ._svg import bars, number

_WIDTH, _GAP = 860, 18


def ladders(table: Mapping[str, Any]) -> str:
    """The ladders of a table that `tinylm-obs ladder --json` wrote, one below the other. Raises ObservabilityError for
    a table of something else."""
    rows = [row for row in table["rows"] if isinstance(row, dict) and "per second" in row and "ladder" in row]
    if not rows:
        raise ObservabilityError(
            "wanted the rows of a ladder to draw, got none; `tinylm-obs ladder --json FILE` writes them"
        )
    drawn, top = [], 0
    for name in dict.fromkeys(row["ladder"] for row in rows):
        chart = bars([_bar(row) for row in rows if row["ladder"] == name], f"{name} · {_unit(rows, name)}", _WIDTH)
        height = int(re.findall(r'viewBox="0 0 \d+ (\d+)"', chart)[0])
        drawn.append(chart.replace("<svg ", f'<svg y="{top}" width="{_WIDTH}" height="{height}" ', 1))
        top += height + _GAP
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top}">' + "".join(drawn) + "</svg>\n"


def _bar(row: Mapping[str, Any]) -> tuple[str, float, str]:
    gained = row.get("× rung below")
    beside = number(row["per second"]) + (f" · {number(gained)} ×" if gained else "")
    return row["rung"], row["per second"], beside


def _unit(rows: list[dict[str, Any]], ladder: str) -> str:
    return next(f"{row['unit']} a second · times its lower rung" for row in rows if row["ladder"] == ladder)
