"""tinylm-obs · the view of layers: one statistic of every layer over time as a heat map, and one layer as curves.

What `obs.watch` logs: gradients, activations, updates over weights, dead units, entropy of attention. The figures are
chosen in `..layers`; colour is drawn in `..charts`. Not here: the numbers' distribution (`histograms.py`).
"""

from nicegui import ui

from ..board import Board, colour
from ..charts import Line, heat_map, lines
from ..layers import STATISTICS, heat, per_layer
from ..parts import card, chart, choice, empty, redraw, text
from ..reduce import extremes
from ..store import Run

_LINEAR = ("dead_units", "attention_entropy")  # of these the figure itself is coloured, of others its logarithm


class Layers:
    """One run's heat map, and below it one layer over all chosen runs."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self._made: object = None

    def build(self) -> None:
        self._controls = ui.element("div").classes("tl-controls")
        self._body = ui.element("div").classes("tl-stack")

    async def update(self) -> None:
        run = self.board.focused()
        if run is None:
            return
        with run.lock:
            layers = per_layer(run.metrics.curves)
        made = (run.label, {name: tuple(found) for name, found in layers.items()}, [r.label for r in self.board.runs()])
        if made != self._made:
            self._made = made
            self._make(run, layers)
        if layers:
            self._draw(run)

    def _make(self, run: Run, layers: dict[str, list[str]]) -> None:
        self._controls.clear()
        self._body.clear()
        if not layers:
            with self._body:
                empty(
                    "Nothing about layers yet",
                    f"{run.label} has logged no figures of layers so far. tinylm-train logs them every 100 steps; in a "
                    "loop of your own obs.watch(model, run, [optimizer]) does.",
                )
            return
        kept = self.board.kept
        if kept.get("statistic") not in layers:
            kept["statistic"] = next(iter(layers))
        if kept.get("layer") not in layers[kept["statistic"]]:
            kept["layer"] = layers[kept["statistic"]][0]
        with self._controls:
            runs = {one.label: one.label for one in self.board.runs()}
            choice("Run", runs, run.label, self._focus)
            names = {name: STATISTICS.get(name, name) for name in layers}
            choice("Statistic", names, kept["statistic"], lambda value: self._keep("statistic", value))
        with self._body:
            with card():
                with text("h2", STATISTICS.get(kept["statistic"], kept["statistic"])):
                    self._about = text("small", "")
                height = 74 + 15 * len(layers[kept["statistic"]])
                self._map = chart({}, "Layers over steps, colour: the statistic", height)
                self._map.on_point_click(lambda event: self._clicked(event.data))
            with card():
                with ui.element("div").classes("tl-controls"):
                    choices = {layer: layer for layer in layers[kept["statistic"]]}
                    choice("Layer", choices, kept["layer"], lambda value: self._keep("layer", value))
                self._line = chart({}, "One layer over steps")

    async def _focus(self, label: str) -> None:
        self.board.focus = label
        await self.update()

    async def _keep(self, what: str, value: str) -> None:
        self.board.kept[what] = value
        self._made = None
        await self.update()

    async def _clicked(self, data: object) -> None:
        run = self.board.focused()
        cell = data.get("value") if isinstance(data, dict) else data
        if run is not None and isinstance(cell, list):
            await self._keep("layer", per_layer(run.metrics.curves)[self.board.kept["statistic"]][int(cell[1])])

    def _draw(self, run: Run) -> None:
        statistic, layer = self.board.kept["statistic"], self.board.kept["layer"]
        with run.lock:
            found = heat(run.metrics.curves, statistic)
        redraw(self._map, heat_map(found, statistic not in _LINEAR))
        self._about.set_text(f"{len(found.layers)} layers, {len(found.steps)} columns; a click on a row shows it below")
        drawn, steps = [], []
        for one in self.board.runs():
            curve = one.metrics.curves.get(f"{statistic}/{layer}")
            if curve is None:
                continue
            with one.lock:
                places = extremes(curve.values, 0, len(curve.values), 500)
                points = [(float(curve.steps[place]), curve.values[place]) for place in places]
            steps += [curve.steps[0], curve.steps[-1]]
            drawn.append(Line(one.label, colour(one), points))
        span = (float(min(steps)), float(max(*steps, min(steps) + 1)))
        redraw(self._line, lines(drawn, "step", span, False, self.board.log_y, None))
