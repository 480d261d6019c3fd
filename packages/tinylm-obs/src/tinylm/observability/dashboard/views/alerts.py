"""tinylm-obs · the view of alerts: what was found wrong, in which layer, at which step. `..alerts` finds them."""

from typing import Any

from ..parts import card, empty, table, text
from ..store import Run
from .view import View

_MOST = 300


class Alerts(View):
    """A table, the newest first."""

    def state(self) -> object:
        return [(run.label, alert) for alert, run in self._found()]

    def _found(self) -> list[tuple[dict[str, Any], Run]]:
        found = [(alert, run) for run in self.board.runs() for alert in list(run.alerts)]
        return sorted(found, key=lambda pair: -float(pair[0].get("time") or 0))

    def make(self) -> None:
        found = self._found()
        if not found:
            empty(
                "No alerts",
                "NaN, spikes, plateaus, dead units and saturated attention would stand here, with layer and step.",
            )
            return
        with card():
            table(["alert", "step", "layer", "what was seen", "run"], [_row(*one) for one in found[:_MOST]])
        if len(found) > _MOST:
            text("p", f"and {len(found) - _MOST} older ones", "tl-label")


def _row(alert: dict[str, Any], run: Run) -> list[str | tuple[str, str]]:
    words = f"{alert['step']:,}", str(alert.get("layer")), str(alert.get("message")), run.label
    return [(str(alert.get("alert")), "tl-bad"), *words]
