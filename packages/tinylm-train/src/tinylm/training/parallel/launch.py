"""Is this one process of many? torchrun says so in the environment; the options say how they share the work.

Not here: joining them (processes.py).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tinylm.training._errors import TrainingError
from tinylm.training.strategy import SingleProcess

if TYPE_CHECKING:
    from tinylm.training.config import TrainConfig


def from_environment(name: str, default: int) -> int:
    """A number that torchrun sets. Raises TrainingError for what is not one."""
    text = os.environ.get(name)
    try:
        return default if text is None else int(text)
    except ValueError:
        raise TrainingError(f"wanted a number in the environment's {name}, got {text!r}: start with torchrun") from None


def strategy_for(config: TrainConfig) -> SingleProcess:
    """As the environment says and the options want. Over many processes it waits until all are there.

    Raises TrainingError for options that do not fit the number of processes.
    """
    world = from_environment("WORLD_SIZE", 1)
    if world % config.tensor_parallel:
        raise TrainingError(
            f"wanted --tensor-parallel to divide the number of processes, got {config.tensor_parallel} and {world}: "
            f"start with torchrun --nproc-per-node {config.tensor_parallel}, or so many times that"
        )
    if world == 1:
        return SingleProcess()
    if config.tensor_parallel == 1 and config.data_parallel == "ddp":
        from tinylm.training.parallel.replicated import Replicated

        return Replicated(config)
    if config.data_parallel == "ddp" and config.tensor_parallel < world:
        raise TrainingError(
            f"wanted --data-parallel fsdp together with --tensor-parallel {config.tensor_parallel} on {world} "
            "processes, got ddp: DDP copies whole models only"
        )
    from tinylm.training.parallel.divided import Divided

    return Divided(config)


def refuse_many_processes(command: str) -> None:
    """TrainingError where torchrun has started a command that works in one process."""
    world = from_environment("WORLD_SIZE", 1)
    if world > 1:
        raise TrainingError(f"wanted one process for {command}, got {world}: start it without torchrun")
