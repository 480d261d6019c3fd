"""tinylm-obs · see a run: wandb's verbs, local files, nothing beyond the standard library.

    from tinylm import observability as obs
    with obs.init(directory="runs/first", config={"depth": 4}) as run:
        run.log({"loss": 2.5}, step=0)
    obs.read_metrics("runs/first")

Where to go: `jsonl.py` (how a row reaches the disk), `_run.py` (what a run is), `_readers.py` (reading back),
`watching.py` and `alerts.py` (layers while they train), `system.py` (the machine), `timing.py` and `climb.py`
(measuring ladders), `tables.py` (results in Markdown), `cli.py` (the command). Nothing is imported before it is used.
This package does NOT train, and does NOT import the other TinyLM packages.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._errors import ObservabilityError
    from ._facts import machine
    from ._readers import find_runs, read_alerts, read_histograms, read_metrics, read_run, read_system
    from ._run import Run
    from ._start import finish, init, log
    from .profiling import Profile, profile
    from .system import sample_system
    from .throughput import Throughput
    from .watching import Watch, watch

__all__ = [
    "ObservabilityError",
    "Profile",
    "Run",
    "Throughput",
    "Watch",
    "find_runs",
    "finish",
    "init",
    "log",
    "machine",
    "profile",
    "read_alerts",
    "read_histograms",
    "read_metrics",
    "read_run",
    "read_system",
    "sample_system",
    "watch",
]

_HOMES = {
    "ObservabilityError": "_errors",
    "machine": "_facts",
    "find_runs": "_readers",
    "read_alerts": "_readers",
    "read_histograms": "_readers",
    "read_metrics": "_readers",
    "read_run": "_readers",
    "read_system": "_readers",
    "Run": "_run",
    "finish": "_start",
    "init": "_start",
    "log": "_start",
    "Profile": "profiling",
    "profile": "profiling",
    "sample_system": "system",
    "Throughput": "throughput",
    "Watch": "watching",
    "watch": "watching",
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
