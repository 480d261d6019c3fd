"""tinylm-obs · the view of alerts: what was found wrong, in which layer, at which step. `..alerts` finds them."""

from nicegui import ui

from ..board import Board
from ..parts import card, empty, table, text

_MOST = 300


class Alerts:
    """A table, the newest first."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self._shown: object = None

    def build(self) -> None:
        self._body = ui.element("div").classes("tl-stack")

    async def update(self) -> None:
        found = [(alert, run) for run in self.board.runs() for alert in run.alerts]
        found.sort(key=lambda pair: -float(pair[0].get("time") or 0))
        rows: list[list[str | tuple[str, str]]] = [
            [
                (str(alert.get("alert")), "tl-bad"),
                *(f"{alert['step']:,}", str(alert.get("layer")), str(alert.get("message")), run.label),
            ]
            for alert, run in found[:_MOST]
        ]
        if rows == self._shown:
            return
        self._shown = rows
        self._body.clear()
        with self._body:
            if not rows and self.board.runs():
                empty(
                    "No alerts",
                    "NaN, spikes, plateaus, dead units and saturated attention would stand here, with layer and step.",
                )
            elif rows:
                with card():
                    table(["alert", "step", "layer", "what was seen", "run"], rows)
            if len(found) > _MOST:
                text("p", f"and {len(found) - _MOST} older ones", "tl-label")
