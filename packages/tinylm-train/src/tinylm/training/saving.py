"""A run's step folders as its loop sees them: save beside the training, and take up the newest.

Not here: the files (checkpoint.py), the copy (snapshot.py), the thread (_writer.py), when to save (trainer.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tinylm.training import checkpoint
from tinylm.training._errors import TrainingError
from tinylm.training._setup import Setup
from tinylm.training._writer import Writer
from tinylm.training.checkpoint import Progress
from tinylm.training.continuing import continued
from tinylm.training.snapshot import Snapshot


class Saving:
    """The checkpoints of one run. Over many processes, all call each method together."""

    def __init__(self, out: Path, setup: Setup, say: Callable[[str], None]) -> None:
        self.out, self.setup, self.say = out, setup, say
        self.strategy = setup.strategy
        self.writer = Writer()
        self._snapshot = Snapshot(setup.model, self.strategy.is_writer)

    def save(self, progress: Progress) -> None:
        """Copy the run's state, and let it be written while training goes on."""
        self.writer.wait()  # the one before still uses the copy
        setup, snapshot, sharders = self.setup, self._snapshot, self.strategy.sharders
        if not self.strategy.is_writer and sharders is None:
            return
        snapshot.take(setup.model, setup.optimizers, setup.average.weights if setup.average else None)
        out, data, keep = self.out, setup.train_data, setup.config.keep
        if self.strategy.is_writer:
            self.writer.submit(lambda check: checkpoint.write(out, snapshot, progress, data, keep, check, sharders))
        elif sharders is not None:
            self.writer.submit(lambda check: checkpoint.write_part(snapshot, sharders))

    def settled(self) -> None:
        """Nothing is being written, by any process."""
        self.writer.wait()
        self.strategy.gather(None)

    def found(self) -> tuple[Path, Progress] | None:
        """The newest step folder and its progress, with accepted changes; None if there is none. Nothing is changed.

        Raises TrainingError for what this run may not go on from or write over.
        """
        setup, found = self.setup, self.strategy.first(lambda: checkpoint.newest(self.out, self.say))
        if found is not None:
            folder, progress = found
            data = setup.train_data.directory
            return folder, continued(progress, setup.progress, setup.config, data, self.say)
        if (self.out / "model.safetensors").exists():
            raise TrainingError(f"{self.out} holds a model but no steps/ to continue from: choose another --out")
        for name, what in (("data.json", "a data set"), ("tokenizer.json", "a tokenizer")):
            if (self.out / name).exists():  # a model written beside it would be neither
                raise TrainingError(f"{self.out} holds {what}: choose another --out")
        return None

    def resume(self) -> Progress | None:
        """Put what is found into model, optimisers and average; its progress, or None. Raises as `found`."""
        setup, found = self.setup, self.found()
        if found is None:
            return None
        folder, progress = found
        published = checkpoint.restore(folder, setup.model, setup.optimizers)
        if self.strategy.is_writer:
            checkpoint.publish_model(folder, self.out)
        if setup.average is not None:
            setup.average.weights = published
        return progress
