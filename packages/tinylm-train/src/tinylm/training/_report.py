"""Training on a terminal: one live panel; elsewhere one plain line every ten seconds.

The only file beside cli.py that imports rich. Not here: the figures (status.py), what is kept of them
(tinylm.observability).
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.progress import Progress
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from tinylm.training.status import Result, Status

_BARS = "▁▂▃▄▅▆▇█"
_CURVE = 48  # columns of the loss curve
_INTERVAL = 10.0  # seconds between plain lines


def duration(seconds: float) -> str:
    """Minutes and seconds, with hours where there are some."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def sparkline(values: Sequence[float], columns: int) -> str:
    """A curve of block characters: the means of `columns` equal parts of `values`, lowest to highest."""
    parts = min(columns, len(values))
    if not parts:
        return ""
    edges = [len(values) * i // parts for i in range(parts + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    return "".join(_BARS[round((mean - low) / (high - low or 1.0) * (len(_BARS) - 1))] for mean in means)


class Display:
    """`report` after every step, `say` for a line that stays."""

    def __init__(self, console: Console | None = None, shown: bool = True) -> None:
        self.console = console or Console(highlight=False, quiet=not shown)
        self.losses: list[float] = []
        self.status: Status | None = None
        self.last_line = time.monotonic()
        self.live = Live(console=self.console, refresh_per_second=8, transient=True, get_renderable=self._panel)

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.live.stop()

    def say(self, line: str) -> None:
        """A line that stays above the panel."""
        self.console.print(line, markup=False, soft_wrap=True)

    def report(self, status: Status) -> None:
        """Take the newest figures; a validation's figure and sample stay as a line."""
        self.status = status
        if status.loss is not None and status.loss < float("inf"):  # neither infinite nor no number
            self.losses.append(status.loss)
        if status.sample is not None:
            figure = f"validation {status.validation_bits_per_character:.3f} bits per character"
            self.say(f"{_place(status)}: {figure}, and it writes: {' '.join(status.sample.split())}")
        if not self.console.is_terminal and time.monotonic() - self.last_line >= _INTERVAL:
            self.last_line = time.monotonic()
            self.say(f"{_place(status)} · {' · '.join(f'{name} {value}' for name, value in _figures(status))}")

    def _panel(self) -> Group | Text:
        status = self.status
        if status is None:
            return Text("measuring …")
        table = Table.grid(padding=(0, 2))
        figures = _figures(status)
        for start in range(0, len(figures), 3):
            table.add_row(*[Text.assemble((f"{name} ", "dim"), value) for name, value in figures[start : start + 3]])
        head = Table.grid(padding=(0, 2))
        head.add_row(_place(status), ProgressBar(total=1.0, completed=min(1.0, status.fraction), width=40))
        curve = Text.assemble(("loss ", "dim"), sparkline(self.losses, _CURVE))
        return Group(head, table, curve)


class Lines:
    """Fine-tuning: one line that is written over on a terminal, elsewhere a plain one every ten seconds."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self.last_line = time.monotonic()
        self._open = False  # whether the cursor stands on a line that is written over

    def say(self, line: str) -> None:
        """A line that stays, below the figures."""
        if self._open:
            self.console.print()
            self._open = False
        self.console.print(line, markup=False, soft_wrap=True)

    def report(self, step: int, steps: int, figures: Mapping[str, float]) -> None:
        """Take a step's figures."""
        terminal = self.console.is_terminal
        if time.monotonic() - self.last_line < (0.1 if terminal else _INTERVAL) and step < steps:
            return
        self.last_line = time.monotonic()
        shown = " · ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in figures.items())
        line = f"step {step}/{steps} · {shown}"
        width = self.console.width - 1
        self._open = terminal and step < steps
        self.console.print(
            line[:width].ljust(width) if terminal else line,
            end="\r" if self._open else "\n",
            markup=False,
            soft_wrap=True,
        )


class CharacterBar:
    """Progress over a known number of characters; nothing where there is no terminal and the work is short."""

    def __enter__(self) -> Callable[[int, int], None]:
        console = Console(stderr=True)
        self.progress = Progress(console=console, transient=True, disable=not console.is_terminal)
        self.progress.start()
        task = self.progress.add_task("tokenizing", total=None)
        last = time.monotonic()

        def report(done: int, total: int) -> None:
            nonlocal last
            self.progress.update(task, completed=done, total=total)
            if not console.is_terminal and time.monotonic() - last >= 10:
                last = time.monotonic()
                print(f"tokenizing: {done / total:.0%} of {total:,} characters", file=sys.stderr)

        return report

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()


def conclude(result: Result, out: str) -> None:
    """Print how a run of pretrain ended."""
    if not result.finished:
        of = f" of {result.total_steps}" if result.total_steps else ""
        saved = f"; the model is saved in {out}" if result.step else ""
        print(f"stopped after step {result.step}{of}{saved}. The same command again goes on.")
    elif result.validation_bits_per_character is None:
        print(f"already finished: {result.step} steps. The model is in {out}; another run needs another --out.")
    else:
        print(f"finished: {result.step} steps in {result.seconds / 60:.1f} minutes. The model is in {out}")
        print(f"validation: {result.validation_bits_per_character:.3f} bits per character")


def _place(status: Status) -> str:
    return f"step {status.step}/{status.total_steps}" if status.total_steps else f"step {status.step}"


def _figures(status: Status) -> list[tuple[str, str]]:
    """Names and values, as they are shown."""

    def shown(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    figures = [
        ("loss", shown(status.loss, ".3f")),
        ("bits/character", shown(status.bits_per_character, ".3f")),
        ("bits/byte", shown(status.bits_per_byte, ".3f")),
        ("tokens/s", format(status.tokens_per_second, ",.0f")),
        ("MFU", format(status.mfu, ".0%")),
        ("memory", "–" if status.memory is None else f"{status.memory / 1e9:.2f} GB"),
        ("gradient norm", shown(status.gradient_norm, ".2f")),
        ("rate", format(status.learning_rate, ".2e")),
        ("left", "–" if status.seconds_left is None else duration(status.seconds_left)),
    ]
    return figures
