"""run/config.toml: every option as it came out, so that the run can be repeated by one command.

Over many processes one alone writes here. Not here: run.json and the rows (tinylm.observability).
"""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinylm import observability as obs
from tinylm.training import _options_file
from tinylm.training._errors import TrainingError
from tinylm.training.checkpoint import Progress
from tinylm.training.config import TrainConfig
from tinylm.training.strategy import SingleProcess


class _Elsewhere(obs.Run):
    """The run on a process that does not write it: what is logged here is logged there."""

    def __init__(self) -> None:
        pass

    def log(self, values: Mapping[str, object], step: int | None = None) -> None:
        pass

    def alert(self, kind: str, layer: str, message: str, step: int | None = None) -> None:
        pass

    def system(self, values: Mapping[str, float]) -> None:
        pass

    def finish(self, status: str = "finished") -> None:
        pass


def open_run(out: Path, config: Mapping[str, Any], strategy: SingleProcess) -> obs.Run:
    """The next attempt of the run in `out`."""
    if not strategy.is_writer:
        return _Elsewhere()
    return obs.init(directory=out / "run", config=config, name=out.name)


def seen_by_all(out: Path, strategy: SingleProcess) -> None:
    """Raises TrainingError on hosts where `out` is not the writer's folder."""
    if strategy.world_size == 1:
        return
    mark = strategy.first(lambda: _marked(out))
    there = strategy.gather(mark.exists())
    hosts = strategy.gather(socket.gethostname())
    if strategy.is_writer:
        mark.unlink()
    if not all(there):
        missing = sorted({host for host, seen in zip(hosts, there, strict=True) if not seen})
        raise TrainingError(
            f"wanted every host to see {out.resolve()}, got {', '.join(missing)} without it: give an --out on a file "
            "system that all of them share"
        )


def _marked(out: Path) -> Path:
    mark = out.resolve() / f".processes.{os.getpid()}.tmp"
    mark.touch()
    return mark


def repeat(out: Path, config: TrainConfig, progress: Progress) -> None:
    """Write out/run/config.toml. Precision, threads and compiling are what they came to, and minutes are steps once
    they are."""
    values = config.description() | {
        "data": str(Path(config.data).resolve()),
        "dtype": progress.dtype,
        "threads": progress.threads,
        "compile": "always" if progress.compiled else "never",
        "accept_changes": False,
    }
    if progress.total_steps is not None:
        values |= {"steps": progress.total_steps, "minutes": None}
    del values["out"]
    path = out / "run" / "config.toml"
    command = f"tinylm-train pretrain --config {shlex.quote(str(path.resolve()))} --out ANOTHER_DIR"
    comments = [f"The same run again: {command}"]
    if progress.changes:
        comments = [f"These options from the start: {command}. Not this run, which began with others:"]
        comments += progress.changes
    _options_file.write(path, comments, values)
