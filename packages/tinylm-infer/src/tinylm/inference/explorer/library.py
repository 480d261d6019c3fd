"""tinylm.inference: the models that the explorer shows: those given, and every saved step of their runs.

A point is one directory (or GGUF file) that can be opened; a training run has many. They are opened when first looked
at, in float32 on the CPU, where every number can be read. Not here: what is looked at (`reading.py`).
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

    `run`: the directory of the run's metrics, or None. `model`: which of the given paths it belongs to.
    """

    model: int
    name: str
    path: Path
    step: int | None
    run: Path | None


class Library:
    """The points of the given paths in order, each path's steps first and its newest model last."""

    def __init__(self, paths: Iterable[str | os.PathLike[str]]) -> None:
        """InferenceError, or the model's or tokenizer's own error, where the newest model of a path does not open."""
        self.points: list[Point] = []
        self._open: OrderedDict[int, Checkpoint] = OrderedDict()
        for model, path in enumerate(map(Path, paths)):
            self.points += _points(model, path)
            self.open(len(self.points) - 1)

    def point(self, index: int) -> Point:
        if not 0 <= index < len(self.points):
            raise InferenceError(f"there is no model number {index} here: they are 0 to {len(self.points) - 1}")
        return self.points[index]

    def open(self, index: int) -> Checkpoint:
        """The model of a point. Raises what `open_checkpoint` raises."""
        path = self.point(index).path
        if index not in self._open:
            self._open[index] = open_checkpoint(path, "float32", "cpu", skip_tokenizer_init=False)
        self._open.move_to_end(index)
        while len(self._open) > 1 and sum(map(_bytes, self._open.values())) > KEPT_BYTES:
            self._open.popitem(last=False)
        return self._open[index]


def _points(model: int, path: Path) -> list[Point]:
    run = path / "run" if (path / "run" / "run.json").is_file() else None
    name = path.resolve().name
    steps = [folder for folder in (path / "steps").glob("*") if folder.name.isdigit()] if path.is_dir() else []
    if path.parent.name == "steps" and path.name.isdigit():  # a step given by itself
        root = path.resolve().parent.parent
        run = root / "run" if (root / "run" / "run.json").is_file() else None
        return [Point(model, f"{root.name}, step {int(path.name)}", path, int(path.name), run)]
    ordered = sorted(steps, key=lambda folder: int(folder.name))
    return [
        *(Point(model, name, folder, int(folder.name), run) for folder in ordered),
        Point(model, name, path, None, run),
    ]


def _bytes(checkpoint: Checkpoint) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in checkpoint.model.parameters())
