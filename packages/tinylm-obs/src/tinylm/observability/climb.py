"""tinylm-obs · climb the ladders: measure every rung against the one below.

Each phase offers `tinylm.<phase>.ladder.rungs()`: plain data and functions (see `Rung`). Here they are found, run
taking turns, compared with the rung they must equal, and profiled: the top lines of a rung's profile are the reason
for the next one. It does NOT know any component and does NOT print (`cli.py`); results are a table in the schema of
`tables.py`.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ._errors import ObservabilityError
from ._facts import counted
from .roofline import Roofline
from .tables import cell
from .timing import Sample, middle, sample

COLUMNS = (
    "ladder",
    "rung",
    "what changed",
    "size",
    "time (s)",
    "CPU (s)",
    "peak memory (MB)",
    "throughput",
    "× rung below",
    "% of roofline",
    "error",
    "error against float64",
    "hotspots of the rung below",
)


@dataclass(frozen=True)
class Rung:
    """One rung as a phase describes it: the dictionary's keys, checked.

    make(size) builds work, the same for the same size; run(work) does it; compare(result, reference) is the error
    against the rung named by `equals` (None for the lowest), 0.0 when identical. It may reach `tolerance`, by default
    what float32 rounding explains: results that must be identical count their differences, so that one is already too
    many. amount(work), in `unit`, is what the throughput counts; size is what this rung does in about a second.
    cost(work), where given, is (FLOPs, bytes, type) of the least that any rung must do for this work: what the roofline
    is asked about. exact(work), where given, is the result in float64, and compare then says how far each rung is from
    it; results that are whole numbers have none.
    """

    component: str
    ladder: str
    rung: str
    module: str
    change: str
    equals: str | None
    make: Callable[[int], Any]
    run: Callable[[Any], Any]
    compare: Callable[[Any, Any], float]
    amount: Callable[[Any], float]
    unit: str
    size: int
    tolerance: float = 1e-5
    cost: Callable[[Any], tuple[float, float, str]] | None = None
    exact: Callable[[Any], Any] | None = None


def find_rungs(component: str | None = None) -> tuple[list[Rung], list[str]]:
    """The rungs of every installed phase (of one component if named), and one line per phase that has none to offer.

    Raises ObservabilityError when no phase has the component.
    """
    import tinylm  # a namespace: its __path__ spans wheels, editable installs and checkouts

    rungs: list[Rung] = []
    notes: list[str] = []
    for phase in pkgutil.iter_modules(tinylm.__path__, "tinylm."):
        name = f"{phase.name}.ladder"
        try:
            offered = importlib.import_module(name).rungs()
        except ModuleNotFoundError as error:
            missing = (
                "has no ladder yet" if error.name == name else f"needs {error.name}: install it to climb its ladder"
            )
            notes.append(f"{phase.name}: {missing}")
        except ImportError as error:
            notes.append(f"{phase.name}: its ladder cannot be imported: {error}")
        else:
            rungs += [_rung(name, one) for one in offered]
    known = sorted({rung.component for rung in rungs})
    chosen = [rung for rung in rungs if component in (None, rung.component)]
    if component is not None and not chosen:
        raise ObservabilityError("; ".join([f"wanted a component of {', '.join(known)}, got {component!r}", *notes]))
    return chosen, notes


def climb(
    rungs: Iterable[Rung],
    size: int | None = None,
    repeats: int = 3,
    report: Callable[[str], None] = lambda line: None,
    limit: Roofline | None = None,
) -> list[dict[str, Any]]:
    """Measure rungs, ladder by ladder; one row per rung, keys as in COLUMNS and some more for programs.

    size: work of this size for every rung; without it each rung's own. A ratio is always between two runs on the same
    work: the smaller of the two sizes. limit: the machine's roofline, for the fraction of it. Raises ObservabilityError
    when a rung's result differs from the rung it must equal.
    """
    ladders: dict[tuple[str, str], list[Rung]] = {}
    for rung in rungs:
        ladders.setdefault((rung.component, rung.ladder), []).append(rung)
    return [row for ladder in ladders.values() for row in _climb_one(ladder, size, repeats, report, limit)]


class _Job:
    """One rung on work of one size."""

    def __init__(self, rung: Rung, size: int) -> None:
        self.rung = rung
        self.size = size
        self.work = rung.make(size)
        self.samples: list[Sample] = []
        self.result: Any = None

    def turn(self) -> None:
        taken, self.result = sample(lambda: self.rung.run(self.work), trim=not self.samples)
        self.samples.append(taken)


def _climb_one(
    ladder: list[Rung], size: int | None, repeats: int, report: Callable[[str], None], limit: Roofline | None
) -> list[dict[str, Any]]:
    by_name = {rung.rung: rung for rung in ladder}
    jobs: dict[tuple[str, int], _Job] = {}

    def job(rung: Rung, work_size: int) -> _Job:
        key = (rung.rung, work_size)
        if key not in jobs:
            jobs[key] = _Job(rung, work_size)
        return jobs[key]

    pairs: list[tuple[_Job, _Job | None, _Job | None]] = []  # own size; same work as below; the rung below on that work
    for rung in ladder:
        below = _below(rung, by_name)
        if below is None:
            pairs.append((job(rung, size or rung.size), None, None))
            continue
        common = size or min(rung.size, below.size)
        pairs.append((job(rung, size or rung.size), job(rung, common), job(below, common)))
    for number in range(repeats):
        report(f"{ladder[0].ladder}: round {number + 1} of {repeats}, {counted(len(jobs), 'run')}")
        for each in jobs.values():
            each.turn()
    return [_row(*pair, limit) for pair in pairs]


def _below(rung: Rung, by_name: Mapping[str, Rung]) -> Rung | None:
    if rung.equals is not None and rung.equals not in by_name:
        raise ObservabilityError(
            f"wanted the rung {rung.equals!r} below {rung.rung!r} in {rung.ladder!r}, got no such rung"
        )
    return None if rung.equals is None else by_name[rung.equals]


def _row(own: _Job, same: _Job | None, below: _Job | None, limit: Roofline | None) -> dict[str, Any]:
    rung, figures = own.rung, middle(own.samples)
    amount = rung.amount(own.work) / figures.seconds
    row: dict[str, Any] = {
        "component": rung.component,
        "ladder": rung.ladder,
        "rung": rung.rung,
        "module": rung.module,
        "what changed": rung.change,
        "size": own.size,
        "time (s)": figures.seconds,
        "CPU (s)": figures.cpu_seconds,
        "peak memory (MB)": None if figures.peak_bytes is None else figures.peak_bytes / 1e6,
        "device time (s)": figures.device_seconds,
        "throughput": f"{cell(amount)} {rung.unit}/s",
        "per second": amount,
        "unit": rung.unit,
        "repeats": len(own.samples),
        "× rung below": None,
        "% of roofline": _percent(own, figures, limit),
        "error": None,
        "error against float64": None if rung.exact is None else float(rung.compare(own.result, rung.exact(own.work))),
        "hotspots of the rung below": None,
    }
    if same is not None and below is not None:
        error = float(rung.compare(same.result, below.result))
        if not error <= rung.tolerance:  # nan is not equal either
            raise ObservabilityError(
                f"wanted {rung.rung!r} to equal {below.rung.rung!r} within {rung.tolerance}, work of size {same.size} "
                f"({rung.ladder}), got an error of {error}; one of them is wrong"
            )
        row["error"] = error
        row["× rung below"] = middle(below.samples).seconds / middle(same.samples).seconds
        row["compared at size"] = same.size
        row["hotspots of the rung below"] = "; ".join(hotspots(lambda: below.rung.run(below.work)))
    return row


def _percent(job: _Job, figures: Sample, limit: Roofline | None) -> float | None:
    """The least time that this machine's measured limits allow for the work, over the time taken, in %."""
    if limit is None or job.rung.cost is None:
        return None
    flops, moved, kind = job.rung.cost(job.work)
    least, _ = limit.seconds(flops, moved, kind)
    return 100 * least / figures.seconds


def hotspots(function: Callable[[], object], count: int = 3) -> list[str]:
    """The `count` functions in which a call spends most time itself (cProfile), as "file.py:12 name 40 %", no
    directories.
    """
    import cProfile  # 20 ms to import both: only when profiling
    import pstats

    profile = cProfile.Profile()
    profile.runcall(function)
    entries: dict[tuple[str, int, str], Any] = vars(pstats.Stats(profile))["stats"]
    spent = sorted(((entry[2], key) for key, entry in entries.items()), reverse=True)
    total = sum(seconds for seconds, _ in spent) or 1.0
    shares = [(_place(*key), 100 * seconds / total) for seconds, key in spent[:count]]
    return [f"{place} {share:.0f} %" for place, share in shares if share >= 1]


def _place(file: str, line: int, name: str) -> str:
    return name.strip("<>{}") if file == "~" else f"{Path(file).name}:{line} {name}"  # "~": built in, has no file


def _rung(module: str, data: Mapping[str, Any]) -> Rung:
    try:
        return Rung(**data)
    except TypeError as error:
        raise ObservabilityError(
            f"wanted the keys of a rung from {module}.rungs(), got {sorted(data)}: {error}"
        ) from error
