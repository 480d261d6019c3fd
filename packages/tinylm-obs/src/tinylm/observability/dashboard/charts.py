"""tinylm-obs · numbers → ECharts' options: lines, heat maps, bars, a roofline. Plain dictionaries.

Text and grid are greys that read on light and on dark; the rest of the page's colours are CSS variables (`style.css`).
A key that begins with ":" is JavaScript of ours. It does NOT reduce points (`reduce.py`) and does NOT import NiceGUI.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from .._svg import COLOURS as _FIRST
from .._values import is_finite
from .histograms import Ridge
from .layers import Heat

Options = dict[str, Any]
COLOURS = (*_FIRST, "#c9a227", "#8b93a1")
ALARM = "#e5484d"
_GREY, _GRID = "#808794", "rgba(128,135,148,0.18)"
_HEAT = ["#2d2a55", "#3b528b", "#21918c", "#5ec962", "#fde725"]  # dark to light; viridis, van der Walt and Smith 2015
_FULL = ["rgba(66,105,208,0.1)", "rgba(66,105,208,1)"]  # from hardly anything to all, on light and on dark
_NUMBER = (
    "v => { if (v === null || v === undefined || isNaN(v)) return '–'; const a = Math.abs(v); if (a === 0) return '0';"
    " for (const [s, l] of [[1e12, 'T'], [1e9, 'G'], [1e6, 'M'], [1e3, 'k']])"
    " if (a >= s) return +(v / s).toPrecision(4) + ' ' + l;"
    " return a < 1e-3 ? (+v).toExponential(2) : '' + +(+v).toPrecision(5); }"
)
_SECONDS = (
    "v => { const s = Math.round(v), two = n => ('' + n).padStart(2, '0');"
    " return Math.floor(s / 3600) + ':' + two(Math.floor(s / 60) % 60) + ':' + two(s % 60); }"
)


@dataclass
class Line:
    """One line: (x, y) points, how it looks, and the steps of its alerts in x."""

    name: str
    colour: str
    points: list[tuple[float, float]]
    faint: bool = False
    marks: list[tuple[float, str]] = field(default_factory=list)


def short(value: float) -> float:
    """Five significant digits: what a chart shows of a number, and half of the text to send."""
    return float(f"{value:.5g}")


def _base() -> Options:
    return {
        "animation": False,
        "textStyle": {"fontFamily": "inherit"},
        "grid": {"left": 8, "right": 14, "top": 14, "bottom": 6, "containLabel": True},
        "tooltip": {
            "confine": True,
            "backgroundColor": "var(--surface)",
            "borderColor": "var(--line)",
            "textStyle": {"color": "var(--ink)", "fontSize": 12},
        },
    }


def _axis(kind: str, formatter: str | None = _NUMBER, name: str = "", gap: int = 20, **more: Any) -> Options:
    """name: what the axis shows, written along it `gap` pixels away; the grid must leave room."""
    label = {"color": _GREY, "fontSize": 11, "hideOverlap": True} | ({":formatter": formatter} if formatter else {})
    return {
        "type": kind,
        "axisLabel": label,
        "axisLine": {"show": False},
        "axisTick": {"show": False},
        "nameTextStyle": {"color": _GREY, "fontSize": 11},
        "name": name,
        "nameLocation": "middle",
        "nameGap": gap,
        "splitLine": {"show": kind != "category", "lineStyle": {"color": _GRID}},
        **more,
    }


def lines(
    drawn: Sequence[Line],
    axis: str,
    span: tuple[float, float],
    log_x: bool,
    log_y: bool,
    zoom: tuple[float, float] | None,
) -> Options:
    """Curves over "step", "time" or "tokens" from span[0] to span[1]; zoom: per cent of the span that is in sight, None
    leaves it as the reader has it. A logarithmic axis leaves out what is not above 0."""
    options = _base()
    options["tooltip"] |= {"trigger": "axis", ":valueFormatter": _NUMBER, "axisPointer": _pointer(axis)}
    x_format = _SECONDS if axis == "time" else _NUMBER
    options["grid"]["bottom"] = 22
    name = {"time": "time of training (h:mm:ss)"}.get(axis, axis)
    options["xAxis"] = _axis("log" if log_x else "value", x_format, name, min=span[0], max=span[1], splitNumber=4)
    options["xAxis"]["splitLine"]["show"] = False
    options["xAxis"]["axisLabel"]["alignMaxLabel"] = "right"  # or the last time would be cut off
    options["yAxis"] = _axis("log" if log_y else "value", scale=True, splitNumber=4)
    inside = {"type": "inside", "zoomOnMouseWheel": "ctrl", "moveOnMouseMove": False, "moveOnMouseWheel": "shift"}
    inside |= {"preventDefaultMouseMove": False, "filterMode": "filter"}
    options["dataZoom"] = [inside | ({"start": zoom[0], "end": zoom[1]} if zoom else {})]
    options["series"] = [_line_series(line, log_x, log_y) for line in drawn]
    return options


def _pointer(axis: str) -> Options:
    formatter = f"p => ({_SECONDS})(p.value)" if axis == "time" else "p => Math.round(p.value).toLocaleString('en')"
    label = {":formatter": formatter, "backgroundColor": _GREY}
    return {"label": label, "lineStyle": {"color": _GREY, "type": "solid", "width": 1}}


def _line_series(line: Line, log_x: bool, log_y: bool) -> Options:
    points = [[x, y] for x, y in line.points if (x > 0 or not log_x) and (y > 0 or not log_y)]
    marks = [{"xAxis": x, "name": words} for x, words in line.marks if x > 0 or not log_x]
    return {
        "type": "line",
        "name": line.name,
        "data": points,
        "showSymbol": len(points) < 3,
        "symbolSize": 5,
        "silent": line.faint,
        "tooltip": {"show": not line.faint},
        "itemStyle": {"color": line.colour},
        "lineStyle": {"color": line.colour, "width": 1 if line.faint else 1.7, "opacity": 0.28 if line.faint else 1},
        "emphasis": {"disabled": True},
        "markLine": {
            "silent": True,
            "symbol": "none",
            "label": {"show": False},
            "lineStyle": {"color": ALARM, "type": [3, 4], "opacity": 0.75, "width": 1.2},
            "data": marks,
        },
    }


def heat_map(found: Heat, logarithmic: bool) -> Options:
    """Layers over steps; colour: the figure, or its logarithm to base 10. What was not finite is red."""
    options = _base()
    cells: list[Any] = []
    shown: list[float] = []
    for column, row, value in found.cells:
        if not is_finite(value):
            cells.append({"value": [column, row, str(value)], "visualMap": False, "itemStyle": {"color": ALARM}})
        elif not logarithmic or value > 0:
            colour = math.log10(value) if logarithmic else value
            shown.append(colour)
            cells.append([column, row, short(colour), short(value)])
    low, high = min(shown, default=0.0), max(shown, default=1.0)
    shows = f"(d => d.length > 3 ? ({_NUMBER})(d[3]) : d[2])(p.data.value || p.data)"
    layer = f"{json.dumps(found.layers)}[(p.data.value || p.data)[1]]"
    options["tooltip"] |= {":formatter": _said(f"{layer} + '\\nstep ' + p.name + ': ' + {shows}")}
    options["grid"] |= {"top": 6, "bottom": 58}
    options["xAxis"] = _axis("category", None, "step", data=[f"{step:,}" for step in found.steps])
    options["yAxis"] = _axis("category", None, data=found.layers, inverse=True)
    options["yAxis"]["axisLabel"] |= {"interval": 0, "fontSize": 10}
    options["visualMap"] = _scale(low, high, logarithmic)
    options["series"] = [{"type": "heatmap", "data": cells, "progressive": 0, "emphasis": {"disabled": True}}]
    return options


def _said(expression: str) -> str:
    """A tooltip's formatter that shows a JavaScript expression over `p` as text, never as markup."""
    return (
        "p => { const e = document.createElement('div'); e.style.whiteSpace = 'pre'; "
        f"e.textContent = {expression}; return e; }}"
    )


