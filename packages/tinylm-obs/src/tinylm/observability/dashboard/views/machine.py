"""tinylm-obs · the view of the machine: CPU, memory, disk and GPUs over time, as `obs.sample_system` logs them."""

from nicegui import ui

from ..board import colour
from ..charts import Line, lines
from ..parts import card, chart, empty, redraw
from ..reduce import extremes
from ..store import Run
from .view import View


class Machine(View):
    """A card per figure, over the seconds of a run."""

    body = "tl-grid"

    def state(self) -> list[str]:
        return list(dict.fromkeys(name for run in self.board.runs() for name in list(run.system.curves)))

    def make(self) -> None:
        self._charts: dict[str, ui.echart] = {}
        names = self.state()
        if not names:
            empty(
                "The machine was not sampled",
                "tinylm-train does it where psutil is installed; in your own loop obs.sample_system(run) does.",
                'pip install "tinylm-obs[system]"',
            )
        for name in names:
            with card(_title(name)):
                self._charts[name] = chart({}, f"{name} over time")

    async def fill(self) -> None:
        for name, drawn in self._charts.items():
            found = [line for run in self.board.runs() if (line := _line(run, name)) is not None]
            last = max((line.points[-1][0] for line in found if line.points), default=1.0)
            redraw(drawn, lines(found, "time", (0.0, last or 1.0), False, False, None))
            if not await self.turn():
                return


def _line(run: Run, name: str) -> Line | None:
    with run.lock:
        curve = run.system.curves.get(name)
        if curve is None:
            return None
        axis = run.system.axis_of(curve, "time")
        points = [(axis[place], curve.values[place]) for place in extremes(curve.values, 0, len(curve.values), 300)]
    return Line(run.label, colour(run), points)


def _title(name: str) -> str:
    name = name.replace("cpu", "CPU").replace("gpu", "GPU")
    return name[:1].upper() + name[1:]
