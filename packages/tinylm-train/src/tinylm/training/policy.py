"""What a run does about a step that has gone wrong: stop, leave its update out, or go back and past its batch.

Not here: telling that it has gone wrong, and in which layer (divergence.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tinylm.training import checkpoint
from tinylm.training._errors import TrainingError

_MOST_SKIPPED = 10  # one after the other: then it is not the batch
_MOST_ROLLBACKS = 10


class RollBack(Exception):
    """To the last checkpoint, and pass over the batch of step `step`."""

    def __init__(self, step: int) -> None:
        super().__init__(f"step {step}")
        self.step = step


class Diverged(TrainingError):
    """The run went wrong, and there is no going on. sign: what was seen, where; the message says what to do, too."""

    def __init__(self, sign: str, advice: str) -> None:
        super().__init__(f"{sign}: the run has diverged. {advice}")
        self.sign = sign


class Policy:
    """`--on-divergence`, and how often it has been called upon.

    settled: waits until no checkpoint is being written.
    """

    def __init__(self, choice: str, out: Path, say: Callable[[str], None], settled: Callable[[], None]) -> None:
        self.choice, self.out, self.say, self._settled = choice, out, say, settled
        self._skipped_in_a_row = 0
        self._rollbacks = 0

    def sound(self) -> None:
        """A step went well."""
        self._skipped_in_a_row = 0

    def diverged(self, sign: str, step: int) -> None:
        """`sign`: what was seen, where. Returns when the update is to be left out; raises RollBack or Diverged."""
        self._skipped_in_a_row += 1
        if self.choice == "skip" and self._skipped_in_a_row <= _MOST_SKIPPED:
            self.say(f"{sign}: its update is skipped")
            return
        self._settled()  # the checkpoint to go back to may be the one that is being written
        if self.choice == "rollback" and checkpoint.step_folders(self.out) and self._rollbacks < _MOST_ROLLBACKS:
            self._rollbacks += 1
            self.say(f"{sign}: back to the last checkpoint, and past this batch")
            raise RollBack(step)
        raise self.ended(sign)

    def ended(self, sign: str) -> Diverged:
        """What to raise when there is no going on."""
        self._settled()
        stands = bool(checkpoint.step_folders(self.out))
        left = f"The last checkpoint in {self.out} still stands" if stands else "No checkpoint had been saved"
        past = ", or go past such steps with --on-divergence skip or rollback" if self.choice == "stop" else ""
        return Diverged(
            sign,
            f"{left}; start again in another --out with a lower --learning-rate or --embedding-learning-rate{past}",
        )
