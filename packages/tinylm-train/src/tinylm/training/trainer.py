"""The training loop: draw a batch, take the gradient, update, log, validate, save. Resume exactly, stop cleanly.

A run of so many minutes is measured on itself: until the learning rate decays, its schedule does not depend on the
run's length, so the length in steps is decided when most of the time before the decay is used up, written into the run,
and from then on everything is a function of the step. Not here: options (config.py), what is measured before the first
step (_setup.py), one step and what may be wrong with it (checked_step.py), data order (data.py), files (checkpoint.py),
the terminal (cli.py). Over many processes each runs this same loop (strategy.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tinylm import observability as obs
from tinylm.training import _record, judging, planning
from tinylm.training._files import only_writer, remove_leftovers
from tinylm.training._setup import Setup
from tinylm.training._watching import Watching, sampled
from tinylm.training.calibration import steps_of
from tinylm.training.checked_step import CheckedStep
from tinylm.training.config import SAVED_WITHIN, TrainConfig
from tinylm.training.device import memory_used
from tinylm.training.divergence import all_finite
from tinylm.training.parallel import strategy_for
from tinylm.training.policy import Policy, RollBack
from tinylm.training.saving import Saving
from tinylm.training.spread import local
from tinylm.training.status import Result, Status, status_after
from tinylm.training.strategy import SingleProcess


class Trainer:
    """Trains one model on one data set, from the start or from where it stopped.

    report: called after every step; say: called with a line of text worth showing; strategy: where the work runs, by
    default what the environment says (torchrun's processes, or this one).
    `request_stop()` (from a signal handler, say) ends the run after the current step, with a checkpoint. Raises
    TrainingError for a data set, checkpoint or option that cannot be used.
    """

    def __init__(
        self,
        config: TrainConfig,
        report: Callable[[Status], None] = lambda status: None,
        say: Callable[[str], None] = lambda line: None,
        strategy: SingleProcess | None = None,
    ) -> None:
        self.strategy = strategy = strategy or strategy_for(config)
        self.report = report if strategy.is_writer else lambda status: None
        self.say = say if strategy.is_writer else lambda line: None
        self.out = Path(config.out)
        self.setup = setup = Setup(config, strategy, self.say)
        self.config, self.shape, self.device = setup.config, setup.shape, setup.device
        self.train_data = setup.train_data
        self.model, self.optimizers, self.average = setup.model, setup.optimizers, setup.average
        self.progress = setup.progress
        self.step = setup.step
        self.saving = Saving(self.out, setup, self.say)
        self.policy = Policy(config.on_divergence, self.out, self.say, self.saving.settled)
        self.stop_requested = False
        self.validation: float | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The precision that products are computed in."""
        return self.setup.dtype

    def request_stop(self) -> None:
        """End after the current step, with a checkpoint."""
        self.stop_requested = True

    def train(self) -> Result:
        """Run until finished or asked to stop; call it again (or make a new Trainer) to go on.

        Raises TrainingError while another process trains into the same folder.
        """
        with contextlib.ExitStack() as lock:
            try:
                self.strategy.first(lambda: self._enter(lock))
                _record.seen_by_all(self.out, self.strategy)
                self._resume()
                if self._finished and self.strategy.first(self._run_is_closed):
                    return self._result()
                if self.strategy.is_writer:
                    remove_leftovers(self.out / "steps")
                while not self._attempt():
                    self._go_back()
            except (MemoryError, RuntimeError) as error:
                known = self.strategy.in_words(error)
                raise planning.in_words(known, self.config, self.shape, self.device) from None
            finally:
                self.saving.writer.cancel()  # nothing is being written unless an error or Ctrl-C is on its way out
        self.stop_requested = False
        return self._result()

    def _enter(self, lock: contextlib.ExitStack) -> None:
        """Make the folder, and keep others out of it."""
        self.out.mkdir(parents=True, exist_ok=True)
        lock.enter_context(only_writer(self.out))

    def _attempt(self) -> bool:
        """Train from here to the end, to a stop (True), or to a step from which to roll back (False)."""
        self.progress = self.setup.compile(self.progress)
        with (
            _record.open_run(self.out, self.setup.description(), self.strategy) as run,
            Watching(self.setup, run) as watching,
        ):
            self._record_options()
            try:
                with sampled(run) if self.strategy.is_writer else contextlib.nullcontext():
                    self._loop(run, watching)
            except RollBack as back:
                self.progress = dataclasses.replace(self.progress, skipped=(*self.progress.skipped, back.step))
                self.saving.writer.wait()
                run.finish("interrupted")
                return False
            self.saving.writer.wait()
            run.finish("finished" if self._finished else "interrupted")
        return True

    def _run_is_closed(self) -> bool:
        """Whether run.json says that the run is finished: a kill after the last checkpoint leaves it open."""
        try:
            return bool(obs.read_run(self.out / "run")["status"] == "finished")
        except obs.ObservabilityError:
            return True  # the run's folder was removed or is not ours: the model is finished all the same

    def _loop(self, run: obs.Run, watching: Watching) -> None:
        loader, step = self.setup.loader(self.progress.loader), CheckedStep(self.setup, self.policy, watching)
        self.model.train()
        timings: list[float] = []
        saved_at = self.progress.step
        while not self._finished and not self._to_stop():
            self.saving.writer.poll()
            before = self._fraction
            started = time.perf_counter()
            watching.begin(self.progress.step + 1)
            row, self.progress = step.take(loader, self.progress)
            timings.append(self._agreed(time.perf_counter() - started))
            self._advance(timings)
            row["tokens_per_second"] = row["tokens"] / timings[-1]
            row["mfu"] = row["tokens_per_second"] * self.shape.flops_per_token() / self.setup.peak_flops
            row["memory"] = memory_used(self.device)
            best = False
            if self._finished or self._due(self.config.validate_every, before):
                best = self._judge(row)
            run.log({name: value for name, value in row.items() if value is not None}, step=self.progress.step)
            watching.end(None if "skipped" in row else row["loss"])
            minutes, judged = self.config.minutes, self.validation
            self.report(status_after(self.progress, self._fraction, row, timings, minutes, judged))
            if best or self._due(self.config.checkpoint_every, before, SAVED_WITHIN):
                self._save()
                saved_at = self.progress.step
        if self.progress.step != saved_at:
            self._save()

    def _to_stop(self) -> bool:
        """Whether any process has been asked to."""
        agreed = self.strategy.any(self.stop_requested)
        if agreed:  # no assignment else: a signal may have asked while this was being agreed
            self.stop_requested = True
        return agreed

    def _agreed(self, seconds: float) -> float:
        """The writer's clock, while the length of the run depends on it."""
        return self.strategy.gather(seconds)[0] if self.progress.total_steps is None else seconds

    def _record_options(self) -> None:
        if self.strategy.is_writer:
            _record.repeat(self.out, self.config, self.progress)

    def _go_back(self) -> None:
        """Take up the newest checkpoint, but remember which batches to pass over."""
        skipped = self.progress.skipped
        self._resume()
        self.progress = dataclasses.replace(self.progress, skipped=skipped)

    def _advance(self, timings: list[float]) -> None:
        """Count the time, and decide the run's length when most of the time before the decay is used up."""
        minutes, seconds = self.config.minutes, self.progress.seconds + timings[-1]
        self.progress = dataclasses.replace(self.progress, seconds=seconds)
        if self.progress.total_steps is None and minutes is not None:
            decided = steps_of(minutes, seconds, self.progress.step, self.config.decay_fraction, timings)
            if decided is None:
                return
            total, recent = decided
            self.progress = dataclasses.replace(self.progress, total_steps=total)
            self._record_options()
            self.say(
                f"{recent:.3f} s a step: {minutes:g} minutes are {total} steps "
                f"(the same again: --steps {total} instead of --minutes {minutes:g})"
            )

    @property
    def _fraction(self) -> float:
        if self.progress.total_steps is not None:
            return self.progress.step / self.progress.total_steps
        return self.progress.seconds / ((self.config.minutes or math.inf) * 60)

    def _due(self, every: int | None, before: float, most: int | None = None) -> bool:
        """Whether this step is one of every so many; by default, the first of a tenth of the run, or one of `most`."""
        if every is not None:
            return self.progress.step % every == 0
        return int(10 * self._fraction) > int(10 * before) or bool(most and self.progress.step % most == 0)

    def _judge(self, row: dict[str, Any]) -> bool:
        """Validate into `row`; whether it is the best so far and its step folder is to be kept.

        What is compared is always the estimate from the same windows; the last figure is of the whole split.
        """
        with self.setup.averaged():
            estimate = row["validation_bits_per_character"] = judging.bits(self.setup, whole=False)
            if self._finished:
                row["validation_bits_per_character"] = judging.bits(self.setup, whole=True)
            row["sample"] = judging.sample(self.setup)
        self.validation = row["validation_bits_per_character"]
        if self._finished and (sign := judging.learned_nothing(self.setup, row["validation_bits_per_character"])):
            self.say(sign)
        if not self.config.keep_best or not estimate < (self.progress.best_validation or math.inf):
            return False
        self.progress = dataclasses.replace(self.progress, best_step=self.progress.step, best_validation=estimate)
        return True

    def _save(self) -> None:
        """Copy the run's state, and let it be written while training goes on."""
        if self.strategy.any(not all_finite(local(p.detach()) for p in self.model.parameters())):
            raise self.policy.ended(f"a weight is not a number at step {self.progress.step}")
        self.saving.save(self.progress)

    def _resume(self) -> None:
        found = self.saving.resume()
        if found is None:
            return
        began, now = (found.dtype, found.threads), (self.progress.dtype, self.progress.threads)
        self.progress = found
        self.setup.compute_as(self.progress)
        if not self._finished:
            threads = f"{began[1]} thread{'s' * (began[1] != 1)}"
            as_before = "" if began == now else f", in {began[0]} on {threads}, as the run began"
            self.say(f"continuing after step {found.step}{as_before}")

    @property
    def _finished(self) -> bool:
        return self.progress.total_steps is not None and self.progress.step >= self.progress.total_steps

    def _result(self) -> Result:
        return Result(
            self.progress.step, self.progress.total_steps, self._finished, self.validation, self.progress.seconds
        )
