"""tinylm.inference: the models that the explorer shows: those given, and every saved step of their runs.

A point is one directory (or GGUF file) that can be opened; a training run has many. They are opened when first looked
at, in float32 on the CPU, where every number can be read. A run that goes on is looked at anew (`Library.look`). Not
here: what is looked at in a model (`reading.py`).
"""

import os
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tinylm.inference._errors import InferenceError
from tinylm.inference.checkpoint import Checkpoint, open_checkpoint

KEPT_BYTES = 1 << 30  # of opened models; the last one stays in any case


@dataclass(frozen=True)
class Point:
    """Something to open. `step`: of training; None for the newest model of a run, and for a model without a run.

    `run`: the directory of the run's metrics, or None. `model`: which of the given runs or models it belongs to.
    `written`: when its weights were, in nanoseconds; a newest model that was replaced is another point.
    """

    model: int
    name: str
    path: Path
    step: int | None
    run: Path | None
    written: int


class Library:
    """The points of the given paths. `listed`: the numbers of those that are there, those of one run together: its
    steps, and its newest model last. `points`: by number, also what is there no longer: a number is never given twice.
    """

    def __init__(self, paths: Iterable[str | os.PathLike[str]]) -> None:
        """InferenceError, or the model's or tokenizer's own error, where the newest model of a run does not open."""
        self._open: OrderedDict[Point, Checkpoint] = OrderedDict()
        self.points: list[Point] = []
        self._given: dict[Path, list[Path]] = {}  # what is given of one run stands together
        for path in map(Path, paths):
            self._given.setdefault(_root(path), []).append(path)
        self.look()
        for model in range(len(self._given)):
            self.open(self.newest(model))

    def look(self) -> None:
        """See what is there now: a run that goes on gains steps, loses old ones, and replaces its newest model."""
        numbers = {(point.model, point.path): number for number, point in enumerate(self.points)}
        self.listed: list[int] = []
        for model, (root, given) in enumerate(self._given.items()):
            for point in _points(model, root, given):
                number = numbers.setdefault((model, point.path), len(self.points))
                self.points[number : number + 1] = [point]
                self.listed.append(number)

    def of(self, model: int) -> list[int]:
        """The listed points of one of the given runs or models, in order."""
        return [number for number in self.listed if self.points[number].model == model]

    def newest(self, model: int) -> int:
        return self.of(model)[-1]

    def point(self, index: int) -> Point:
        if not 0 <= index < len(self.points):
            raise InferenceError(f"there is no model number {index} here: they are 0 to {len(self.points) - 1}")
        return self.points[index]

    def open(self, index: int) -> Checkpoint:
        """The model of a point. Raises what `open_checkpoint` raises."""
        point = self.point(index)
        if point not in self._open:
            self._open[point] = open_checkpoint(point.path, "float32", "cpu", skip_tokenizer_init=False)
        self._open.move_to_end(point)
        while len(self._open) > 1 and sum(map(_bytes, self._open.values())) > KEPT_BYTES:
            self._open.popitem(last=False)
        return self._open[point]


def _root(path: Path) -> Path:
    """The directory of the run that a path is of, or the path itself: RUN/steps/00000500 is of RUN."""
    whole = path.resolve()
    return whole.parent.parent if whole.parent.name == "steps" and whole.name.isdigit() else whole


def _points(model: int, root: Path, given: list[Path]) -> list[Point]:
    """The given steps of a run; all of them and the newest model where the run itself is given."""
    run = root / "run" if (root / "run" / "run.json").is_file() else None
    steps = {path.resolve(): path for path in given if path.resolve() != root}
    newest = [path for path in given if path.resolve() == root][:1]
    if newest and root.is_dir():
        steps |= {path.resolve(): path for path in (newest[0] / "steps").glob("*") if path.name.isdigit()}
    ordered = sorted(steps.values(), key=lambda path: int(path.resolve().name))
    return [
        *(Point(model, root.name, path, int(path.resolve().name), run, _written(path)) for path in ordered),
        *(Point(model, root.name, path, None, run, _written(path)) for path in newest),
    ]


def _written(path: Path) -> int:
    try:
        files = [path] if path.is_file() else path.glob("*.safetensors")
        return max((file.stat().st_mtime_ns for file in files), default=0)
    except OSError:  # there is nothing there, or no longer: who opens it says so
        return 0


def _bytes(checkpoint: Checkpoint) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in checkpoint.model.parameters())
