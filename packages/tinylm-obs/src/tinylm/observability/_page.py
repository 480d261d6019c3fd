"""tinylm-obs · a profile as one page: no other file, no network, no library.

The template `_page.html` holds style and the script of the timeline; tables and charts are made here. It does NOT
measure. Next: `_svg.py`.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from . import _svg
from ._facts import counted
from .tables import cell

_LABELLED = 8  # operations on the roofline, those that took the longest
_LONGEST = 15_000  # events in the page's timeline; trace.json has them all


def page(results: Mapping[str, Any], events: Iterable[Mapping[str, Any]]) -> str:
    """The page's text."""
    template = Path(__file__).with_name("_page.html").read_text(encoding="utf-8")
    facts = results["machine"]
    seconds = f"{results['seconds']:.3g} s, {results['cpu_seconds']:.3g} s of CPU"
    used = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    about = f"{seconds} · {facts['cpu']}, {counted(facts['cores'], 'core')} · {used} · {results['date']}"
    parts = {
        "TITLE": escape(results["title"]),
        "ABOUT": escape(about),
        "OPERATIONS": _operations(results["operations"][:80]),
        "MODULES": _modules(results["modules"][:200]),
        "FUNCTIONS": _functions(results["functions"]),
        "MEMORY": _memory(results["memory"]),
        "ROOFLINE": _roofline(results),
        "EVENTS": _timeline(events),
    }
    return re.sub(r"<!--([A-Z]+)-->", lambda match: parts[match[1]], template)


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    if not rows:
        return "<p>None was recorded.</p>"
    used = [place for place in range(len(columns)) if any(row[place] is not None for row in rows)]  # no GPU, no column
    columns, rows = [columns[place] for place in used], [[row[place] for place in used] for row in rows]
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell(value))}</td>" for value in row) + "</tr>" for row in rows)
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _operations(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = ["operation", "type", "calls", "CPU ms", "GPU ms", "GFLOP", "MB", "% of roofline", "bound by"]
    return _table(
        columns,
        [
            [
                *(row["operation"], row["type"], row["calls"], row["cpu"] * 1e3, row["gpu"] * 1e3 or None),
                *(row["flops"] / 1e9 or None, row["bytes"] / 1e6 or None),
                *(row["fraction of roofline"] and 100 * row["fraction of roofline"], row["bound"]),
            ]
            for row in rows
        ],
    )


def _modules(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = ["module", "calls", "forward CPU ms", "backward CPU ms", "GPU ms"]
    return _table(
        columns,
        [
            [row["module"], row["calls"], row["forward"] * 1e3, row["backward"] * 1e3, row["gpu"] * 1e3 or None]
            for row in rows
        ],
    )


def _functions(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = ["function", "% itself", "% with what it calls"]
    whole = max((row["with callees"] for row in rows), default=1e-9) / 100
    return _table(columns, [[row["function"], row["own"] / whole, row["with callees"] / whole] for row in rows])


def _memory(curves: Mapping[str, Sequence[tuple[float, int]]]) -> str:
    drawn = []
    for name, points in curves.items():
        peak = max((size for _, size in points), default=0)
        line = _svg.chart([("", [(t, size / 1e6) for t, size in points])], [], "seconds", "MB", height=180)
        title = name if "(" in name else f"{name}, allocated by torch"
        drawn.append(f"<h3>{escape(title)}, peak {cell(peak / 1e6)} MB</h3><div class=chart>{line}</div>")
    return "".join(drawn) or "<p>None was recorded.</p>"


def _roofline(results: Mapping[str, Any]) -> str:
    limit = results["roofline"]
    if not limit:
        return "<p>Operations of torch are placed on the machine's measured limits; none was recorded.</p>"
    fastest = max(limit["bandwidth"].values())
    slowest = min(limit["bandwidth"].values())
    lines = []
    for kind in ("float32", "bfloat16"):
        if kind in limit["peak"]:
            top = limit["peak"][kind]
            for word, speed in (("cache", fastest), ("memory", slowest)):
                intensities = [0.01, top / speed, max(1000.0, 2 * top / speed)]
                lines.append((f"{kind}, {word}", [(x, min(top, x * speed) / 1e9) for x in intensities]))
    placed = [row for row in results["operations"] if row["bytes"] and row["flops"]]
    points = []
    for place, row in enumerate(sorted(placed, key=lambda row: -max(row["cpu"], row["gpu"]))):
        seconds = row["gpu"] or row["cpu"] or 1e-9
        words = f"{row['operation']} {row['type']}: {cell(row['flops'] / row['bytes'])} FLOP per byte, "
        words += f"{cell(row['flops'] / seconds / 1e9)} GFLOP/s, {cell(seconds * 1e3)} ms"
        label = row["operation"].removeprefix("aten::") if place < _LABELLED else ""
        points.append(_svg.Point(row["flops"] / row["bytes"], row["flops"] / seconds / 1e9, words, label))
    drawn = _svg.chart(lines, points, "FLOP per byte", "GFLOP/s", logarithmic=True, height=400)
    return f"<div class=chart>{drawn}</div>"


def _timeline(events: Iterable[Mapping[str, Any]]) -> str:
    """[name, category, lane, start ms, length ms] of the longest events, as JSON that cannot end the script."""
    kept = [
        e for e in events if e.get("ph") == "X" and e.get("cat") in ("python", "cpu_op", "user_annotation", "kernel")
    ]
    kept = sorted(kept, key=lambda event: -float(event["dur"]))[:_LONGEST]
    kept.sort(key=lambda e: (float(e["ts"]), -float(e["dur"]), e.get("args", {}).get("depth", 0)))
    origin = min((float(event["ts"]) for event in kept), default=0.0)
    lanes = {name: number for number, name in enumerate(dict.fromkeys(f"{e['pid']} {e['tid']}" for e in kept))}
    rows = [
        [
            *(event["name"], event["cat"], lanes[f"{event['pid']} {event['tid']}"]),
            *(round((float(event["ts"]) - origin) / 1e3, 4), round(float(event["dur"]) / 1e3, 4)),
        ]
        for event in kept
    ]
    return json.dumps(rows, separators=(",", ":")).replace("<", "\\u003c")
