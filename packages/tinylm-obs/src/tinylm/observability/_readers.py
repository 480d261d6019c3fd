"""tinylm-obs · read runs back.

`read_run` (run.json), `read_metrics` (metrics.jsonl), `find_runs` (every run below a directory). Readers tolerate
what a crash leaves behind: a torn last line is skipped, a torn line in the middle is skipped with a warning. They do
NOT write, and they believe nothing: a file that is no run of ours is refused in words. Next: `cli.py` shows what is
read here.
"""

import json
import os
import warnings
from pathlib import Path
from typing import Any

from ._errors import ObservabilityError
from ._locks import has_writer
from ._values import LARGEST, decode_row

FORMAT = 1
RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
HISTOGRAMS_FILE = "histograms.jsonl"
ALERTS_FILE = "alerts.jsonl"
SYSTEM_FILE = "system.jsonl"


def read_run(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """The contents of `directory`/run.json: format, name, status, attempt, config, created, started, finished, command,
    versions, machine, commit.

    status is "running", "finished", "failed", "interrupted" or "unfinished": run.json says running, but no live process
    writes (it was killed, or ended without finish). Raises ObservabilityError when there is no run or it cannot be
    read.
    """
    path = Path(directory) / RUN_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ObservabilityError(
            f"wanted a run (a directory with {RUN_FILE}), got {_what_is(Path(directory))}; "
            "`tinylm-obs list DIR` finds the runs below DIR"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ObservabilityError(f"wanted to read {path}, got {error}") from error
    run = _checked(path, text)
    if run["status"] == "running" and has_writer(Path(directory) / METRICS_FILE) is False:
        run["status"] = "unfinished"
    return run


def read_metrics(directory: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The metrics of a run, one dictionary per step in order of steps: step, time, attempt and what was logged.

    Of a step that occurs in several attempts (a resumed run repeats some) the highest attempt is taken; several rows
    of one attempt and step are joined, the later value wins. nan and inf are floats again. Warns (UserWarning) about
    unreadable lines before the last one. Raises ObservabilityError when `directory` is no run, or nothing in its
    metrics is readable.
    """
    read_run(directory)
    path = Path(directory) / METRICS_FILE
    rows: dict[int, dict[str, Any]] = {}
    for row in read_rows(path):
        step = row["step"]
        known = rows.get(step)
        if known is None or row["attempt"] > known["attempt"]:
            rows[step] = row
        elif row["attempt"] == known["attempt"]:
            known.update(row)
    return [rows[step] for step in sorted(rows)]


def read_histograms(directory: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The histograms of a run in order of steps: step, time, attempt, name, counts, edges; of a step and name that
    occur in several attempts the highest attempt's. Rows that are no histograms are left out. Raises
    ObservabilityError when `directory` is no run."""
    return [row for row in _newest(Path(directory), HISTOGRAMS_FILE, "name") if _is_histogram(row)]


def _is_histogram(row: dict[str, Any]) -> bool:
    counts, edges = row.get("counts"), row.get("edges")
    if not isinstance(row.get("name"), str) or not isinstance(counts, list) or not isinstance(edges, list):
        return False
    return len(edges) == len(counts) + 1 and all(type(value) in (int, float) for value in [*counts, *edges])


def read_alerts(directory: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The alerts of a run in order of steps: step, time, attempt, alert (its kind), layer, message. Raises
    ObservabilityError when `directory` is no run."""
    return _newest(Path(directory), ALERTS_FILE, "alert", "layer")


def read_system(directory: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The samples of the machine in order of time, every attempt's: step, time, attempt, "cpu (%)" and so on. Raises
    ObservabilityError when `directory` is no run."""
    read_run(directory)
    return sorted(read_rows(Path(directory) / SYSTEM_FILE), key=lambda row: row.get("time") or 0.0)


def _newest(directory: Path, file: str, *names: str) -> list[dict[str, Any]]:
    read_run(directory)
    rows: dict[tuple[object, ...], dict[str, Any]] = {}
    for row in read_rows(directory / file):
        key = (row["step"], *(str(row.get(name)) for name in names))
        if key not in rows or row["attempt"] >= rows[key]["attempt"]:
            rows[key] = row
    return sorted(rows.values(), key=lambda row: int(row["step"]))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Every readable row of a metrics.jsonl or histograms.jsonl as it was written, attempts included; no file, no
    rows.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ObservabilityError(f"wanted to read {path}, got {error.strerror}") from error
    last = lines.pop()  # empty after a whole last row; otherwise torn, or being written now
    decoded = [(number, parse_row(line)) for number, line in enumerate(lines, start=1) if line]
    rows = [row for _, row in decoded if row is not None]
    unreadable = [number for number, row in decoded if row is None]
    if unreadable and not rows:
        raise ObservabilityError(
            f"wanted rows of JSON in {path}, got {len(unreadable)} lines and none is one; is it ours?"
        )
    if unreadable:
        warnings.warn(f"{path}: skipped {len(unreadable)} unreadable lines, first line {unreadable[0]}", stacklevel=3)
    whole = parse_row(last)
    return rows if whole is None else [*rows, whole]


def find_runs(directory: str | os.PathLike[str]) -> list[Path]:
    """The directories at or below `directory` that hold a run.json, sorted. Raises ObservabilityError without a
    directory.
    """
    if not Path(directory).is_dir():
        raise ObservabilityError(f"wanted a directory to look for runs in, got {_what_is(Path(directory))}")
    return sorted(Path(folder) for folder, _, files in os.walk(directory) if RUN_FILE in files)


def _checked(path: Path, text: str) -> dict[str, Any]:
    try:
        run = json.loads(text)
    except (ValueError, RecursionError) as error:  # not JSON, or a number of thousands of digits
        raise ObservabilityError(
            f"wanted JSON in {path}, got {error}; is the file half-written or not ours?"
        ) from error
    check_format(run, path)
    for key, kind in (("name", str), ("status", str), ("attempt", int), ("config", dict)):
        if not isinstance(run.get(key), kind) or (kind is int and not 0 <= run[key] <= LARGEST):
            raise ObservabilityError(
                f"wanted {key!r} ({kind.__name__}) in {path}, got {run.get(key)!r}; is it a run of ours?"
            )
    checked: dict[str, Any] = run
    return checked


def check_format(data: object, path: Path) -> None:
    """Raise ObservabilityError unless `data` is an object with a "format" that this version reads."""
    number = data.get("format") if isinstance(data, dict) else None
    if type(number) is not int or number < 1:
        raise ObservabilityError(
            f'wanted a JSON object with "format": {FORMAT} in {path}, got {number!r}; it is not ours'
        )
    if number > FORMAT:
        raise ObservabilityError(
            f"wanted format {FORMAT} or lower in {path}, got {number}; upgrade tinylm-obs to read it"
        )


def parse_row(line: bytes) -> dict[str, Any] | None:
    """One line as a row, or None when it is torn or foreign."""
    try:
        return checked_row(json.loads(line))
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        return None


def checked_row(row: object) -> dict[str, Any] | None:
    """A line's JSON as a row, or None when it is foreign."""
    if not isinstance(row, dict):
        return None
    step, attempt = row.get("step"), row.get("attempt")
    if type(step) is not int or type(attempt) is not int or not 0 <= step <= LARGEST or not 0 <= attempt <= LARGEST:
        return None
    time = row.get("time", 0.0)
    if (type(time) is not float and type(time) is not int) or not 0 <= time < LARGEST / 1000:  # json reads NaN, too
        del row["time"]
    return decode_row(row)


def _what_is(path: Path) -> str:
    if path.is_dir():
        return f"{path}, a directory without it"
    return f"{path}, which is a file" if path.exists() else f"{path}, which does not exist"
