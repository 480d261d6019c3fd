"""tinylm-obs · the view of the machine: CPU, memory, disk and GPUs over time, as `obs.sample_system` logs them."""

import asyncio

from nicegui import ui

from ..board import Board, colour
from ..charts import Line, lines
from ..parts import card, chart, empty, redraw
from ..reduce import extremes


class Machine:
    """A card per figure, over the seconds of a run."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self._charts: dict[str, ui.echart] = {}
        self._made: object = None

    def build(self) -> None:
        self._grid = ui.element("div").classes("tl-grid")

    async def update(self) -> None:
        runs = self.board.runs()
        names = list(dict.fromkeys(name for run in runs for name in run.system.curves))
        if names != self._made and runs:
            self._made = names
            self._make(names)
        for name in names:
            drawn = []
            for run in runs:
                with run.lock:
                    curve, axis = run.system.curves.get(name), run.system.axis("time")
                    if curve is None:
                        continue
                    places = extremes(curve.values, 0, len(curve.values), 300)
                    offset = len(axis) - len(curve.values)  # a figure that came later than the others
                    points = [(axis[place + offset], curve.values[place]) for place in places]
                drawn.append(Line(run.label, colour(run), points))
            last = max((line.points[-1][0] for line in drawn if line.points), default=1.0)
            redraw(self._charts[name], lines(drawn, "time", (0.0, last or 1.0), False, False, None))
            await asyncio.sleep(0)

    def _make(self, names: list[str]) -> None:
        self._grid.clear()
        self._charts = {}
        with self._grid:
            if not names:
                empty(
                    "The machine was not sampled",
                    "tinylm-train does it where psutil is installed; in your own loop obs.sample_system(run) does.",
                    'pip install "tinylm-obs[system]"',
                )
            for name in names:
                with card(_title(name)):
                    self._charts[name] = chart({}, f"{name} over time")


def _title(name: str) -> str:
    name = name.replace("cpu", "CPU").replace("gpu", "GPU")
    return name[:1].upper() + name[1:]
