"""tinylm-obs · the view of curves: every scalar of the chosen runs over steps, time or tokens.

Points are chosen on the server (`reduce.extremes`), more of them where the reader has zoomed in. Not here: scalars of a
layer (`layers.py`), the machine (`system.py`).
"""

import asyncio
import math
from collections.abc import Sequence
from typing import Any

from nicegui import ui

from ..board import AXES, WINDOWS, Board, colour
from ..charts import Line, lines, short
from ..metrics import Curve, Metrics
from ..parts import card, chart, empty, redraw, text
from ..reduce import extremes, within
from ..store import Run

_POINTS = 5000  # of a chart, over all its lines
_FIRST = ("loss", "bits_per_character", "validation_bits_per_character", "gradient_norm", "learning_rate")
_AS_IT_IS = ("learning_rate",)  # not smoothed
_ALARMING = ("nan", "spike")


class Curves:
    """Controls, and a card per scalar."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self._charts: dict[str, tuple[ui.echart, ui.label]] = {}
        self._known: dict[tuple[str, str, int], tuple[object, list[tuple[float, float]]]] = {}
        self._zoomed_in: str | None = None  # the chart whose own zoom is already as wanted

    def build(self) -> None:
        self._bar = ui.element("div").classes("tl-controls")
        with self._bar:
            self._controls()
        self._grid = ui.element("div").classes("tl-grid")

    def _controls(self) -> None:
        board = self.board
        axis = ui.toggle(dict(AXES), value=board.axis, on_change=lambda event: self._set("axis", event.value))
        axis.props('dense unelevated no-caps toggle-color=primary aria-label="What the x axis shows"')
        for name, label in (("log_x", "log x"), ("log_y", "log y")):
            switch = ui.switch(label, value=getattr(board, name))
            switch.on_value_change(lambda event, name=name: self._set(name, event.value)).props("dense")
        with ui.element("div").classes("tl-range"):
            words = text("span", "", "tl-label")
            place = WINDOWS.index(board.window)
            slider = ui.slider(min=0, max=len(WINDOWS) - 1, value=place).props('dense aria-label="Smoothing"')
            slider.on_value_change(lambda event: self._set("window", WINDOWS[int(event.value)]))
            words.bind_text_from(slider, "value", lambda value: f"Smoothing {WINDOWS[int(value)]}")
        with ui.element("div").classes("tl-range"):
            text("span", "Zoom", "tl-label")
            self._range = ui.range(min=0, max=100, step=0.5, value={"min": board.zoom[0], "max": board.zoom[1]})
            self._range.props('dense aria-label="The part of the x axis that is in sight"')
            self._range.on("update:model-value", lambda _: self._zoom_by_range(), throttle=0.15)

    async def _set(self, name: str, value: Any) -> None:
        setattr(self.board, name, value)
        await self.update()

    async def _zoom_by_range(self) -> None:
        value = self._range.value or {"min": 0, "max": 100}
        self.board.zoom, self._zoomed_in = (float(value["min"]), float(value["max"])), None
        await self.update()

    async def _zoom_by_chart(self, name: str, start: float, end: float) -> None:
        self.board.zoom, self._zoomed_in = (start, end), name
        self._range.set_value({"min": start, "max": end})
        await self.update()

    async def update(self) -> None:
        runs = self.board.runs()
        names = _scalars(runs)
        self._bar.set_visibility(bool(names))
        if list(self._charts) != names:
            self._make_cards(names)
        span = _span(runs, self.board)
        for name in names:
            drawn, newest = self._charts[name]
            redraw(drawn, self._options(name, runs, span))
            newest.set_text(_newest(runs, name))
            await asyncio.sleep(0)  # between two charts others get their turn

    def _make_cards(self, names: Sequence[str]) -> None:
        self._grid.clear()
        self._charts = {}
        with self._grid:
            if not names and self.board.runs():
                empty("No numbers yet", "The chosen runs have logged nothing so far; curves appear with the first row.")
            for name in names:
                with card():
                    with text("h2", words(name)):
                        newest = text("small", "")
                    drawn = chart({}, f"Curves of {words(name)}")
                drawn.on(
                    "chart:datazoom",
                    lambda event, name=name: self._zoom_by_chart(name, event.args["start"], event.args["end"]),
                    throttle=0.2,
                    js_handler="e => { const b = e.batch ? e.batch[0] : e; emit({start: b.start, end: b.end}); }",
                )
                self._charts[name] = (drawn, newest)

    def _options(self, name: str, runs: Sequence[Run], span: tuple[float, float]) -> dict[str, Any]:
        drawn: list[Line] = []
        share = _POINTS // max(1, len(runs)) // 2
        for run in runs:
            with run.lock:
                curve = run.metrics.curves.get(name)
                if curve is None:
                    continue
                window = self.board.window if len(curve.steps) > 20 and name not in _AS_IT_IS else 1
                if window > 1:
                    raw = self._points(run, name, 1, span, share // 2)
                    drawn.append(Line(f"{run.label} raw", colour(run), raw, faint=True))
                points = self._points(run, name, window, span, share)
                marks = _marks(run, self.board.axis) if name == "loss" else []
                drawn.append(Line(run.label, colour(run), points, marks=marks))
        drawn.sort(key=lambda line: not line.faint)
        board = self.board
        zoom = None if self._zoomed_in == name else board.zoom
        return lines(drawn, board.axis, span, board.log_x, board.log_y, zoom)

    def _points(
        self, run: Run, name: str, window: int, span: tuple[float, float], buckets: int
    ) -> list[tuple[float, float]]:
        """Most of the points are spent on what is in sight; the rest of the axis gets a few. What has not changed since
        the last time is not computed again."""
        metrics, curve, seen = run.metrics, run.metrics.curves[name], _in_sight(self.board, span)
        state = (len(metrics.steps), len(curve.steps), metrics.changed, curve.changed, self.board.axis, seen, buckets)
        known = self._known.get((run.label, name, window))
        if known is not None and known[0] == (metrics, state):
            return known[1]
        values = curve.smoothed(window)
        axis = metrics.axis(self.board.axis)
        own = axis if len(curve.steps) == len(metrics.steps) else _axis_of(metrics, curve, axis)
        low, high = within(own, *seen)
        parts = ((0, low, 40), (low, high, max(50, buckets)), (high, len(values), 40))
        places = [place for part in parts for place in extremes(values, *part, curve.finite)]
        points = [(short(own[place]), short(values[place])) for place in places]
        self._known[run.label, name, window] = ((metrics, state), points)
        return points


def words(name: str) -> str:
    """A scalar's name as a title."""
    known = {"mfu": "Model FLOP utilisation (MFU)", "memory": "Memory (bytes)"}
    return known.get(name, name.replace("_", " ").capitalize())


