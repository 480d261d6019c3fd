"""tinylm-obs · runs in a few words: what `list`, `compare` and `export` show.

Plain data in, plain data out. It does NOT print (`cli.py`) and does NOT read files itself (`_readers.py`).
"""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from statistics import fmean, stdev
from typing import Any

from ._significance import welch
from ._values import is_finite, number

_BLOCKS = "▁▂▃▄▅▆▇█"
_OWN = ("step", "time", "attempt")
_NO_SETTING = ("seed", "out", "peak_flops")  # differ between runs of one configuration: drawn, named, measured


def last(rows: Iterable[Mapping[str, Any]], ending: str) -> float | None:
    """The newest number under a name that ends so ("loss", "bits_per_character"); the name itself goes first."""
    found: dict[str, float] = {}
    for row in rows:
        found.update((name, row[name]) for name in row if name.endswith(ending) and _is_number(row[name]))
    return found.get(ending, next(iter(found.values()), None))


def duration(run: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Seconds of the last attempt: to its end, or to its last row when it has none."""
    try:
        started = datetime.fromisoformat(run["started"]).timestamp()
        ended = datetime.fromisoformat(run["finished"]).timestamp() if run.get("finished") else None
    except (KeyError, TypeError, ValueError):
        return None
    if ended is None:
        times = [row["time"] for row in rows if row["attempt"] == run["attempt"] and _is_number(row.get("time"))]
        ended = max(times, default=None)
    return None if ended is None else max(0.0, ended - started)


def clock(seconds: float | None) -> str:
    """Seconds as h:mm:ss, or – for none."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def local_time(text: object) -> str:
    """An ISO 8601 time as the reader's clock shows it, to the minute."""
    try:
        return datetime.fromisoformat(str(text)).astimezone().strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return "–"


def alerts_in_short(alerts: Sequence[Mapping[str, Any]]) -> str:
    """Where it went wrong first, and how many more there are: "nan blocks.3.mlp.up step 17 (+2)"; – for none."""
    if not alerts:
        return "–"
    first = alerts[0]
    more = f" (+{len(alerts) - 1})" if len(alerts) > 1 else ""
    return f"{first.get('alert')} {first.get('layer')} step {first['step']}{more}"


def alert_line(alert: Mapping[str, Any]) -> str:
    """One alert in full."""
    return f"{alert.get('alert')}, step {alert['step']}, {alert.get('layer')}: {alert.get('message')}"


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """A curve in `width` characters or fewer, each the mean of its share of the values; nan and inf are left out."""
    finite = [value for value in values if value - value == 0]
    if not finite:
        return ""
    width = min(width, len(finite))
    shares = [finite[len(finite) * i // width : len(finite) * (i + 1) // width] for i in range(width)]
    means = [sum(value / len(share) / 2 for value in share) for share in shares]  # halves: a difference is no inf
    low, span = min(means), (max(means) - min(means)) or 1.0
    return "".join(_BLOCKS[round((mean - low) / span * (len(_BLOCKS) - 1))] for mean in means)


def lowest(values: Sequence[float]) -> float:
    """The least of the numbers that are finite; without one the last."""
    return min((value for value in values if is_finite(value)), default=values[-1])


def metric_names(runs: Iterable[Sequence[Mapping[str, Any]]]) -> list[str]:
    """Every name under which a number was logged in any of the runs, in order of first appearance."""
    names: dict[str, None] = {}
    for rows in runs:
        for row in rows:
            names.update((name, None) for name in row if name not in _OWN and _is_number(row[name]))
    return list(names)


def series(rows: Iterable[Mapping[str, Any]], name: str) -> list[float]:
    """The numbers logged under one name, in order of steps."""
    return [number(row[name]) for row in rows if _is_number(row.get(name))]


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested configuration as one level: {"model.depth": 4}."""
    level: dict[str, Any] = {}
    for name, value in config.items():
        level |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return level


def differences(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    """The names whose values are not the same in all configurations, with the value of each (None where it is
    absent).
    """
    levels = [flat(config) for config in configs]
    names = dict.fromkeys(name for level in levels for name in level)
    rows = [(name, [level.get(name) for level in levels]) for name in names]
    return [(name, values) for name, values in rows if any(value != values[0] for value in values)]


def columns_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """step, time and attempt, then every name that was logged, in order of first appearance."""
    return list(dict.fromkeys([*_OWN, *(name for row in rows for name in row)]))


def groups(configs: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Runs that differ in nothing but their seeds (and in where they were written, and in what was measured of the
    machine), as lists of places; in order of first appearance."""
    found: dict[str, list[int]] = {}
    for index, config in enumerate(configs):
        level = {name: value for name, value in flat(config).items() if name.rpartition(".")[2] not in _NO_SETTING}
        found.setdefault(repr(sorted(level.items())), []).append(index)
    return list(found.values())


def significance(
    configs: Sequence[Mapping[str, Any]], curves: Mapping[str, Sequence[Sequence[float]]]
) -> list[tuple[str, list[tuple[float, float]], float | None]]:
    """Per metric: (name, mean and standard deviation of its last value in each group of seeds, p of Welch's t-test).

    Only with exactly two groups, and two runs or more in one of them; p is None when the other has a single run.
    """
    found = groups(configs)
    if len(found) != 2 or max(map(len, found)) < 2:
        return []
    rows = []
    for name, lines in curves.items():
        lasts = [[lines[index][-1] for index in group if lines[index]] for group in found]
        if all(lasts):
            if all(abs(value) < 1e150 for group in lasts for value in group):  # its square is a number, too
                tested = welch(lasts[0], lasts[1])
                spread = [(fmean(group), stdev(group) if len(group) > 1 else 0.0) for group in lasts]
            else:  # some run ended in nan or inf: there is no mean to compare
                tested, spread = None, [(sum(group) / len(group), math.nan) for group in lasts]
            rows.append((name, spread, tested and tested[2]))
    return rows


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as CSV: step, time and attempt first, then every name logged; a blank where a row has no such value."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns_of(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
