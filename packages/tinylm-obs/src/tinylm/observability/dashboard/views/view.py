"""tinylm-obs · what the dashboard's views have in common: when they are made, filled, and left alone.

A view says in `state` what decides which elements it has; `make` makes them, `fill` gives them their figures. `update`
calls these when they are due. It does NOT draw. Next: the views beside this file; `page.py` shows them.
"""

import asyncio
from typing import Any

from nicegui import ui

from ..board import Board
from ..parts import choice
from ..store import Run


class View:
    """One view of one page: controls above, a body below."""

    body = "tl-stack"  # the class that lays out the body

    def __init__(self, board: Board) -> None:
        self.board = board
        self._made: object = None
        self._asked, self._busy = False, False

    def build(self) -> None:
        """Make the empty places for controls and body, where the page wants them."""
        self._controls = ui.element("div").classes("tl-controls")
        self._body = ui.element("div").classes(self.body)

    async def update(self) -> None:
        """Show what has arrived or was chosen since. One at a time: of the calls that come while one is at work, one
        more round is made for all. A view that is no longer on the page does nothing, and without runs it is empty."""
        self._asked = True
        if self._busy:
            return
        self._busy = True
        try:
            while self._asked and not self._body.is_deleted:
                self._asked = False
                self._make_anew()
                if self._made is not None:
                    await self.fill()
        finally:
            self._busy = False

    def _make_anew(self) -> None:
        state = self.state() if self.board.runs() else None
        if state == self._made:
            return
        self._made = state
        self._controls.clear()
        self._body.clear()
        with self._body:
            if state is not None:
                self.make()

    async def turn(self) -> bool:
        """Between two charts others get their turn; whether there is still a reason to go on afterwards."""
        await asyncio.sleep(0)
        return not self._asked and not self._body.is_deleted

    def state(self) -> object:
        """What the elements depend on, where a run is chosen: they are made anew when it changes."""
        raise NotImplementedError

    def make(self) -> None:
        """Make the elements, in the body and, `with self._controls`, above it."""
        raise NotImplementedError

    async def fill(self) -> None:
        """Give the elements their figures; nothing to do for a view whose elements hold them."""

    async def key(self, key: str) -> None:
        """A key was pressed that is no shortcut of the page."""


class OneRun(View):
    """A view of one of the chosen runs, with a select for it."""

    def state(self) -> object:
        return self.run.label, [one.label for one in self.board.runs()], self.of(self.run)

    def has(self, run: Run) -> bool:
        """Whether there is anything of this run to see."""
        raise NotImplementedError

    def of(self, run: Run) -> object:
        """What the elements depend on besides the names of the runs."""
        raise NotImplementedError

    @property
    def run(self) -> Run:
        """The run that is shown, where there is one: the one asked for, else the newest that has anything to show."""
        runs = self.board.newest_first()
        asked = [run for run in runs if run.label == self.board.focus]
        return next(iter([*asked, *filter(self.has, runs), *runs]))

    def make(self) -> None:
        with self._controls:
            choice("Run", {one.label: one.label for one in self.board.runs()}, self.run.label, self._focus)
        (self.make_run if self.has(self.run) else self.make_empty)(self.run)

    def make_run(self, run: Run) -> None:
        """Make the elements for a run that has something to show."""
        raise NotImplementedError

    def make_empty(self, run: Run) -> None:
        """Say what is missing, and what logs it."""
        raise NotImplementedError

    async def _focus(self, label: str) -> None:
        self.board.focus = label
        await self.update()

    async def keep(self, what: str, value: Any) -> None:
        """Remember what was chosen, while other views are looked at too."""
        self.board.kept[what] = value
        await self.update()