def _scalars(runs: Sequence[Run]) -> list[str]:
    """The names of what is no layer's, those that matter most first."""
    names = dict.fromkeys(name for run in runs for name in run.metrics.curves if "/" not in name and name != "tokens")
    return sorted(names, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))


def _span(runs: Sequence[Run], board: Board) -> tuple[float, float]:
    """The least and the greatest of the x axis, over all chosen runs."""
    lows, highs = [], []
    for run in runs:
        with run.lock:
            axis = run.metrics.axis(board.axis)
            if len(axis):
                lows.append(next((x for x in axis if x > 0), 1.0) if board.log_x else axis[0])
                highs.append(axis[-1])
    low, high = min(lows, default=0.0), max(highs, default=1.0)
    return (low, high) if high > low else (low, low + 1)


def _in_sight(board: Board, span: tuple[float, float]) -> tuple[float | None, float | None]:
    """The x that the zoom's per cents stand for."""
    start, end = board.zoom
    low, high = map(math.log, span) if board.log_x else span

    def at(share: float) -> float:
        x = low + (high - low) * share / 100
        return math.exp(x) if board.log_x else x

    return (at(start) if start > 0 else None), (at(end) if end < 100 else None)


def _axis_of(metrics: Metrics, curve: Curve, axis: Sequence[float]) -> list[float]:
    """The x of a scalar that not every step has."""
    if axis is metrics.steps:
        return list(curve.steps)
    place = dict(zip(metrics.steps, range(len(metrics.steps)), strict=True))
    return [axis[place[step]] for step in curve.steps]


def _marks(run: Run, axis: str) -> list[tuple[float, str]]:
    at = run.metrics.axis(axis)
    place = dict(zip(run.metrics.steps, range(len(at)), strict=True)) if run.alerts else {}
    found = [
        (at[place[alert["step"]]], str(alert.get("layer")))
        for alert in run.alerts[:200]
        if alert.get("alert") in _ALARMING and alert["step"] in place
    ]
    return found[:20]


def _newest(runs: Sequence[Run], name: str) -> str:
    """The last figure, where there is one run to speak of."""
    if len(runs) != 1 or name not in runs[0].metrics.curves:
        return ""
    values = runs[0].metrics.curves[name].values
    return f"{values[-1]:,.5g}" if values else ""
