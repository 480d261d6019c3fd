"""tinylm-obs · the view of histograms: how a layer's gradient or weight is distributed, over time and at one step.

Not here: their sums and norms (`layers.py`).
"""

from nicegui import ui

from ..board import Board, colour
from ..charts import bars, ridge
from ..histograms import over_time
from ..parts import card, chart, choice, empty, redraw, text
from ..store import Run
from .view import OneRun


class Histograms(OneRun):
    """One run, one name: a heat map over time, and bars at the step that a slider chooses."""

    def __init__(self, board: Board) -> None:
        super().__init__(board)
        self._steps: list[int] = []
        self._at: int | None = None  # a place in _steps; None: the newest

    def of(self, run: Run) -> object:
        return list(run.histograms.named), self.board.kept.get("histogram")

    def has(self, run: Run) -> bool:
        return bool(run.histograms.named)

    def _chosen(self, run: Run) -> str:
        kept = self.board.kept.get("histogram")
        return kept if kept in run.histograms.named else next(iter(run.histograms.named))

    def make_empty(self, run: Run) -> None:
        empty(
            "No histograms yet",
            f"{run.label} has logged none so far. tinylm-train logs them every 100 steps; run.histogram(name, counts, "
            "edges) logs one.",
        )

    def make_run(self, run: Run) -> None:
        self._at = None
        with self._controls:
            names = {name: name for name in run.histograms.named}
            choice("Of", names, self._chosen(run), lambda name: self.keep("histogram", name)).props(
                "use-input input-debounce=0"
            )
        with card():
            with text("h2", "Over time"):
                text("small", "the stronger the colour, the more of that step's numbers lie there")
            self._map = chart({}, "Histogram over steps, colour: the share of numbers", 320)
        with card():
            self._title = text("h2", "")
            self._bars = chart({}, "Histogram at one step")
            self._slider = ui.slider(min=0, max=1, value=1).props('dense aria-label="Step"')
            self._slider.on_value_change(lambda event: self._move(int(event.value)))

    async def _move(self, place: int) -> None:
        at = None if place >= len(self._steps) - 1 else place
        if at != self._at:
            self._at = at
            await self.update()

    async def fill(self) -> None:
        run = self.run
        if not self.has(run):
            return
        with run.lock:
            histograms = dict(run.histograms.named[self._chosen(run)])
        redraw(self._map, ridge(over_time(histograms)))
        self._steps = sorted(histograms)
        last = len(self._steps) - 1
        place = last if self._at is None else min(self._at, last)
        self._slider.props(f"max={max(1, last)}")
        self._slider.set_value(place)
        step = self._steps[place]
        self._title.set_text(f"At step {step:,}")
        redraw(self._bars, bars(histograms[step].counts, histograms[step].edges, colour(run)))
