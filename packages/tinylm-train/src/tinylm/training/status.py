"""What a run tells while it goes and when it ends: plain data, for a terminal, a notebook or a test.

Not here: who makes it (trainer.py), who shows it (cli.py), what is written to disk (tinylm.observability).
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Status:
    """What is known after a step, for whoever shows it."""

    step: int
    total_steps: int | None
    fraction: float  # of the run that is done: of its steps, or of its minutes while its steps are not known
    loss: float  # nats per token of this step's batch
    bits_per_character: float  # the same, in a unit that does not depend on the tokenizer
    tokens_per_second: float
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
