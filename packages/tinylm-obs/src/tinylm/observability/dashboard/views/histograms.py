"""tinylm-obs · the view of histograms: how a layer's gradient or weight is distributed, over time and at one step.

Not here: their sums and norms (`layers.py`).
"""

from nicegui import ui

from ..board import Board, colour
from ..charts import bars, ridge
from ..histograms import over_time
from ..parts import card, chart, choice, empty, redraw, text
from ..store import Run


class Histograms:
    """One run, one name: a heat map over time, and bars at the step that a slider chooses."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self._made: object = None
        self._steps: list[int] = []
        self._at: int | None = None  # a place in _steps; None: the newest

    def build(self) -> None:
        self._controls = ui.element("div").classes("tl-controls")
        self._body = ui.element("div").classes("tl-stack")

    async def update(self) -> None:
        run = self.board.focused()
        if run is None:
            return
        names = list(run.histograms.named)
        made = (run.label, names, [one.label for one in self.board.runs()])
        if made != self._made:
            self._made = made
            self._make(run, names)
        if names:
            self._draw(run)

    def _make(self, run: Run, names: list[str]) -> None:
        self._controls.clear()
        self._body.clear()
        if not names:
            with self._body:
                empty(
                    "No histograms yet",
                    f"{run.label} has logged none so far. tinylm-train logs them every 100 steps; run.histogram(name, "
                    "counts, edges) logs one.",
                )
            return
        if self.board.kept.get("histogram") not in names:
            self.board.kept["histogram"] = names[0]
        with self._controls:
            choice("Run", {one.label: one.label for one in self.board.runs()}, run.label, self._focus)
            chosen = {name: name for name in names}
            select = choice("Of", chosen, self.board.kept["histogram"], self._choose)
            select.props("use-input input-debounce=0")
        with self._body:
            with card("Over time"):
                self._map = chart({}, "Histogram over steps, colour: the share of numbers", 320)
            with card():
                self._title = text("h2", "")
                self._bars = chart({}, "Histogram at one step")
                self._slider = ui.slider(min=0, max=1, value=1).props('dense aria-label="Step"')
                self._slider.on_value_change(lambda event: self._move(int(event.value)))

    async def _focus(self, label: str) -> None:
        self.board.focus = label
        await self.update()

    async def _choose(self, name: str) -> None:
        self.board.kept["histogram"], self._at = name, None
        await self.update()

    async def _move(self, place: int) -> None:
        at = None if place >= len(self._steps) - 1 else place
        if at != self._at:
            self._at = at
            await self.update()

    def _draw(self, run: Run) -> None:
        with run.lock:
            histograms = dict(run.histograms.named.get(self.board.kept["histogram"], {}))
        redraw(self._map, ridge(over_time(histograms)))
        self._steps = sorted(histograms)
        last = len(self._steps) - 1
        place = last if self._at is None else min(self._at, last)
        self._slider.props(f"max={max(1, last)}")
        self._slider.set_value(place)
        step = self._steps[place]
        self._title.set_text(f"At step {step:,}")
        redraw(self._bars, bars(histograms[step].counts, histograms[step].edges, colour(run)))
