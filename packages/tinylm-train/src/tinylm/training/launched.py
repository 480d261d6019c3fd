"""Is this one process of many? torchrun says so in the environment. Not here: joining them (parallel/)."""

from __future__ import annotations

import os

from tinylm.training._errors import TrainingError


def from_environment(name: str, default: int) -> int:
    """A number that torchrun sets. Raises TrainingError for what is not one."""
    text = os.environ.get(name)
    try:
        return default if text is None else int(text)
    except ValueError:
        raise TrainingError(f"wanted a number in the environment's {name}, got {text!r}: start with torchrun") from None


def refuse_many_processes(command: str) -> None:
    """TrainingError where torchrun has started a command that works in one process."""
    world = from_environment("WORLD_SIZE", 1)
    if world > 1:
        raise TrainingError(f"wanted one process for {command}, got {world}: start it without torchrun")
