"""tinylm-obs · start a run: init, and log and finish for the run that was started last.

Starting in a directory that holds a run already raises `attempt` and appends: nothing is truncated. It does NOT write
rows: next, `_run.py`.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from ._errors import ObservabilityError
from ._facts import command, git_commit, machine, now, versions
from ._locks import one_at_a_time
from ._readers import FORMAT, RUN_FILE, read_run
from ._run import Run, write_record
from ._values import jsonable

_current: Run | None = None


def init(directory: str | os.PathLike[str], config: object = None, name: str | None = None) -> Run:
    """Start a run in `directory` (made if missing), or the next attempt of the run that is there.

    config: a mapping or dataclass; becomes JSON (see `_values.jsonable`). Without config or name a resumed run keeps
    its own. name: the directory's name if not given. Raises ObservabilityError when the directory cannot be written,
    or holds a run of a higher format or a foreign run.json, and for a config that contains itself.
    """
    global _current
    if name is not None and not isinstance(name, str):
        raise ObservabilityError(f"wanted a name that is a string, got {name!r}")
    path = Path(directory).absolute()  # a program may change where it stands
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ObservabilityError(f"wanted a directory for the run at {path}, got {error.strerror}") from error
    with one_at_a_time(path):
        earlier = read_run(path) if (path / RUN_FILE).exists() else {}
        try:
            settings = jsonable(config if config is not None else earlier.get("config", {}))
        except RecursionError:
            raise ObservabilityError("wanted a config that JSON can hold, got one that contains itself") from None
        if not isinstance(settings, dict):
            raise ObservabilityError(f"wanted a mapping or dataclass as config, got {type(config).__name__}")
        started = now()
        record = {
            "format": FORMAT,
            "name": name or earlier.get("name") or path.resolve().name,
            "status": "running",
            "attempt": earlier.get("attempt", 0) + 1,
            "created": earlier.get("created", started),
            "started": started,
            "finished": None,
            "command": command(),
            "commit": git_commit(),
            "versions": versions(),
            "machine": machine(),
            "config": settings,
        }
        write_record(path, record)
        _current = Run(path, record)
    return _current


def log(values: Mapping[str, object], step: int | None = None) -> None:
    """`Run.log` of the run that this process started last."""
    _started().log(values, step)


def finish(status: str = "finished") -> None:
    """`Run.finish` of the run that this process started last."""
    _started().finish(status)


def _started() -> Run:
    if _current is None:
        raise ObservabilityError("wanted a run, got none; call init(directory=...) first")
    return _current
