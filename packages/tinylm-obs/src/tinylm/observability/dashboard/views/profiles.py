"""tinylm-obs · the view of profiles: a run's own profile.html, and its operations on the machine's roofline.

`obs.profile(run.profile_directory / "step")` or `tinylm-obs profile --out RUN/profile/step -- COMMAND` make them.
"""

import json
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nicegui import ui

from ..charts import roofline
from ..parts import card, chart, choice, empty, text
from ..server import profile_pages
from ..store import Run
from .view import OneRun


class Profiles(OneRun):
    """One profile of one run."""

    def of(self, run: Run) -> object:
        return self._pages(run), self.board.kept.get("profile")

    def has(self, run: Run) -> bool:
        return bool(self._pages(run))

    def _pages(self, run: Run) -> dict[str, Path]:
        return {path.relative_to(run.path).as_posix(): path for path in profile_pages(run.path)}

    def make_run(self, run: Run) -> None:
        pages = self._pages(run)
        kept = self.board.kept.get("profile")
        chosen = kept if kept in pages else next(iter(pages))
        with self._controls:
            choice("Profile", {name: name for name in pages}, chosen, lambda name: self.keep("profile", name))
        self._show(run, chosen, pages[chosen])

    def make_empty(self, run: Run) -> None:
        out = shlex.quote(str(run.path / "profile"))
        command = shlex.join(run.command) or "PROGRAM"
        empty(
            "No profile of this run",
            "A profile says where the time and the memory go. Take one of any command, with --out in the run:",
            f"tinylm-obs profile --out {out} -- {command}",
        )

    def _show(self, run: Run, name: str, path: Path) -> None:
        results = _results(path)
        if isinstance(results, str):
            text("div", results, "tl-notice")
        elif results.get("roofline"):
            try:
                options = roofline(results["roofline"], results["operations"])
            except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
                text(
                    "div",
                    f"no roofline: wanted the figures of a profile in {path.with_name('profile.json')}",
                    "tl-notice",
                )
            else:
                with card("Roofline: operations against this machine's measured limits"):
                    chart(options, "Operations on the roofline", 380)
        address = f"/profile/{quote(run.label)}?page={quote(name)}"
        with ui.row().classes("items-center w-full"):
            ui.link("Open the profile alone", address, new_tab=True)
        frame = ui.element("iframe").classes("tl-frame")
        frame.props["src"], frame.props["title"] = address, f"Profile {name}"


def _results(page: Path) -> dict[str, Any] | str:
    """profile.json beside a profile.html, or what is wrong with it in words."""
    path = page.with_name("profile.json")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"no roofline: wanted the figures in {path}, got {getattr(error, 'strerror', None) or error}"
    return found if isinstance(found, dict) else f"no roofline: wanted an object in {path}"
