"""The training loop: draw a batch, take the gradient, update, log, validate, save. Resume exactly, stop cleanly.

A run of so many minutes is timed on its own first steps: until the learning rate decays its schedule does not depend on
the run's length, so the length in steps is decided once a twentieth of the time is gone, written into the run, and
from then on everything is a function of the step. Not here: options (config.py), data order (data.py), files
(checkpoint.py), the terminal (cli.py).
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinylm import observability as obs
from tinylm.model import Transformer
from tinylm.training import checkpoint
from tinylm.training._errors import TrainingError
from tinylm.training._files import remove_leftovers, sha256
from tinylm.training.checkpoint import Progress
from tinylm.training.config import TrainConfig
from tinylm.training.data import Loader, LoaderState, TokenDataset
from tinylm.training.device import autocast, keep_freed_memory, pick_device, pick_dtype
from tinylm.training.evaluation import bits_per_character
from tinylm.training.optimizers import AdamW, Muon
from tinylm.training.schedule import learning_rate_factor

_TIMED_SHARE = 0.05  # of the minutes asked for: the first steps, which are timed
_TIMED_STEPS = 4  # at least; the first two are slower than the rest and do not count
_VALIDATION_WINDOWS = 16  # in mid-run; the last validation reads the whole split


@dataclasses.dataclass(frozen=True)
class Status:
    """What is known after a step, for whoever shows it."""

    step: int
    total_steps: int | None
    loss: float  # nats per token of this step's batch
    bits_per_character: float  # the same, in a unit that does not depend on the tokenizer
    tokens_per_second: float
    seconds: float
    seconds_left: float | None
    validation_bits_per_character: float | None  # the newest


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended."""

    step: int
    total_steps: int | None
    finished: bool
    validation_bits_per_character: float | None
    seconds: float


