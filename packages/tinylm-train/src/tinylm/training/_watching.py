"""What a run is watched with: figures per layer every hundred steps, and alerts that name the layer and the step.

Activations and attention come from a forward pass of their own on a part of the batch, so that compiled, checkpointed
and wrapped training passes stay as they are. Over several processes nothing is watched: each holds a part. Not here:
what is measured (tinylm.observability), what to do about a divergence (trainer.py).
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator
from typing import Any, Self

import torch

from tinylm import observability as obs
from tinylm.training._setup import Setup
from tinylm.training.divergence import WINDOW, no_better_than_guessing

_EVERY = 100
_ROWS, _TOKENS = 2, 256  # of the batch: an attention pattern takes the square of the tokens


@contextlib.contextmanager
def sampled(run: obs.Run) -> Iterator[None]:
    """The machine is sampled into the run, where psutil is installed (the extra [system] of tinylm-obs)."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(obs.ObservabilityError):
            stack.enter_context(obs.sample_system(run))
        yield


class Watching:
    """The watch of one attempt."""

    def __init__(self, setup: Setup, run: obs.Run) -> None:
        self._setup, self._run = setup, run
        self._losses: list[float] = []  # until the model is seen to learn, or said not to
        self._learns = False
        self._warmed_up = False
        self._watch: obs.Watch | None = None
        if setup.strategy.world_size == 1:
            self._watch = obs.watch(setup.model, run, setup.optimizers.values(), _EVERY, activations=False)

    def begin(self, step: int) -> None:
        """A step begins, the first being 1."""
        self._warmed_up = step > self._setup.config.warmup_steps
        if self._watch is not None:
            self._watch.begin(step)

    def batch(self, inputs: torch.Tensor) -> None:
        """Look at how the model takes a part of inputs (B, T), on a step that is due."""
        if self._watch is None or not self._watch.due:
            return
        taps: dict[str, Any] = {}

        def forward() -> None:
            with self._setup.step.autocast():
                self._setup.model.hidden(inputs[:_ROWS, :_TOKENS].to(self._setup.device), taps=taps)

        self._watch.probe(forward)
        self._watch.attention({name: value for name, value in taps.items() if name.endswith("attention.pattern")})

    def diverged(self, kind: str, layer: str | None, message: str, step: int) -> None:
        """An alert: "nan" or "spike", in which layer ("loss" if that is not known)."""
        if self._watch is not None:
            self._watch.alerts.found(kind, layer or "loss", message, step)
        else:
            self._run.alert(kind, layer or "loss", message, step)

    def end(self, loss: float | None) -> None:
        """The step is over. loss: None when there was no update."""
        if self._watch is not None:
            self._watch.end(loss)
        if loss is not None and self._warmed_up and not self._learns:
            self._does_it_learn(loss)

    def _does_it_learn(self, loss: float) -> None:
        self._losses.append(loss)
        if len(self._losses) < WINDOW:
            return
        self._learns = True  # asked once
        sign = no_better_than_guessing(statistics.fmean(self._losses), self._setup.shape.vocab_size)
        if sign is not None:
            config = self._setup.config
            self._setup.say(
                f"{WINDOW} steps after the warm-up {sign}: the learning rates, {config.learning_rate:g} and "
                f"{config.embedding_learning_rate:g}, are probably too high, or far too low"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._watch is not None:
            self._watch.close()
