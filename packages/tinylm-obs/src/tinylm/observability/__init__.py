"""tinylm-obs · see a run: wandb's verbs, local files, nothing beyond the standard library.

    from tinylm import observability as obs
    with obs.init(directory="runs/first", config={"depth": 4}) as run:
        run.log({"loss": 2.5}, step=0)
    obs.read_metrics("runs/first")

Where to go: `jsonl.py` (how a row reaches the disk), `_run.py` (what a run is), `_readers.py` (reading back),
`timing.py` and `climb.py` (measuring ladders), `tables.py` (results in Markdown), `cli.py` (the command). Nothing is
imported before it is used. This package does NOT train, and does NOT import the other TinyLM packages.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._errors import ObservabilityError
    from ._facts import machine
    from ._readers import find_runs, read_metrics, read_run
    from ._run import Run, finish, init, log

__all__ = ["ObservabilityError", "Run", "find_runs", "finish", "init", "log", "machine", "read_metrics", "read_run"]

_HOMES = {
    "ObservabilityError": "_errors",
    "machine": "_facts",
    "find_runs": "_readers",
    "read_metrics": "_readers",
    "read_run": "_readers",
    "Run": "_run",
    "finish": "_run",
    "init": "_run",
    "log": "_run",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value: object = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
