"""May this run go on from that checkpoint? The same data set, and the same options, or those that may change.

Not here: finding the checkpoint and reading it (checkpoint.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinylm.training._errors import TrainingError
from tinylm.training.checkpoint import Progress
from tinylm.training.config import TrainConfig

_FREE = ("data", "out", "keep", "keep_best", "accept_changes")  # where folders stand, and how many
_PROCESSES = ("data_parallel", "tensor_parallel", "process_timeout")  # who computes: the state is the same
_SHAPE = ("depth", "preset", "width", "heads", "kv_heads", "mlp_width", "context")
_FIXED = (*_SHAPE, "optimizer", "packing", "seed", "average", "dtype")  # what the state in the checkpoint is of
_LENGTH = ("minutes", "steps")


def comparable(config: TrainConfig) -> dict[str, Any]:
    """The options that must be the same for a run to continue."""
    return {name: value for name, value in config.description().items() if name not in (*_FREE, *_PROCESSES)}


def continued(found: Progress, now: Progress, config: TrainConfig, data: Path, say: Callable[[str], None]) -> Progress:
    """What to go on with: what was found, or that with accepted changes. Raises TrainingError for what may not be."""
    out = config.out
    if found.data_sha256 != now.data_sha256:
        raise TrainingError(
            f"{out} was trained on another data set (or one made with another tokenizer) than {data}: use that one, or "
            "choose another --out"
        )
    defaults = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    before = {name: found.options.get(name, defaults[name]) for name in now.options}  # options that are newer than it
    different = [name for name, value in now.options.items() if before[name] != value]
    if not different:
        return found
    changes = ", ".join(f"{name} was {before[name]}, now {now.options[name]}" for name in different)
    changes = changes.replace("None", "not given")
    fixed = [name for name in different if name in _FIXED]
    if fixed or not config.accept_changes:
        may = "give the same to continue it, "
        if not fixed:
            may += "or --accept-changes to go on with the new ones, "
        elif config.accept_changes:
            may = f"{' and '.join(fixed)} cannot change in mid-run; " + may
        raise TrainingError(f"{out} was started with other options ({changes}): {may}or choose another --out")
    say(f"going on with other options, as accepted: {changes}")
    return dataclasses.replace(
        found,
        options=now.options,
        changes=(*found.changes, f"after step {found.step}: {changes}"),
        total_steps=now.total_steps if set(different) & set(_LENGTH) else found.total_steps,
        threads=now.threads if "threads" in different else found.threads,
        compiled=config.compile == "always" if "compile" in different else found.compiled,
    )
