"""tinylm-obs · the view of curves: every scalar of the chosen runs over steps, time or tokens.

Points are chosen on the server (`reduce.extremes`), more of them where the reader has zoomed in. Not here: scalars of a
layer (`layers.py`), the machine (`system.py`).
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from nicegui import ui

from ..board import AXES, WINDOWS, Board, colour
from ..charts import Line, lines, short
from ..parts import card, chart, empty, redraw, text
from ..reduce import extremes, within
from ..store import Run
from .view import View

_POINTS = 5000  # of a chart, over all its lines
_FIRST = ("loss", "bits_per_character", "validation_bits_per_character", "gradient_norm", "learning_rate")
_AS_IT_IS = ("learning_rate",)  # not smoothed
_ALARMING = ("nan", "spike")


class Curves(View):
    """Controls, and a card per scalar."""

    body = "tl-grid"

    def __init__(self, board: Board) -> None:
        super().__init__(board)
        self._charts: dict[str, tuple[ui.echart, ui.label]] = {}
        self._places: dict[tuple[str, str, int], tuple[object, list[int]]] = {}
        self._zoomed_in: str | None = None  # the chart whose own zoom is already as wanted

    def build(self) -> None:
        self._bar = ui.element("div").classes("tl-controls")
        with self._bar:
            self._make_bar()
        super().build()

    def _make_bar(self) -> None:
        board = self.board
        self._axis = ui.toggle(dict(AXES), value=board.axis, on_change=lambda event: self._set("axis", event.value))
        self._axis.props('dense unelevated no-caps toggle-color=primary aria-label="What the x axis shows"')
        self._logs = {}
        for name, label in (("log_x", "log x"), ("log_y", "log y")):
            self._logs[name] = ui.switch(label, value=getattr(board, name)).props("dense")
            self._logs[name].on_value_change(lambda event, name=name: self._set(name, event.value))
        with ui.element("div").classes("tl-range"):
            words = text("span", "", "tl-label")
            self._smoothing = ui.slider(min=0, max=len(WINDOWS) - 1, value=WINDOWS.index(board.window))
            self._smoothing.props('dense aria-label="Smoothing"')
            self._smoothing.on_value_change(lambda event: self._set("window", WINDOWS[int(event.value)]))
            words.bind_text_from(self._smoothing, "value", lambda value: f"Smoothing {WINDOWS[int(value)]}")
        with ui.element("div").classes("tl-range"):
            text("span", "Zoom", "tl-label")
            self._range = ui.range(min=0, max=100, step=0.5, value={"min": board.zoom[0], "max": board.zoom[1]})
            self._range.props('dense aria-label="The part of the x axis that is in sight"')
            self._range.on("update:model-value", lambda _: self._zoom_by_range(), throttle=0.15)

    async def key(self, key: str) -> None:
        if key == "x":
            axes = list(AXES)
            self._axis.set_value(axes[(axes.index(self.board.axis) + 1) % len(axes)])
        elif key == "y":
            self._logs["log_y"].set_value(not self.board.log_y)
        elif key == "0":
            await self._zoom((0.0, 100.0), None)
        elif key in "+-":
            place = WINDOWS.index(self.board.window) + (1 if key == "+" else -1)
            self._smoothing.set_value(min(len(WINDOWS) - 1, max(0, place)))

    async def _set(self, name: str, value: Any) -> None:
        setattr(self.board, name, value)
        await self.update()

    async def _zoom_by_range(self) -> None:
        value = self._range.value or {"min": 0, "max": 100}
        await self._zoom((float(value["min"]), float(value["max"])), None)

    async def _zoom(self, zoom: tuple[float, float], by: str | None) -> None:
        """by: the chart that was zoomed itself."""
        self.board.zoom, self._zoomed_in = zoom, by
        self._range.set_value({"min": zoom[0], "max": zoom[1]})
        await self.update()

    async def update(self) -> None:
        self._bar.set_visibility(bool(self.state()))
        await super().update()

    def state(self) -> list[str]:
        return _scalars(self.board.runs())

    def make(self) -> None:
        self._charts = {}
        if not self.state():
            empty("No numbers yet", "The chosen runs have logged nothing so far; curves appear with the first row.")
        for name in self.state():
            with card():
                with text("h2", words(name)):
                    newest = text("small", "")
                drawn = chart({}, f"Curves of {words(name)}")
            drawn.on(
                "chart:datazoom",
                lambda event, name=name: self._zoom((event.args["start"], event.args["end"]), name),
                throttle=0.2,
                js_handler="e => { const b = e.batch ? e.batch[0] : e; emit({start: b.start, end: b.end}); }",
            )
            self._charts[name] = (drawn, newest)

    async def fill(self) -> None:
        runs = self.board.runs()
        span = _span(runs, self.board)
        for name, (drawn, newest) in self._charts.items():
            redraw(drawn, self._options(name, runs, span))
            newest.set_text(_newest(runs, name))
            if not await self.turn():
                return
        self._zoomed_in = None

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
        """As many points for what is in sight as for the whole axis, so that a zoom shows more."""
        curve = run.metrics.curves[name]
        values, axis = curve.smoothed(window), run.metrics.axis_of(curve, self.board.axis)
        low, high = within(axis, *_in_sight(self.board, span))
        places = self._chosen(run, name, window, (low, high), max(50, buckets))
        return [(short(axis[place]), short(values[place])) for place in places]

    def _chosen(self, run: Run, name: str, window: int, seen: tuple[int, int], buckets: int) -> list[int]:
        """The places of those points. Those of the whole axis are kept, and serve outside of what is in sight."""
        curve = run.metrics.curves[name]
        values, (low, high) = curve.smoothed(window), seen
        state = (run.metrics, len(values), curve.changed, buckets)
        known, whole = self._places.get((run.label, name, window), (None, []))
        if known != state:
            whole = extremes(values, 0, len(values), buckets)
            self._places[run.label, name, window] = (state, whole)
        if (low, high) == (0, len(values)):
            return whole
        left, right = bisect_left(whole, low), bisect_left(whole, high)
        return whole[:left] + extremes(values, low, high, buckets) + whole[right:]


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
