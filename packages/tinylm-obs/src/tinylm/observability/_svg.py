"""tinylm-obs · small charts as SVG text, no library: lines and points on linear or logarithmic axes, bars.

Colours come from the page's CSS variables where there are any, so that dark and light both read. It does NOT know
what is drawn. Next: `_page.py` and `plot.py` use it.
"""

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

Points = Sequence[tuple[float, float]]
COLOURS = ("#4269d0", "#e8803c", "#3ca951", "#ff5c7a", "#9c6b4e", "#a463f2", "#38b2b5", "#97bbf5")
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 16, 12, 40


def number(value: float) -> str:
    """Three significant digits, with k, M, G, T."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g}"


class Point(NamedTuple):
    """A dot. words: its tooltip; label: what is written beside it, if there is room."""

    x: float
    y: float
    words: str
    label: str = ""


def chart(
    lines: Sequence[tuple[str, Points]],
    points: Sequence[Point],
    x_label: str,
    y_label: str,
    logarithmic: bool = False,
    width: int = 860,
    height: int = 300,
) -> str:
    """Named lines and points; both axes logarithmic, or both linear, y from 0."""
    xs = [x for _, line in lines for x, _ in line] + [point.x for point in points]
    ys = [y for _, line in lines for _, y in line] + [point.y for point in points]
    if not xs:
        return ""
    top = _TOP + (20 if any(name for name, _ in lines) else 0)
    x_at, x_ticks = _axis(xs, _LEFT, width - _RIGHT, logarithmic)
    y_at, y_ticks = _axis(ys if logarithmic else [0.0, *ys], height - _BOTTOM, top, logarithmic)
    parts = [_frame(width, height, x_label, y_label)]
    for tick in x_ticks:
        parts.append(
            f'<text x="{x_at(tick):.1f}" y="{height - _BOTTOM + 16}" text-anchor="middle">{number(tick)}</text>'
        )
    for tick in y_ticks:
        y = y_at(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(tick)}</text>')
    for index, (_, line) in enumerate(lines):
        way = " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in line)
        parts.append(
            f'<polyline fill="none" stroke="{COLOURS[index % len(COLOURS)]}" stroke-width="1.5" points="{way}"/>'
        )
    parts += _legend([name for name, _ in lines if name])
    parts += _dots([point._replace(x=x_at(point.x), y=y_at(point.y)) for point in points], width)
    return "".join(parts) + "</svg>"


def _legend(names: Sequence[str]) -> list[str]:
    parts, x = [], float(_LEFT)
    for index, name in enumerate(names):
        parts.append(f'<rect x="{x:.0f}" y="8" width="14" height="3" fill="{COLOURS[index % len(COLOURS)]}"/>')
        parts.append(f'<text x="{x + 19:.0f}" y="13">{escape(name)}</text>')
        x += 40 + 6.2 * len(name)
    return parts


def _dots(points: Sequence[Point], width: int) -> list[str]:
    """Dots, and labels where there is room between dots and labels."""
    circles = [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{escape(words)}</title></circle>' for x, y, words, _ in points
    ]
    taken = [(x - 4, x + 4, y) for x, y, _, _ in points]  # left, right, middle
    texts = []
    for x, y, _, label in points:
        wide = 6.2 * len(label)
        for left in (x + 8, x - 8 - wide) if label else ():
            right = left + wide
            if right < width and all(abs(y - line) > 9 or left > end or right < start for start, end, line in taken):
                taken.append((left, right, y))
                texts.append(f'<text x="{left:.1f}" y="{y + 4:.1f}">{escape(label)}</text>')
                break
    return circles + texts


def _frame(width: int, height: int, x_label: str, y_label: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="system-ui, sans-serif" '
        f'font-size="11" fill="#777" role="img"><style>.grid{{stroke:#8884;stroke-width:1}}'
        f"circle{{fill:{COLOURS[1]};fill-opacity:.75}}</style>"
        f'<text x="{(_LEFT + width) / 2}" y="{height - 4}" text-anchor="middle">{escape(x_label)}</text>'
        f'<text x="12" y="{height / 2}" text-anchor="middle" transform="rotate(-90 12 {height / 2})">'
        f"{escape(y_label)}</text>"
    )


def _axis(
    values: Sequence[float], start: float, end: float, logarithmic: bool
) -> tuple[Callable[[float], float], list[float]]:
    """(value → place, ticks)."""
    if logarithmic:
        positive = [value for value in values if value > 0] or [1.0]
        first = math.floor(math.log10(min(positive)))
        last = max(math.ceil(math.log10(max(positive))), first + 1)
        ticks = [10.0**power for power in range(first, last + 1, max(1, (last - first) // 6))]
        floor = 10.0**first
        return lambda v: start + (end - start) * (math.log10(max(v, floor)) - first) / (last - first), ticks
    low, high = min(values), max(values)
    span = (high - low) or abs(high) or 1.0
    return lambda v: start + (end - start) * (v - low) / span, _round_numbers(low, low + span)


def _round_numbers(low: float, high: float) -> list[float]:
    """Three to six multiples of 1, 2 or 5 times a power of ten from low to high."""
    power = 10.0 ** math.floor(math.log10((high - low) / 3))
    step = next(power * part for part in (5, 2, 1) if (high - low) / (power * part) >= 3 or part == 1)
    return [step * place for place in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def bars(rows: Sequence[tuple[str, float, str]], title: str, width: int = 860) -> str:
    """Horizontal bars on a logarithmic scale, which stands below: (name, value above 0, what is written beside it)."""
    end = 28 + 24 * len(rows)
    at, ticks = _axis([value for _, value, _ in rows], 220, width - 150, True)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {end + 22}" font-family="system-ui, sans-serif" '
        f'font-size="12" fill="#777" role="img"><text x="4" y="16" font-weight="600">{escape(title)}</text>'
    ]
    for tick in ticks:
        x = at(tick)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="24" y2="{end}" stroke="#8884"/>')
        parts.append(f'<text x="{x:.1f}" y="{end + 14}" text-anchor="middle" font-size="11">{number(tick)}</text>')
    for index, (name, value, beside) in enumerate(rows):
        y, length = 28 + 24 * index, max(2.0, at(value) - 220)
        colour = COLOURS[index % len(COLOURS)]
        parts.append(f'<text x="212" y="{y + 13}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect x="220" y="{y}" width="{length:.1f}" height="17" rx="2" fill="{colour}"/>')
        parts.append(f'<text x="{226 + length:.1f}" y="{y + 13}">{escape(beside)}</text>')
    return "".join(parts) + "</svg>"
