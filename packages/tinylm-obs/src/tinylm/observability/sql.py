"""tinylm-obs · SQL over all runs below a directory, by DuckDB (extra [sql]).

Tables: `runs` (run, name, status, attempt, created, started, finished, config as JSON), `metrics` (run, step, time,
attempt, name, value; one line per number), `texts` (run, step, name, text), `alerts` (run, step, alert, layer,
message). The database is in memory; the query sees nothing but these tables: no files, no network. It does NOT write
runs. Next: `cli.py`.
"""

import importlib
import json
from pathlib import Path
from typing import Any

from ._errors import ObservabilityError
from ._readers import find_runs, read_alerts, read_metrics, read_run
from ._values import number, utf8

_SCHEMA = """
create table runs (run varchar, name varchar, status varchar, attempt bigint, created varchar, started varchar,
                   finished varchar, config json);
create table metrics (run varchar, step bigint, time double, attempt bigint, name varchar, value double);
create table texts (run varchar, step bigint, name varchar, text varchar);
create table alerts (run varchar, step bigint, alert varchar, layer varchar, message varchar);
"""
_OWN = ("step", "time", "attempt")


def query(directory: Path, statement: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """(column names, rows) of a SQL statement over every readable run at or below `directory`. Raises
    ObservabilityError without duckdb, without runs, or for SQL that DuckDB refuses."""
    try:
        duckdb = importlib.import_module("duckdb")
    except ImportError:
        raise ObservabilityError('wanted duckdb for SQL, got no such package: pip install "tinylm-obs[sql]"') from None
    found = find_runs(directory)
    if not found:
        raise ObservabilityError(f"wanted runs at or below {directory}, got none; obs.init(directory=...) starts one")
    with duckdb.connect(":memory:") as database:
        database.execute(_SCHEMA)
        tables: dict[str, list[tuple[Any, ...]]] = {"runs": [], "metrics": [], "texts": [], "alerts": []}
        for path in found:
            _collect(path, path.relative_to(directory).as_posix(), tables)
        for name, rows in tables.items():
            _insert(database, name, rows)
        database.execute("set enable_external_access = false")
        try:
            result = database.execute(statement)
            if result is None:  # what DuckDB gives for nothing, or a comment
                raise ObservabilityError(f"wanted SQL over the tables {', '.join(tables)}, got none")
            return [column[0] for column in result.description or []], result.fetchall()
        except duckdb.Error as error:
            first = str(error).splitlines()[0]
            raise ObservabilityError(f"wanted SQL over the tables {', '.join(tables)}, got {first}") from error


def _collect(path: Path, label: str, tables: dict[str, list[tuple[Any, ...]]]) -> None:
    try:
        run, metrics, alerts = read_run(path), read_metrics(path), read_alerts(path)
    except ObservabilityError:
        return  # `list` names those that cannot be read
    facts = (run["name"], run["status"], run["attempt"], run.get("created"), run.get("started"), run.get("finished"))
    tables["runs"].append((label, *facts, json.dumps(run["config"])))
    for row in metrics:
        for name, value in row.items():
            if name in _OWN:
                continue
            if isinstance(value, str):
                tables["texts"].append((label, row["step"], name, value))
            elif isinstance(value, int | float):
                where = (label, row["step"], row.get("time"), row["attempt"])
                tables["metrics"].append((*where, name, number(value)))
    tables["alerts"] += [(label, one["step"], one.get("alert"), one.get("layer"), one.get("message")) for one in alerts]


def _insert(database: Any, table: str, rows: list[tuple[Any, ...]]) -> None:
    """A thousand rows a statement: one row a statement takes a millisecond each."""
    for start in range(0, len(rows), 1000):
        part = rows[start : start + 1000]
        places = ", ".join(["(" + ", ".join("?" * len(part[0])) + ")"] * len(part))
        database.execute(f"insert into {table} values {places}", [utf8(value) for row in part for value in row])
