"""The training loop: draw a batch, take the gradient, update, log, validate, save. Resume exactly, stop cleanly.

A run of so many minutes is measured on itself: until the learning rate decays, its schedule does not depend on the
run's length, so the length in steps is decided when most of the time before the decay is used up, written into the run,
and from then on everything is a function of the step. Not here: options (config.py), data order (data.py), files
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

from tinylm import observability as obs
from tinylm.model import Transformer, generate, pick_device
from tinylm.tokenizer import Tokenizer
from tinylm.training import checkpoint
from tinylm.training._errors import TrainingError
from tinylm.training._files import only_writer, remove_leftovers, sha256
from tinylm.training.checkpoint import Progress
from tinylm.training.config import TrainConfig
from tinylm.training.data import Loader, LoaderState, TokenDataset
from tinylm.training.device import autocast, keep_freed_memory, pick_dtype
from tinylm.training.evaluation import bits_per_character
from tinylm.training.optimizers import optimizers_for
from tinylm.training.schedule import learning_rate_factor
from tinylm.training.status import Result, Status

_MEASURED_SHARE = 0.75  # of the time before the decay; the rest is room for a machine that becomes slower
_VALIDATION_WINDOWS = 16  # in mid-run; the last validation reads the whole split
_SAMPLE_TOKENS = 32  # written at each validation; a tenth of a second on a small model


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
        self.tokenizer = Tokenizer.load(self.train_data.tokenizer_file)
        self.config, self.shape = config.resolve(self.train_data.vocab_size)
        self.device = pick_device(config.device)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        keep_freed_memory()
        torch.manual_seed(config.seed)
        self.model = Transformer(self.shape).to(self.device)
        self.dtype = pick_dtype(config.dtype, self.device, self._seconds_per_gradient)
        self.autocast = autocast(self.device, self.dtype)
        self.optimizers = optimizers_for(self.model, self.config)
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
        self._loader()  # a text too short for the context is refused before anything is written

    def request_stop(self) -> None:
        """End after the current step, with a checkpoint."""
        self.stop_requested = True

    def train(self) -> Result:
        """Run until finished or asked to stop; call it again (or make a new Trainer) to go on.

        Raises TrainingError while another process trains into the same folder.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        with only_writer(self.out):
            self._resume()
            if self._finished and self._run_is_closed():
                return self._result()
            remove_leftovers(self.out / "steps")
            with obs.init(directory=self.out / "run", config=self._description(), name=self.out.name) as run:
                self._loop(self._loader(), run)
                run.finish("finished" if self._finished else "interrupted")
        self.stop_requested = False
        return self._result()

    def _loader(self) -> Loader:
        batch_size, context = self.config.batch_size, self.config.context
        assert batch_size is not None  # resolve() has filled both in
        assert context is not None
        return Loader(self.train_data, batch_size, context, self.config.seed, self.progress.loader)

    def _run_is_closed(self) -> bool:
        """Whether run.json says that the run is finished: a kill after the last checkpoint leaves it open."""
        try:
            return bool(obs.read_run(self.out / "run")["status"] == "finished")
        except obs.ObservabilityError:
            return True  # the run's folder was removed or is not ours: the model is finished all the same

    def _loop(self, loader: Loader, run: obs.Run) -> None:
        self.model.train()
        timings: list[float] = []
        saved_at = self.progress.step
        while not self._finished and not self.stop_requested:
            before = self._fraction
            started = time.perf_counter()
            row = self._step(loader)
            timings.append(time.perf_counter() - started)
            self._advance(loader, timings)
            row["tokens_per_second"] = row["tokens"] / timings[-1]
            if self._finished or self._due(self.config.validate_every, before):
                row["validation_bits_per_character"] = self.validation = self._validate(whole=self._finished)
                row["sample"] = self._sample()
            run.log(row, step=self.progress.step)
            self.report(self._status(row, timings))
            if self._due(self.config.checkpoint_every, before):
                self._save()
                saved_at = self.progress.step
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
        """Count the step, and decide the run's length when most of the time before the decay is used up."""
        self.progress = dataclasses.replace(
            self.progress,
            step=self.progress.step + 1,
            loader=loader.state,
            seconds=self.progress.seconds + timings[-1],
        )
        minutes, before_decay = self.config.minutes, 1 - self.config.decay_fraction
        if self.progress.total_steps is None and minutes is not None:
            left = minutes * 60 - self.progress.seconds
            if left > (1 - _MEASURED_SHARE * before_decay) * minutes * 60:
                return
            recent = statistics.mean(timings[len(timings) // 2 :])  # the first steps are slower
            # however slow the machine has become, the decay has not begun: --steps gives the same run
            total = max(math.ceil(self.progress.step / before_decay), self.progress.step + round(left / recent))
            self.progress = dataclasses.replace(self.progress, total_steps=total)
            self.say(
                f"{recent:.3f} s a step: {minutes:g} minutes are {total} steps "
                f"(the same again: --steps {total} instead of --minutes {minutes:g})"
            )

    @property
    def _fraction(self) -> float:
        if self.progress.total_steps is not None:
            return self.progress.step / self.progress.total_steps
        return self.progress.seconds / ((self.config.minutes or math.inf) * 60)

    def _due(self, every: int | None, before: float) -> bool:
        """Whether this step is one of every so many, or, by default, the first of a tenth of the run."""
        return self.progress.step % every == 0 if every else int(10 * self._fraction) > int(10 * before)

    def _seconds_per_gradient(self, dtype: torch.dtype) -> float:
        """What a batch's forward and backward pass takes in `dtype`: the faster of two, on made-up ids."""
        assert self.config.batch_size is not None
        numbers = torch.arange(self.config.batch_size * self.shape.context, device=self.device)
        ids = (numbers % self.shape.vocab_size).view(self.config.batch_size, -1)
        times = []
        for _ in range(2):
            started = time.perf_counter()
            with autocast(self.device, dtype)():
                loss = self.model.loss(ids, ids)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
            times.append(time.perf_counter() - started)
            self.model.zero_grad(set_to_none=True)
        return min(times)

    def _validate(self, whole: bool) -> float:
        windows = None if whole else _VALIDATION_WINDOWS
        return bits_per_character(self.model, self.validation_data, max_windows=windows, autocast=self.autocast)

    def _sample(self) -> str:
        """How the model continues the validation text's first words: the figure, to be read."""
        prompt = self.validation_data.ids(0, min(8, self.shape.context // 2))
        room = min(_SAMPLE_TOKENS, self.shape.context - len(prompt))
        if not len(prompt):  # a context of one token
            return ""
        generator = torch.Generator(self.device).manual_seed(self.config.seed)  # the run's own draws stay as they are
        ids = torch.from_numpy(prompt)[None].to(self.device)
        return self.tokenizer.decode(generate(self.model, ids, room, temperature=0.7, generator=generator)[0].tolist())

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
            both = [(name, progress.options.get(name), self.progress.options[name]) for name in different]
            changes = ", ".join(f"{name} was {was}, now {now}" for name, was, now in both).replace("None", "not given")
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
            fraction=self._fraction,
            loss=row["loss"],
            bits_per_character=row["bits_per_character"],
            tokens_per_second=row["tokens"] / recent,
            seconds=self.progress.seconds,
            seconds_left=left,
            validation_bits_per_character=self.validation,
            sample=row.get("sample"),
        )

    def _result(self) -> Result:
        return Result(
            self.progress.step, self.progress.total_steps, self._finished, self.validation, self.progress.seconds
        )


def _comparable(config: TrainConfig) -> dict[str, Any]:
    """The options that must be the same for a run to continue: all but where its folders stand."""
    return {name: value for name, value in config.description().items() if name not in ("data", "out", "keep")}
