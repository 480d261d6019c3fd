"""All that stands before the first step: data, model, optimisers, and what is measured to decide how to compute.

Precision, threads and compiling are measured on gradients of made-up ids. What they come to is stored in the checkpoint
and taken from there by a run that goes on. Nothing is written here. Not here: the loop (trainer.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import torch

from tinylm.model import ModelError, Transformer, keep_freed_memory, pick_device
from tinylm.model.checkpoint import check_can_be_saved
from tinylm.tokenizer import Tokenizer
from tinylm.training import device as machine
from tinylm.training import planning
from tinylm.training._errors import TrainingError
from tinylm.training._files import sha256
from tinylm.training.average import Average
from tinylm.training.checkpoint import Progress
from tinylm.training.compiling import compiled
from tinylm.training.config import TrainConfig
from tinylm.training.continuing import comparable
from tinylm.training.data import Loader, LoaderState, TokenDataset
from tinylm.training.evaluation import bytes_per_token
from tinylm.training.optimizers import compute_products_in, optimizers_for
from tinylm.training.scaling import LossScale
from tinylm.training.step import Step
from tinylm.training.strategy import LossFunction, SingleProcess


class Setup:
    """What a Trainer works with. Raises TrainingError for what cannot be trained."""

    def __init__(self, config: TrainConfig, strategy: SingleProcess, say: Callable[[str], None]) -> None:
        keep_freed_memory()  # before there is any tensor
        self.strategy, self.say = strategy, say
        self.train_data = TokenDataset(config.data, "train")
        self.validation_data = TokenDataset(config.data, "validation")
        self.tokenizer = Tokenizer.load(self.train_data.tokenizer_file)
        self.config, self.shape = config.resolve(self.train_data.vocab_size)
        try:
            check_can_be_saved(self.shape)
        except ModelError as error:
            raise TrainingError(f"this model could be trained but not saved: {error}") from None
        strategy.check(self.shape)
        self.device = strategy.device(pick_device(config.device))
        self.batch_size, self.context = self.config.batch_size or 1, self.shape.context
        self._check_shares()
        self.loader(LoaderState())  # a text too short for the context is refused before anything is measured
        planning.refuse_what_does_not_fit(self.config, self.shape, self.device, strategy.data_ranks)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self.model = Transformer(self.shape).to(self.device)
        self.model.separate_documents = config.packing == "documents"
        self.model.activation_checkpointing = config.activation_checkpointing
        strategy.divide(self.model)
        self.optimizers = optimizers_for(self.model, self.config)
        self.average = Average(self.model, config.average) if config.average else None
        self.step = Step(
            self.model, self.optimizers, self.device, self.config.clip, self.config.accumulate, self.strategy
        )
        self._plain_loss = self.step.loss
        self._measured_seconds: float | None = None
        alone = strategy.world_size == 1  # many would each measure something else: torchrun has set their threads
        wanted = config.dtype if alone or self.device.type != "cpu" or config.dtype != "auto" else "float32"
        dtype = machine.pick_dtype(wanted, self.device, lambda dtype: self.seconds_per_gradient(dtype))
        if config.threads is None and self.device.type == "cpu" and alone:
            machine.pick_threads(lambda: self.seconds_per_gradient(dtype))
        self.progress = Progress(
            step=0,
            total_steps=self.config.steps,
            loader=LoaderState(),
            seconds=0.0,
            options=comparable(self.config),
            data_sha256=sha256(self.train_data.directory / "data.json"),
            dtype=str(dtype).removeprefix("torch."),
            threads=torch.get_num_threads(),
        )
        self.compute_as(self.progress)

    def _check_shares(self) -> None:
        """The same data everywhere, and a batch that everyone can have the same part of."""
        ranks, parts = self.strategy.data_ranks, self.config.accumulate
        if self.batch_size % (ranks * parts):
            lower = self.batch_size // (ranks * parts) * ranks * parts
            near = " or ".join(str(size) for size in (lower, lower + ranks * parts) if size)
            in_parts = f" in {parts} parts each" if parts > 1 else ""
            raise TrainingError(
                f"wanted a batch that {ranks} processes can share equally{in_parts}, got {self.batch_size} windows: "
                f"give --batch-size {near}"
            )
        if len(set(self.strategy.gather(sha256(self.train_data.directory / "data.json")))) > 1:
            raise TrainingError(f"wanted the same data set on every host, got different ones at {self.config.data}")

    def loader(self, state: LoaderState) -> Loader:
        """The data from `state` on."""
        return Loader(
            self.train_data,
            self.batch_size,
            self.context,
            self.config.seed,
            state,
            packing=self.config.packing,
            rank=self.strategy.data_rank,
            ranks=self.strategy.data_ranks,
        )

    def compute_as(self, progress: Progress) -> None:
        """In the precision and on the threads of `progress`."""
        self.dtype: torch.dtype = getattr(torch, progress.dtype)
        torch.set_num_threads(progress.threads)
        self.step.autocast = machine.autocast(self.device, self.dtype)
        compute_products_in(self.dtype, self.optimizers.values())
        self.step.scale = LossScale(*(progress.scale or ())) if self.dtype == torch.float16 else None

    def compile(self, progress: Progress) -> Progress:
        """Use a compiled loss if it pays, or if the run began with one. Its time is the run's."""
        if self.step.loss is not self._plain_loss:
            return progress  # done, by an attempt before
        choice = self.config.compile if progress.step == 0 else "always" if progress.compiled else "never"
        if choice == "auto" and self.strategy.world_size > 1:
            choice = "never"  # each process would measure something else
        if choice == "never":
            return progress
        key = {
            "model": dataclasses.asdict(self.shape),
            "batch": [self.batch_size // self.config.accumulate, self.context],
            "precision": progress.dtype,
            "threads": progress.threads,
            "checkpointing": self.config.activation_checkpointing,
            "device": str(self.device),
            "torch": torch.__version__,
        }
        started = time.perf_counter()
        loss = compiled(
            self._plain_loss,
            key,
            self.device,
            choice,
            self.run_seconds(),
            lambda loss: self.seconds_per_gradient(self.dtype, loss),
            self.say,
        )
        self.step.loss = loss or self._plain_loss
        seconds = progress.seconds + (time.perf_counter() - started if progress.step == 0 else 0.0)
        return dataclasses.replace(progress, compiled=loss is not None, seconds=seconds)

    def seconds_per_gradient(self, dtype: torch.dtype, loss: LossFunction | None = None) -> float:
        """What a part of a batch's forward and backward pass takes: the faster of two, on made-up ids."""
        rows = self.batch_size // self.config.accumulate // self.strategy.data_ranks
        ids = (torch.arange(rows * self.context, device=self.device) % self.shape.vocab_size).view(rows, -1)
        times = []
        for _ in range(2):
            started = time.perf_counter()
            with machine.autocast(self.device, dtype)():
                value = (loss or self._plain_loss)(ids, ids, "mean")
            value.backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            times.append(time.perf_counter() - started)
            self.model.zero_grad(set_to_none=True)
        return min(times)

    def seconds_per_step(self) -> float:
        """As measured before the run, without the optimisers."""
        if self._measured_seconds is None:
            self._measured_seconds = self.config.accumulate * self.seconds_per_gradient(self.dtype)
        return self._measured_seconds

    def run_seconds(self) -> float:
        """What the whole run is expected to take."""
        if self.config.minutes is not None:
            return self.config.minutes * 60
        return (self.config.steps or 0) * self.seconds_per_step()

    @functools.cached_property
    def bytes_per_token(self) -> float:
        """Of the training split."""
        return bytes_per_token(self.train_data, self.tokenizer)

    @functools.cached_property
    def peak_flops(self) -> float:
        """FLOP/s of a large product, measured here and now, times the processes."""
        return machine.peak_flops(self.device, self.dtype) * self.strategy.world_size

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """Inside, the model has the weights that are judged and published."""
        return contextlib.nullcontext() if self.average is None else self.average.in_place()

    def description(self) -> dict[str, Any]:
        """For run.json."""
        return {
            **self.config.description(),
            "model": dataclasses.asdict(self.shape),
            "parameters": self.shape.parameter_count(),
            "device": str(self.device),
            "precision": str(self.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "processes": self.strategy.world_size,
            "compiled": self.step.loss is not self._plain_loss,
            "peak_flops": self.peak_flops,
            "tokenizer_sha256": self.train_data.tokenizer_sha256,
        }
