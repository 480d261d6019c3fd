"""tinylm-obs · the dashboard's page: header, list of runs, notices, and one view at a time.

It looks twice a second whether the store has something new, and redraws what is in view. It does NOT read files
(`store.py`). Next: `views/`.
"""

import asyncio
import json
import time
from pathlib import Path

from nicegui import events, ui

from .._facts import counted
from .._values import utf8
from .board import MOST, Board, colour
from .parts import empty, text
from .store import Run, Store
from .views.alerts import Alerts
from .views.curves import Curves
from .views.histograms import Histograms
from .views.layers import Layers
from .views.machine import Machine
from .views.profiles import Profiles
from .views.samples import Samples
from .views.settings import Settings
from .views.view import View

VIEWS: dict[str, type[View]] = {
    "Curves": Curves,
    "Layers": Layers,
    "Histograms": Histograms,
    "Samples": Samples,
    "Alerts": Alerts,
    "Machine": Machine,
    "Profiles": Profiles,
    "Settings": Settings,
}
_TICK = 0.5
_AT_ONCE = 1 << 18  # bytes of a file that are read before the page is sent
_KEYS = {
    "1 – 8": "a view",
    "x": "steps, time, tokens",
    "y": "logarithmic y axis",
    "+ and −": "more or less smoothing",
    "0": "whole x axis",
    "r": "show or hide the runs",
    "d": "light or dark",
    "?": "this list",
    "Tab, arrows, space": "go through the controls, and use them",
    "Ctrl + wheel, pinch": "zoom into a curve",
}
_DARK = "const dark = localStorage.getItem('tinylm-dark'); if (dark !== null) Quasar.Dark.set(dark === 'true');"
_TOGGLE = "Quasar.Dark.toggle(); localStorage.setItem('tinylm-dark', Quasar.Dark.isActive);"


async def build(store: Store, boards: set[Board]) -> None:
    """One visitor's page, with what can be shown at once already in it."""
    client = ui.context.client
    board = Board(store)
    board.choose_at_first()
    boards.add(board)
    client.on_delete(lambda: boards.discard(board))
    wanted = client.request.query_params.get("view", "").capitalize()
    await asyncio.to_thread(store.poll, board.chosen, _AT_ONCE)
    await Page(board, wanted if wanted in VIEWS else next(iter(VIEWS))).build()


