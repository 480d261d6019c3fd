"""One step of a run: draw a batch, take its gradient, look whether it is sound, and only then move the weights.

What is not a number, or far outside what came before, names its layer, and the policy says what then. Not here: the
gradient and the update (step.py), what counts as wrong (divergence.py), what is done about it (policy.py), the run
around the step (trainer.py).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from torch import Tensor

from tinylm.training._setup import Setup
from tinylm.training._watching import Watching
from tinylm.training.checkpoint import Progress
from tinylm.training.data import Loader
from tinylm.training.divergence import WINDOW, guilty_module, guilty_parameter, not_a_number, spike
from tinylm.training.policy import Policy
from tinylm.training.schedule import learning_rate_factor
from tinylm.training.step import Gradient


class CheckedStep:
    """Over many processes, all take their steps together."""

    def __init__(self, setup: Setup, policy: Policy, watching: Watching) -> None:
        self._setup, self._policy, self._watching = setup, policy, watching
        self._step = setup.step

    def take(self, loader: Loader, progress: Progress) -> tuple[dict[str, Any], Progress]:
        """One batch, and its update unless something is wrong with it.

        Returns what is worth logging, "skipped" with the reason where there was no update, and the progress after it.
        Raises RollBack or TrainingError where the policy says so.
        """
        config, number = self._setup.config, progress.step + 1
        factor = learning_rate_factor(
            progress.step, progress.total_steps, config.warmup_steps, config.decay_fraction, config.schedule
        )
        inputs, targets = loader.next()
        row: dict[str, Any] = {
            "loss": None,
            "learning_rate": (config.learning_rate or 0.0) * factor,
            "tokens": inputs.numel() * self._setup.strategy.data_ranks,
        }
        done = dataclasses.replace(progress, step=number, loader=loader.state)
        if number in progress.skipped:
            return row | {"skipped": "this batch diverged, and the run was rolled back"}, done
        self._watching.batch(inputs)
        found = self._step.gradient(inputs, targets)
        data, bits = self._setup.train_data, found.loss / math.log(2)
        row |= {
            "loss": found.loss,
            "bits_per_character": bits * data.tokens / data.characters,
            "bits_per_byte": bits / self._setup.bytes_per_token if self._setup.bytes_per_token else None,
            "gradient_norm": found.norm,
        }
        if self._step.scale is not None:
            row["loss_scale"] = self._step.scale.scale
        reason = self._reason_to_skip(found, progress, inputs, targets)
        if reason is not None:
            self._step.discard()
            return row | {"skipped": reason}, self._with_scale(done)
        self._step.update(factor)
        if self._setup.average is not None:
            self._setup.average.update(number)
        if self._step.scale is not None:
            self._step.scale.grow()
        self._policy.sound()
        losses, norms = (*progress.losses, found.loss)[-WINDOW:], (*progress.norms, found.norm)[-WINDOW:]
        return row, dataclasses.replace(self._with_scale(done), losses=losses, norms=norms)

    def _reason_to_skip(self, found: Gradient, progress: Progress, inputs: Tensor, targets: Tensor) -> str | None:
        """Why there is to be no update, or None."""
        scale = self._step.scale
        if scale is not None and math.isfinite(found.loss) and not math.isfinite(found.norm):
            scale.shrink()
            if not scale.exhausted:
                return "the gradient overflowed float16: the loss is scaled down"
        if not found.targets:
            return "no target of this batch counts: all are masked"
        wrong = not_a_number(found.loss, found.norm) or spike(
            found.loss, found.norm, progress.losses, progress.norms, self._setup.config.spike
        )
        return self._diverged(wrong, found, progress.step + 1, inputs, targets) if wrong else None

    def _diverged(self, sign: str, found: Gradient, number: int, inputs: Tensor, targets: Tensor) -> str:
        """Name the layer and do what the policy says. Returns why the update is not made."""
        step, model, strategy = self._step, self._setup.model, self._setup.strategy
        where = guilty_module(model, lambda: step.forward(inputs, targets)) or guilty_parameter(model)
        where = next((name for name in strategy.gather(where) if name), None)  # some process met it
        step.discard()
        kind = "nan" if not_a_number(found.loss, found.norm) else "spike"
        self._watching.diverged(kind, where, sign, number)
        sign = f"{sign} at step {number}, first in {where}" if where else f"{sign} at step {number}"
        self._policy.diverged(sign, number)
        return sign

    def _with_scale(self, progress: Progress) -> Progress:
        scale = self._step.scale
        return dataclasses.replace(progress, scale=(scale.scale, scale.good) if scale else None)