def _scale(low: float, high: float, logarithmic: bool) -> Options:
    ends = [f"{10**end if logarithmic else end:.3g}" for end in (high, low)]
    return {
        "min": low,
        "max": high if high > low else low + 1,
        "dimension": 2,
        "calculable": False,
        "orient": "horizontal",
        "left": "center",
        "bottom": 0,
        "itemWidth": 12,
        "itemHeight": 180,
        "text": ends,
        "textStyle": {"color": _GREY, "fontSize": 11},
        "inRange": {"color": _HEAT},
        "precision": 3,
    }


def ridge(found: Ridge) -> Options:
    """A histogram over time: steps by value, colour the share of numbers there."""
    options = _base()
    cells = [
        [column, place, short(share**0.5), short(share)]  # the root, so that tails are seen
        for column, shares in enumerate(found.shares)
        for place, share in enumerate(shares)
        if share
    ]
    middles = [short((low + high) / 2) for low, high in pairwise(found.edges)]
    share = "+(100 * p.data[3]).toPrecision(2) + ' % of the fullest bin'"
    options["tooltip"] |= {":formatter": _said(f"'step ' + p.name + '\\n' + {share}")}
    options["grid"] |= {"top": 6, "bottom": 22, "left": 26}
    options["xAxis"] = _axis("category", None, "step", data=[f"{step:,}" for step in found.steps])
    options["yAxis"] = _axis("category", None, "value", 46, data=[f"{value:.2g}" for value in middles])
    options["yAxis"]["axisLabel"]["interval"] = len(middles) // 6
    options["visualMap"] = {"show": False, "min": 0, "max": 1, "dimension": 2, "inRange": {"color": _FULL}}
    options["series"] = [{"type": "heatmap", "data": cells, "progressive": 0, "emphasis": {"disabled": True}}]
    return options