class Trainer:
    """Trains one model on one data set, from the start or from where it stopped.

    report: called after every step; say: called with a line of text worth showing. `request_stop()` (from a signal
    handler, say) ends the run after the current step, with a checkpoint. Raises TrainingError for a data set,
    checkpoint or option that cannot be used.
    """

    def __init__(
        self,
        config: TrainConfig,
        report: Callable[[Status], None] = lambda status: None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.report, self.say = report, say
        self.out = Path(config.out)
        self.train_data = TokenDataset(config.data, "train")
        self.validation_data = TokenDataset(config.data, "validation")
        self.requested = config
        self.config, self.shape = config.resolve(self.train_data.vocab_size)
        self.device = pick_device(config.device)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        keep_freed_memory()
        self.dtype = pick_dtype(config.dtype, self.device)
        self.autocast = autocast(self.device, self.dtype)
        torch.manual_seed(config.seed)
        self.model = Transformer(self.shape).to(self.device)
        self.optimizers = _optimizers(self.model, self.config)
        self.progress = Progress(
            step=0,
            total_steps=self.config.steps,
            loader=LoaderState(),
            seconds=0.0,
            options=_comparable(self.config),
            data_sha256=sha256(self.train_data.directory / "data.json"),
            dtype=str(self.dtype).removeprefix("torch."),
            threads=torch.get_num_threads(),
        )
        self.stop_requested = False
        self.validation: float | None = None

    def request_stop(self) -> None:
        """End after the current step, with a checkpoint."""
        self.stop_requested = True

    def train(self) -> Result:
        """Run until finished or asked to stop; call it again (or make a new Trainer) to go on."""
        self._resume()
        if self._finished:
            return self._result()
        remove_leftovers(self.out / "steps")
        batch_size, context = self.config.batch_size, self.config.context
        assert batch_size is not None  # resolve() has filled both in
        assert context is not None
        loader = Loader(self.train_data, batch_size, context, self.config.seed, self.progress.loader)
        with obs.init(directory=self.out / "run", config=self._description(), name=self.out.name) as run:
            self._loop(loader, run)
            run.finish("finished" if self._finished else "interrupted")
        self.stop_requested = False
        return self._result()

    def _loop(self, loader: Loader, run: obs.Run) -> None:
        self.model.train()
        timings: list[float] = []
        saved_at = self.progress.step
        while not self._finished and not self.stop_requested:
            started = time.perf_counter()
            row = self._step(loader)
            timings.append(time.perf_counter() - started)
            self._advance(loader, timings)
            step, total = self.progress.step, self.progress.total_steps
            row["tokens_per_second"] = row["tokens"] / timings[-1]
            if total is not None and (step == total or step % self._interval(self.config.validate_every, total) == 0):
                row["validation_bits_per_character"] = self.validation = self._validate(whole=step == total)
            run.log(row, step=step)
            self.report(self._status(row, timings))
            if total is not None and step % self._interval(self.config.checkpoint_every, total) == 0:
                self._save()
                saved_at = step
        if self.progress.step != saved_at:
            self._save()

    def _step(self, loader: Loader) -> dict[str, Any]:
        """One update; returns what is worth logging. Raises TrainingError when the loss is not a number."""
        factor = learning_rate_factor(
            self.progress.step, self.progress.total_steps, self.config.warmup_steps, self.config.decay_fraction
        )
        inputs, targets = (tensor.to(self.device, non_blocking=True) for tensor in loader.next())
        with self.autocast():
            loss = self.model.loss(inputs, targets)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        nats = float(loss.detach())
        if not math.isfinite(nats) or not math.isfinite(float(norm)):
            raise self._diverged(f"the loss is {nats} and the gradient norm {float(norm)}", self.progress.step + 1)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return {
            "loss": nats,
            "bits_per_character": nats / math.log(2) * self.train_data.tokens / self.train_data.characters,
            "gradient_norm": float(norm),
            "learning_rate": (self.config.learning_rate or 0.0) * factor,
            "tokens": inputs.numel(),
        }

    def _advance(self, loader: Loader, timings: list[float]) -> None:
        """Count the step, and decide the run's length when enough of it has been timed."""
        self.progress = dataclasses.replace(
            self.progress,
            step=self.progress.step + 1,
            loader=loader.state,
            seconds=self.progress.seconds + timings[-1],
        )
        minutes = self.config.minutes
        if self.progress.total_steps is None and minutes is not None:
            budget = minutes * 60
            if len(timings) >= _TIMED_STEPS and self.progress.seconds >= _TIMED_SHARE * budget:
                per_step = statistics.median(timings[2:])
                total = self.progress.step + max(1, round((budget - self.progress.seconds) / per_step))
                self.progress = dataclasses.replace(self.progress, total_steps=total)
                self.say(
                    f"{per_step:.3f} s a step: {minutes:g} minutes are {total} steps "
                    f"(the same again: --steps {total} instead of --minutes {minutes:g})"
                )

    def _validate(self, whole: bool) -> float:
        windows = None if whole else _VALIDATION_WINDOWS
        return bits_per_character(self.model, self.validation_data, max_windows=windows, autocast=self.autocast)

    def _diverged(self, sign: str, step: int) -> TrainingError:
        stands = any(True for _ in checkpoint.step_folders(self.out))
        left = f"The last checkpoint in {self.out} still stands" if stands else "No checkpoint had been saved"
        return TrainingError(
            f"{sign} at step {step}: the run has diverged. {left}; start again in another --out with a lower "
            "--learning-rate or --embedding-learning-rate"
        )

    def _save(self) -> None:
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            raise self._diverged("a weight is not a number", self.progress.step)
        checkpoint.save(self.out, self.model, self.optimizers, self.progress, self.train_data, self.config.keep)

    def _resume(self) -> None:
        found = checkpoint.newest(self.out, self.say)
        if found is None:
            if (self.out / "model.safetensors").exists():
                raise TrainingError(f"{self.out} holds a model but no steps/ to continue from: choose another --out")
            return
        folder, progress = found
        if progress.data_sha256 != self.progress.data_sha256:
            raise TrainingError(
                f"{self.out} was trained on another data set (or one made with another tokenizer) than "
                f"{self.train_data.directory}: use that one, or choose another --out"
            )
        different = [name for name, value in self.progress.options.items() if progress.options.get(name) != value]
        if different:
            changes = ", ".join(f"{n} was {progress.options.get(n)}, now {self.progress.options[n]}" for n in different)
            raise TrainingError(
                f"{self.out} was started with other options ({changes}): give the same to continue it, or choose "
                "another --out"
            )
        checkpoint.restore(folder, self.model, self.optimizers)
        checkpoint.publish_model(folder, self.out)
        began, now = (progress.dtype, progress.threads), (self.progress.dtype, self.progress.threads)
        self.dtype = getattr(torch, progress.dtype)
        self.autocast = autocast(self.device, self.dtype)
        torch.set_num_threads(progress.threads)
        self.progress = progress
        if not self._finished:
            as_before = "" if began == now else f", in {began[0]} on {began[1]} threads, as the run began"
            self.say(f"continuing after step {progress.step}{as_before}")

    @property
    def _finished(self) -> bool:
        return self.progress.total_steps is not None and self.progress.step >= self.progress.total_steps

    def _interval(self, asked: int | None, total: int) -> int:
        return asked or max(1, -(-total // 10))

    def _description(self) -> dict[str, Any]:
        return {
            **self.config.description(),
            "model": dataclasses.asdict(self.shape),
            "parameters": self.shape.parameter_count(),
            "device": str(self.device),
            "precision": str(self.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "tokenizer_sha256": self.train_data.tokenizer_sha256,
        }

    def _status(self, row: dict[str, Any], timings: list[float]) -> Status:
        step, total = self.progress.step, self.progress.total_steps
        recent = statistics.median(timings[-20:])
        left: float | None = None
        if total is not None:
            left = (total - step) * recent
        elif self.config.minutes is not None:
            left = self.config.minutes * 60 - self.progress.seconds
        return Status(
            step=step,
            total_steps=total,
            loss=row["loss"],
            bits_per_character=row["bits_per_character"],
            tokens_per_second=row["tokens"] / recent,
            seconds=self.progress.seconds,
            seconds_left=left,
            validation_bits_per_character=self.validation,
        )

    def _result(self) -> Result:
        return Result(
            self.progress.step, self.progress.total_steps, self._finished, self.validation, self.progress.seconds
        )


def _comparable(config: TrainConfig) -> dict[str, Any]:
    """The options that must be the same for a run to continue: all but where its folders stand."""
    return {name: value for name, value in config.description().items() if name not in ("data", "out", "keep")}


def _optimizers(model: Transformer, config: TrainConfig) -> dict[str, AdamW | Muon]:
    """Muon for the matrices of the blocks, AdamW for the rest; with optimizer "adamw", AdamW for everything.

    Weight decay is for matrices only: gains and biases have no scale to keep small. Each group keeps its peak rate.
    """
    matrices: list[Tensor] = []
    rest: list[Tensor] = []
    for name, parameter in model.named_parameters():
        (matrices if name.startswith("blocks.") and parameter.ndim == 2 else rest).append(parameter)
    rate, embedding_rate = config.learning_rate or 0.0, config.embedding_learning_rate or 0.0
    optimizers: dict[str, AdamW | Muon] = {"adamw": AdamW(rest, lr=embedding_rate, betas=(0.9, 0.95), weight_decay=0.0)}
    if config.optimizer == "muon":
        optimizers["muon"] = Muon(matrices, lr=rate, weight_decay=config.weight_decay)
    else:
        group = {"params": matrices, "lr": rate, "weight_decay": config.weight_decay}
        optimizers["adamw"].add_param_group(group)
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers
