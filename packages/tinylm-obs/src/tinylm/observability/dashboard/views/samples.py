"""tinylm-obs · the view of samples: the texts that runs have logged, the newest first, with their step."""

from nicegui import ui

from ..board import Board, colour
from ..parts import card, empty, text

_MOST = 60


class Samples:
    """A card per text, of all chosen runs."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self._shown: object = None

    def build(self) -> None:
        self._body = ui.element("div").classes("tl-stack")

    async def update(self) -> None:
        found = [
            (step, name, words, run)
            for run in self.board.runs()
            for name, texts in run.metrics.texts.items()
            if not name.startswith("artifact/")
            for step, words in list(texts.items())
        ]
        found.sort(key=lambda one: -one[0])
        shown = [(step, name, words, run.label) for step, name, words, run in found[:_MOST]]
        if shown == self._shown:
            return
        self._shown = shown
        self._body.clear()
        with self._body:
            if not found and self.board.runs():
                empty("No text samples yet", 'The trainer logs one at each validation; run.log({"sample": text}) does.')
            for step, name, words, run in found[:_MOST]:
                with card():
                    with text("h2", f"{name}, step {step:,}"), text("small", run.label):
                        pass
                    text("div", words, "tl-code").style(f"border-left: 3px solid {colour(run)}")
            if len(found) > _MOST:
                text("p", f"and {len(found) - _MOST} older ones", "tl-label")