def bars(counts: Sequence[float], edges: Sequence[float], colour: str) -> Options:
    """One histogram."""
    options = _base()
    options["tooltip"] |= {"trigger": "axis", "axisPointer": {"type": "shadow"}, ":valueFormatter": _NUMBER}
    middles = [f"{(low + high) / 2:.3g}" for low, high in pairwise(edges)]
    options["grid"] |= {"bottom": 22, "left": 24}
    options["xAxis"] = _axis("category", None, "value", data=middles)
    options["yAxis"] = _axis("value", _NUMBER, "how many", 40, splitNumber=3)
    options["series"] = [
        {"type": "bar", "name": "numbers", "data": list(counts), "barCategoryGap": "8%", "itemStyle": {"color": colour}}
    ]
    return options


def roofline(limit: Mapping[str, Any], operations: Sequence[Mapping[str, Any]]) -> Options:
    """Operations by arithmetic intensity and speed under the machine's measured limits (Williams et al. 2009)."""
    options = _base()
    options["tooltip"] |= {"trigger": "item"}
    options["grid"] |= {"top": 34, "bottom": 24, "left": 26}
    options["xAxis"] = _axis("log", _NUMBER, "FLOP per byte", 26)
    options["yAxis"] = _axis("log", _NUMBER, "GFLOP/s", 44)
    speeds = list(limit["bandwidth"].values())
    series = []
    for kind, colour in zip(("float32", "bfloat16"), COLOURS, strict=False):
        for where, speed in (("cache", max(speeds)), ("memory", min(speeds))):
            if (top := limit["peak"].get(kind)) is not None:
                places = [0.01, top / speed, max(1000.0, 2 * top / speed)]
                points = [[short(x), short(min(top, x * speed) / 1e9)] for x in places]
                series.append(_limit_line(f"{kind}, {where}", points, colour, where == "memory"))
    options["legend"] = {"top": 0, "textStyle": {"color": _GREY}, "itemHeight": 8, "type": "scroll"}
    dots = [
        {"name": f"{one['operation']} {one['type']}", "value": [short(one["flops"] / one["bytes"]), short(speed)]}
        for one in operations
        if one["bytes"] and one["flops"] and (speed := one["flops"] / (one["gpu"] or one["cpu"] or 1e-9) / 1e9) > 0
    ]
    tooltip = {":formatter": _said(f"p.name + '\\n' + ({_NUMBER})(p.value[1]) + ' GFLOP/s'")}
    dot = {"color": COLOURS[2], "opacity": 0.8}
    series.append(
        {"type": "scatter", "name": "operations", "data": dots, "symbolSize": 9, "itemStyle": dot, "tooltip": tooltip}
    )
    options["series"] = series
    return options


def _limit_line(name: str, points: list[list[float]], colour: str, dashed: bool) -> Options:
    style = {"color": colour, "width": 1.6, "type": "dashed" if dashed else "solid"}
    line = {"type": "line", "name": name, "data": points, "showSymbol": False, "lineStyle": style}
    return line | {"itemStyle": {"color": colour}, "tooltip": {"show": False}}
