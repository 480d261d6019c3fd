"""tinylm-obs · the view of samples: the texts that runs have logged, the newest first, with their step."""

from ..board import colour
from ..parts import card, empty, text
from ..store import Run
from .view import View

_MOST = 60


class Samples(View):
    """A card per text, of all chosen runs."""

    def state(self) -> object:
        return [(run.label, *sample) for run, *sample in self._found()]

    def _found(self) -> list[tuple[Run, int, str, str]]:
        """Run, step, name and text, the newest first."""
        found = []
        for run in self.board.runs():
            with run.lock:
                for name, texts in run.metrics.texts.items():
                    if not name.startswith("artifact/"):
                        found += [(run, step, name, words) for step, words in texts.items()]
        return sorted(found, key=lambda one: -one[1])

    def make(self) -> None:
        found = self._found()
        if not found:
            empty("No text samples yet", 'The trainer logs one at each validation; run.log({"sample": text}) does.')
        for run, step, name, words in found[:_MOST]:
            with card():
                with text("h2", f"{name}, step {step:,}"):
                    text("small", run.label)
                text("div", words, "tl-code").style(f"border-left: 3px solid {colour(run)}")
        if len(found) > _MOST:
            text("p", f"and {len(found) - _MOST} older ones", "tl-label")
