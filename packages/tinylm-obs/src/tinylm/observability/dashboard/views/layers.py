"""tinylm-obs · the view of layers: one statistic of every layer over time as a heat map, and one layer as curves.

What `obs.watch` logs: gradients, activations, updates over weights, dead units, entropy of attention. The figures are
chosen in `..layers`; colour is drawn in `..charts`. Not here: the numbers' distribution (`histograms.py`).
"""

from nicegui import ui

from ..._facts import counted
from ..board import colour
from ..charts import Line, heat_map, lines
from ..layers import STATISTICS, heat, per_layer
from ..parts import card, chart, choice, empty, redraw, text
from ..reduce import extremes
from ..store import Run
from .view import OneRun

_LINEAR = ("dead_units", "attention_entropy")  # of these the figure itself is coloured, of others its logarithm


class Layers(OneRun):
    """One run's heat map, and below it one layer over all chosen runs."""

    def of(self, run: Run) -> object:
        return self._layers(run), self.board.kept.get("statistic"), self.board.kept.get("layer")

    def _layers(self, run: Run) -> dict[str, list[str]]:
        """statistic → its layers."""
        with run.lock:
            return per_layer(run.metrics.curves)

    def has(self, run: Run) -> bool:
        return bool(self._layers(run))

    def make_empty(self, run: Run) -> None:
        empty(
            "Nothing about layers yet",
            f"{run.label} has logged no figures of layers so far. tinylm-train logs them every 100 steps; in a loop of "
            "your own obs.watch(model, run, [optimizer]) does.",
        )

    def make_run(self, run: Run) -> None:
        layers = self._layers(run)
        statistic = self._chosen("statistic", list(layers))
        names = layers[statistic]
        with self._controls:
            titles = {name: STATISTICS.get(name, name) for name in layers}
            choice("Statistic", titles, statistic, lambda value: self.keep("statistic", value))
        with card():
            with text("h2", STATISTICS.get(statistic, statistic)):
                self._about = text("small", "")
            self._map = chart({}, "Layers over steps, colour: the statistic", 80 + 15 * len(names))
            self._map.on_point_click(lambda event: self._clicked(names, event.data))
        with card():
            with ui.element("div").classes("tl-controls"):
                choices = {name: name for name in names}
                choice("Layer", choices, self._chosen("layer", names), lambda value: self.keep("layer", value))
            self._line = chart({}, "One layer over steps")

    def _chosen(self, what: str, names: list[str]) -> str:
        kept = self.board.kept.get(what)
        return kept if kept in names else names[0]

    async def _clicked(self, layers: list[str], data: object) -> None:
        cell = data.get("value") if isinstance(data, dict) else data
        if isinstance(cell, list):
            await self.keep("layer", layers[int(cell[1])])

    async def fill(self) -> None:
        layers = self._layers(run := self.run)
        if not layers:
            return
        statistic = self._chosen("statistic", list(layers))
        layer = self._chosen("layer", layers[statistic])
        with run.lock:
            found = heat(run.metrics.curves, statistic)
        redraw(self._map, heat_map(found, statistic not in _LINEAR))
        size = f"{counted(len(found.layers), 'layer')}, {counted(len(found.steps), 'column')} of steps"
        self._about.set_text(f"{size}; a click on a row shows it below")
        drawn = [line for run in self.board.runs() if (line := _line(run, f"{statistic}/{layer}")) is not None]
        xs = [x for line in drawn for x, _ in line.points] or [0.0]
        redraw(self._line, lines(drawn, "step", (min(xs), max(*xs, min(xs) + 1)), False, self.board.log_y, None))


def _line(run: Run, name: str) -> Line | None:
    with run.lock:
        curve = run.metrics.curves.get(name)
        if curve is None:
            return None
        places = extremes(curve.values, 0, len(curve.values), 500)
        return Line(run.label, colour(run), [(float(curve.steps[place]), curve.values[place]) for place in places])
