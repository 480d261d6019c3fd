"""tinylm-obs · what one open page has in view: which runs, how curves are drawn, and where to read.

Shared by the page's frame (`page.py`) and its views (`views/`). It does NOT draw.
"""

from dataclasses import dataclass, field

from .charts import COLOURS
from .store import Run, Store

WINDOWS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # values that a smoothed one is the mean of
AXES = {"step": "Steps", "time": "Time", "tokens": "Tokens"}
MOST = len(COLOURS)  # runs that are chosen at first


@dataclass(eq=False)
class Board:
    """The state of one page. chosen: labels of runs; focus: the one that a view of a single run is asked to show;
    zoom: the part of the x axis that is in sight, in per cent."""

    store: Store
    chosen: set[str] = field(default_factory=set)
    focus: str | None = None
    window: int = 10
    axis: str = "step"
    log_x: bool = False
    log_y: bool = False
    zoom: tuple[float, float] = (0.0, 100.0)
    kept: dict[str, str] = field(default_factory=dict)  # what was chosen in a view, while others are looked at

    def runs(self) -> list[Run]:
        """The chosen runs that can be read, in the order of the list."""
        return [run for label, run in self.store.runs.items() if label in self.chosen and run.record]

    def newest_first(self) -> list[Run]:
        """The same, the one that was started last first."""
        return sorted(self.runs(), key=_started, reverse=True)

    def choose_at_first(self) -> None:
        """The newest runs, as many as there are colours."""
        newest = sorted((run for run in self.store.runs.values() if run.record), key=_started)
        self.chosen = {run.label for run in newest[-MOST:]}


def colour(run: Run) -> str:
    """A run has one colour, everywhere and for as long as the dashboard runs."""
    return COLOURS[run.number % len(COLOURS)]


def _started(run: Run) -> str:
    return str((run.record or {}).get("started") or "")
