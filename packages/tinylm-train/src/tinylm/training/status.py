"""What a run tells while it goes and when it ends: plain data, for a terminal, a notebook or a test.

Not here: who makes it (trainer.py), who shows it (_report.py), what is written to disk (tinylm.observability).
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tinylm.training.checkpoint import Progress


@dataclasses.dataclass(frozen=True)
class Status:
    """What is known after a step, for whoever shows it."""

    step: int
    total_steps: int | None
    fraction: float  # of the run that is done: of its steps, or of its minutes while its steps are not known
    loss: float | None  # nats per token of this step's batch; None when the batch was passed over
    bits_per_character: float | None  # the same, in a unit that does not depend on the tokenizer
    bits_per_byte: float | None  # likewise
    gradient_norm: float | None  # before clipping
    learning_rate: float  # of the blocks' matrices
    tokens_per_second: float
    mfu: float  # model FLOPs utilisation: the share of the machine's measured peak that the model's FLOPs are
    memory: int | None  # bytes that the process takes; on CUDA the most that tensors took
    seconds: float
    seconds_left: float | None
    validation_bits_per_character: float | None  # the newest
    sample: str | None  # what the model wrote at this step's validation; None at a step without one


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended."""

    step: int
    total_steps: int | None
    finished: bool
    validation_bits_per_character: float | None
    seconds: float


def status_after(
    progress: Progress,
    fraction: float,
    row: Mapping[str, Any],
    timings: Sequence[float],
    minutes: float | None,
    validation: float | None,
) -> Status:
    """From a step's row and the times of the steps so far."""
    recent = statistics.median(timings[-20:])
    left: float | None = None
    if progress.total_steps is not None:
        left = (progress.total_steps - progress.step) * recent
    elif minutes is not None:
        left = minutes * 60 - progress.seconds
    return Status(
        step=progress.step,
        total_steps=progress.total_steps,
        fraction=fraction,
        loss=row["loss"],
        bits_per_character=row.get("bits_per_character"),
        bits_per_byte=row.get("bits_per_byte"),
        gradient_norm=row.get("gradient_norm"),
        learning_rate=row["learning_rate"],
        tokens_per_second=row["tokens"] / recent,
        mfu=row["mfu"],
        memory=row.get("memory"),
        seconds=progress.seconds,
        seconds_left=left,
        validation_bits_per_character=validation,
        sample=row.get("sample"),
    )
