"""tinylm-obs · the view of configurations: what differs between the chosen runs, and the command that repeats each.

`..summary` finds the differences. Not here: what came of them (`curves.py`).
"""

import json
import shlex
from typing import Any

from nicegui import ui

from ..._summary import differences, flat
from ..board import colour
from ..parts import card, code, table, text
from ..store import Run
from .view import View


class Settings(View):
    """The difference, then a card per run."""

    def state(self) -> object:
        return [(run.label, run.record) for run in self.board.runs()]

    def make(self) -> None:
        runs = self.board.runs()
        if len(runs) > 1:
            with card("What differs", "tl-card tl-wide"):
                rows = [[name, *map(_said, values)] for name, values in differences([_config(run) for run in runs])]
                if rows:
                    table(["option", *[run.label for run in runs]], rows)
                else:
                    text("p", "Nothing: the configurations are the same.", "tl-label")
        for run in runs:
            self._run(run)

    def _run(self, run: Run) -> None:
        record = run.record or {}
        with card():
            with text("h2", ""):
                text("span", "", "tl-dot").style(f"background: {colour(run)}")
                text("span", run.label)
            if command := run.command:
                text("p", "The command that made it" + _at(record), "tl-label")
                code(shlex.join(command))
            if (run.path / "config.toml").is_file() and command:
                text("p", "The same run again, with every option as it was", "tl-label")
                verb = 4 if command[1:2] == ["-m"] else 2  # tinylm-train pretrain, python -m tinylm.training pretrain
                again = [*command[:verb], "--config", str(run.path / "config.toml")]
                code(f"{shlex.join(again)} --out ANOTHER_DIR")
            facts = {"machine": record.get("machine"), "versions": record.get("versions")}
            with ui.expansion("Configuration, machine and versions").props("dense").classes("w-full"):
                everything = flat(_config(run)) | flat({name: value for name, value in facts.items() if value})
                table(["option", "value"], [[name, _said(value)] for name, value in everything.items()])


def _config(run: Run) -> dict[str, Any]:
    return dict((run.record or {})["config"])


def _at(record: dict[str, Any]) -> str:
    commit = record.get("commit")
    return f", at commit {str(commit)[:12]}" if commit else ""


def _said(value: object) -> str:
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