class Page:
    """The frame around a view."""

    def __init__(self, board: Board, view: str) -> None:
        self.board, self.store = board, board.store
        self._name = view
        self._seen = -1
        self._known = set(self.store.runs)
        self._listed: list[str] | None = None
        self._facts: dict[str, tuple[ui.label, ui.label]] = {}
        self._noticed: list[str] | None = None
        self._named: list[tuple[str, str]] = []
        self._busy = False

    async def build(self) -> None:
        ui.add_css(Path(__file__).with_name("style.css").read_text(encoding="utf-8"))
        ui.colors(primary="#3558c0")
        ui.add_body_html(f"<script>window.addEventListener('load', () => {{ {_DARK} }})</script>")
        with ui.header(), ui.element("div").classes("tl-bar"):
            self._header()
        with ui.left_drawer(value=False).props("show-if-above width=270 breakpoint=900") as self._drawer:
            self._runs = ui.element("nav").classes("tl-runs").props('aria-label="Runs"')
        with ui.element("main").classes("tl-page"):
            self._tabs = ui.tabs()
            self._tabs.props("align=left inline-label no-caps outside-arrows mobile-arrows").classes("tl-tabs")
            with self._tabs:
                tabs = {name: ui.tab(name) for name in VIEWS}
            self._tabs.value = tabs[self._name]
            self._tabs.on_value_change(
                lambda event: self._show(str(event.value))
            )  # not for the first: it is built below
            self._legend = ui.element("div").classes("tl-legend")
            self._notices = ui.element("div").classes("w-full").props("role=status")
            self._content = ui.element("div").classes("w-full")
        self._help = self._make_help()
        ui.keyboard(self._key, ignore=["input", "select", "textarea"], repeating=False)
        self._build_view()
        await self._redraw()
        ui.timer(_TICK, self._tick)

    def _header(self) -> None:
        menu = ui.button(icon="menu", on_click=lambda: self._drawer.toggle())
        menu.props('flat round dense color=inherit aria-label="Show or hide the runs"')
        with text("h1", "TinyLM "):
            text("span", utf8(str(self.store.directory)))
        ui.element("div").classes("tl-space")
        self._pulse = text("span", "", "tl-label")
        for icon, label, act in (
            ("contrast", "Light or dark", lambda: ui.run_javascript(_TOGGLE)),
            ("keyboard", "Keyboard shortcuts", lambda: self._help.open()),
        ):
            ui.button(icon=icon, on_click=act).props(f'flat round dense color=inherit aria-label="{label}"')

    def _make_help(self) -> ui.dialog:
        with ui.dialog() as dialog, ui.card().classes("q-pa-lg"):
            text("h2", "Keyboard")
            for keys, what in _KEYS.items():
                with ui.row().classes("items-center no-wrap"):
                    text("kbd", keys)
                    text("span", what)
            ui.button("Close", on_click=dialog.close).props("flat")
        return dialog

    async def _key(self, event: events.KeyEventArguments) -> None:
        if not event.action.keydown or event.modifiers.ctrl or event.modifiers.alt or event.modifiers.meta:
            return
        key = str(event.key)
        if key.isdigit() and 0 < int(key) <= len(VIEWS):
            self._tabs.set_value(list(VIEWS)[int(key) - 1])
        elif key == "?":
            self._help.open()
        elif key == "d":
            ui.run_javascript(_TOGGLE)
        elif key == "r":
            self._drawer.toggle()
        else:
            await self._view.key(key)

    async def _show(self, name: str) -> None:
        self._name = name
        ui.run_javascript(f"history.replaceState(null, '', '?view=' + {json.dumps(name.lower())})")
        self._build_view()
        await self._redraw()

    def _build_view(self) -> None:
        self._content.clear()
        self._view = VIEWS[self._name](self.board)
        with self._content:
            self._view.build()

    async def _tick(self) -> None:
        if self._seen == self.store.version or self._busy:
            return
        self._busy = True
        try:
            self._seen, began = self.store.version, time.thread_time()
            await self._redraw()
            rest = 3 * (time.thread_time() - began)  # reading goes before drawing, and the trainer before both
            await asyncio.sleep(max(min(rest, 5.0), 2.0 if self._behind() else 0.0))
        finally:
            self._busy = False

    def _behind(self) -> int:
        return sum(run.behind for run in self.board.runs())

    async def _redraw(self) -> None:
        self._choose_new_runs()
        self._list_runs()
        self._name_colours()
        self._notice()
        behind = self._behind()
        self._pulse.set_text(f"reading, {behind / 1e6:.0f} MB to go" if behind else "")
        await self._view.update()

    def _choose_new_runs(self) -> None:
        """A run that appears while the page is open is shown, as long as there are colours."""
        for label, run in self.store.runs.items():
            if label not in self._known and run.record and len(self.board.chosen) < MOST:
                self.board.chosen.add(label)
        self._known = {label for label, run in self.store.runs.items() if run.record}

    def _list_runs(self) -> None:
        labels = list(self.store.runs)
        if labels != self._listed:
            self._listed, self._facts = labels, {}
            self._runs.clear()
            with self._runs:
                self._list_head()
                for run in self.store.runs.values():
                    self._list_run(run)
        for label, run in self.store.runs.items():
            dot, facts = self._facts[label]
            facts.set_text(_facts(run))
            dot.set_text(run.status)
            dot.classes(replace={"running": "tl-live", "finished": ""}.get(run.status, "tl-bad"))

    def _name_colours(self) -> None:
        """Which colour is which run, for a page too narrow for the list of runs."""
        named = [(run.label, colour(run)) for run in self.board.runs()]
        if named == self._named:
            return
        self._named = named
        self._legend.clear()
        with self._legend:
            for label, of in named if len(named) > 1 else ():
                with ui.element("span"):
                    text("span", "", "tl-dot").style(f"background: {of}")
                    text("span", label)

    def _list_head(self) -> None:
        with ui.row().classes("items-center no-wrap w-full q-px-sm"):
            text("h2", counted(len(self.store.runs), "run") if self.store.runs else "No runs yet")
            ui.element("div").classes("tl-space")
            for word, chosen in (("all", True), ("none", False)) if self.store.runs else ():
                button = ui.button(word, on_click=lambda chosen=chosen: self._choose_all(chosen))
                button.props(f'flat dense size=sm aria-label="Choose {word} of the runs"')

    def _list_run(self, run: Run) -> None:
        with ui.element("div").classes("tl-run"):
            box = ui.checkbox(run.label, value=run.label in self.board.chosen)
            box.on_value_change(lambda event: self._choose(run.label, bool(event.value)))
            box.style(f"--q-primary: {colour(run)}; color: var(--ink)")
            with ui.element("div").classes("tl-facts"):
                dot = text("span", "")
                facts = text("span", "")
        self._facts[run.label] = (dot, facts)

    async def _choose(self, label: str, chosen: bool) -> None:
        (self.board.chosen.add if chosen else self.board.chosen.discard)(label)
        await self._redraw()

    async def _choose_all(self, chosen: bool) -> None:
        self.board.chosen = set(self.store.runs) if chosen else set()
        self._listed = None
        await self._redraw()

    def _notice(self) -> None:
        found = [run.problem for run in self.store.runs.values() if run.problem] + self.store.strays
        found += [note for run in self.board.runs() for note in run.notes]
        state = [*found, str(bool(self.store.runs)), str(bool(self.board.chosen))]
        if state == self._noticed:
            return
        self._noticed = state
        self._notices.clear()
        with self._notices:
            for words in found[:8]:
                text("div", words, "tl-notice")
            if len(found) > 8:
                text("div", f"and {len(found) - 8} more", "tl-notice")
            if not self.store.runs:
                empty(
                    f"No runs in {self.store.directory} yet",
                    "A run appears here as soon as it starts. From Python: obs.init(directory=...). With the trainer:",
                    f"tinylm-train pretrain --data DATA_DIR --out {self.store.directory / 'first'} --minutes 3",
                )
            elif not self.board.chosen:
                empty("No run is chosen", "Choose one or more in the list of runs.")


def _facts(run: Run) -> str:
    """Step and loss of a run, in a few words."""
    steps, loss = run.metrics.steps, run.metrics.curves.get("loss")
    parts = [f"step {steps[-1]:,}"] if steps else []
    if loss is not None and loss.values:
        parts.append(f"loss {loss.values[-1]:.4g}")
    if run.alerts:
        parts.append(counted(len(run.alerts), "alert"))
    return "".join(f" · {part}" for part in parts)
