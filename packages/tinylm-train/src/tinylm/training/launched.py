"""Is this one process of many? torchrun says so in the environment, and where it wants to be told of an error.

Not here: joining them (parallel/).
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinylm.observability.boundary import is_ours
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


@contextlib.contextmanager
def told_to_torchrun() -> Iterator[None]:
    """An error is left where torchrun looks for what to show as the cause; only a bug with its traceback."""
    try:
        yield
    except Exception as error:
        if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
            more: dict[str, Any] = {"timestamp": str(int(time.time()))}
            if not is_ours(error):
                more["py_callstack"] = traceback.format_exc()
            said = {"message": f"{type(error).__name__}: {error}", "extraInfo": more}
            with contextlib.suppress(OSError):
                Path(file).write_text(json.dumps({"message": said}))  # as torch's ErrorHandler does
        raise
