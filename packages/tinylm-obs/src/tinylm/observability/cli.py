"""tinylm-obs · the commands: ui, list, compare, export, sql, profile, roofline, ladder.

The only file that imports typer; rich is in `_report.py`. It reads through `_readers.py`, words runs through
`_summary.py`, measures through `climb.py`; errors end in `boundary.py`. It does NOT compute.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ._errors import ObservabilityError
from .boundary import bounded

app = typer.Typer(
    name="tinylm-obs",
    help="Look at runs, compare them, and measure the ladders.",
    epilog="Try: tinylm-obs ui data/processed · tinylm-obs list data/processed · tinylm-obs ladder logging",
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_VALIDATION = "validation_bits_per_character"
RunPath = Annotated[Path, typer.Argument(help="A run, or a directory with one run below it.", show_default=False)]


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    import importlib.metadata

    from ._facts import counted, machine

    try:
        version = importlib.metadata.version("tinylm-obs")
    except importlib.metadata.PackageNotFoundError:
        version = "(not installed: run from a checkout)"
    facts = machine()
    print(f"tinylm-obs {version}, Python {facts['python']}, {facts['cpu']}, {counted(facts['cores'], 'core')}")
    raise typer.Exit


@app.callback()
def _app(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Version, Python and CPU.")
    ] = False,
) -> None:
    pass


@app.command(epilog="Try: tinylm-obs ui runs")
@bounded()
def ui(
    directory: Annotated[Path, typer.Argument(help="Show the runs here and below.")] = Path(),
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="By default the first free one from 8100; 0: any.", show_default=False),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Who may look: this machine alone, unless you say otherwise.")
    ] = "127.0.0.1",
    browser: Annotated[bool, typer.Option(help="Open it in the browser.")] = True,
) -> None:
    """The dashboard: curves, layers, histograms, samples, alerts, the machine, profiles; live while runs train."""
    from .dashboard.server import serve

    serve(directory, host, port, browser)


@app.command("list", epilog="Try: tinylm-obs list runs")
@bounded()
def list_runs(
    directory: Annotated[Path, typer.Argument(help="Look for runs here and below.")] = Path(),
) -> None:
    """Every run below a directory: name, status, attempt, last step, loss, bits per character, validation, times."""
    from . import _summary as words
    from ._readers import find_runs, read_alerts, read_metrics, read_run
    from ._report import print_table
    from ._values import visible
    from .tables import cell

    found = find_runs(directory)
    if not found:
        raise ObservabilityError(f"wanted runs at or below {directory}, got none; obs.init(directory=...) starts one")
    rows, unreadable = [], []
    for path in found:
        try:
            run, metrics, alerts = read_run(path), read_metrics(path), read_alerts(path)
        except ObservabilityError as error:
            unreadable.append(str(error))
            continue
        figures = [words.last(metrics, name) for name in ("loss", "bits_per_character", _VALIDATION)]
        where = os.path.relpath(path, directory)
        step = str(metrics[-1]["step"]) if metrics else "–"
        times = (words.local_time(run.get("started")), words.clock(words.duration(run, metrics)))
        rows.append([where, run["name"], run["status"], str(run["attempt"]), step, *map(cell, figures), *times])
        rows[-1].append(words.alerts_in_short(alerts))
    if rows:
        columns = ["run", "name", "status", "attempt", "step", "loss", "bits/char", "validation", "started", "duration"]
        columns.append("alerts")
        spare = ["duration", "bits/char", "started", "attempt"]
        told = all(row[1] in Path(row[0]).parts for row in rows)  # by the directory: then the name can go first
        print_table(columns, rows, range(3, 10), [*spare, "name"] if told else ["name", *spare])
    for message in unreadable:
        print(visible(f"unreadable: {message}"), file=sys.stderr)
    if not rows:
        raise ObservabilityError(f"wanted a readable run at or below {directory}, got {len(unreadable)} unreadable")


@app.command(epilog="Try: tinylm-obs compare runs/a runs/b")
@bounded()
def compare(runs: Annotated[list[Path], typer.Argument(help="Two runs or more.", show_default=False)]) -> None:
    """Two runs or more side by side: what differs in their configuration, their metrics, the shape of the loss."""
    from ._report import print_comparison

    if len(runs) < 2:
        raise ObservabilityError("wanted two runs or more to compare, got one; `tinylm-obs list` shows what there is")
    print_comparison([_one_run(path) for path in runs], list(map(str, runs)))


@app.command(epilog="Try: tinylm-obs export runs/a --out a.csv · --to tensorboard --out events")
@bounded()
def export(
    run: RunPath,
    out: Annotated[Path | None, typer.Option(help="The file to write; for tensorboard a directory.")] = None,
    to: Annotated[str, typer.Option(help="csv, prometheus, tensorboard or parquet.")] = "csv",
) -> None:
    """The metrics of a run for other tools; without --out, CSV and Prometheus' text are printed."""
    from . import export as formats
    from ._atomic import write_text
    from ._readers import read_histograms, read_metrics, read_run
    from ._summary import csv_text
    from ._values import visible

    if to not in ("csv", "prometheus", "tensorboard", "parquet"):
        raise ObservabilityError(f"wanted --to csv, prometheus, tensorboard or parquet, got {to!r}")
    path = _one_run(run)
    rows = read_metrics(path)
    if to in ("tensorboard", "parquet"):
        if out is None:
            raise ObservabilityError(f"wanted --out, where {to} is to be written, got none")
        if to == "parquet":
            formats.parquet(rows, out)
        else:
            out = formats.tensorboard(rows, read_histograms(path), out, read_run(path)["name"])
    else:
        text = csv_text(rows) if to == "csv" else formats.prometheus(read_run(path), rows)
        if out is None:
            sys.stdout.write(visible(text, keep="\n") if sys.stdout.isatty() else text)
            return
        write_text(out, text)
    print(f"wrote {out}", file=sys.stderr)


@app.command(epilog="Try: tinylm-obs sql \"select run, min(value) from metrics where name = 'loss' group by run\" runs")
@bounded()
def sql(
    statement: Annotated[str, typer.Argument(help="SQL over the tables runs, metrics, texts and alerts.")],
    directory: Annotated[Path, typer.Argument(help="Look for runs here and below.")] = Path(),
) -> None:
    """Ask all runs below a directory in SQL (DuckDB)."""
    from ._report import print_table
    from .sql import query
    from .tables import cell

    columns, rows = query(directory, statement)
    print_table(columns, [[cell(value) for value in row] for row in rows])


@app.command(
    epilog="Try: tinylm-obs profile --out profile -- tinylm-infer generate model 'Once' --max-tokens 20",
    context_settings={"ignore_unknown_options": True},
)
@bounded()
def profile(
    command: Annotated[list[str], typer.Argument(help="A Python program: file.py, python -m ..., tinylm-...")],
    out: Annotated[Path, typer.Option(help="The directory to write into.")] = Path("profile"),
    after: Annotated[float, typer.Option(min=0, help="Seconds until torch's operations are recorded.")] = 0.0,
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds for which they are.")] = 5.0,
    roofline: Annotated[bool, typer.Option(help="Place the operations on this machine's measured limits.")] = True,
) -> None:
    """Run a Python program and write where its time and memory went: profile.html, profile.json, trace.json."""
    from ._target import profile_command

    code = profile_command(command, out, after, seconds, roofline)
    print(f"wrote {out / 'profile.html'}, profile.json and trace.json", file=sys.stderr)
    raise typer.Exit(code)


@app.command(epilog="Try: tinylm-obs roofline")
@bounded()
def roofline(
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    again: Annotated[bool, typer.Option("--again", help="Measure anew instead of taking the cached figures.")] = False,
) -> None:
    """This machine's limits, measured with torch: bandwidth by footprint, operations per second by type."""
    from ._facts import counted
    from ._report import print_table
    from .roofline import measured
    from .tables import cell

    found = measured(device, again)
    rows = [[cell(size / 1e6), cell(speed / 1e9)] for size, speed in found.bandwidth.items()]
    print_table(["footprint (MB)", "bandwidth (GB/s)"], rows, numbers=range(2))
    peaks = [[kind, cell(speed / 1e9)] for kind, speed in found.peak.items()]
    print_table(["type", "10⁹ operations/s"], peaks, numbers=range(1, 2))
    print(f"{found.device}, {counted(found.threads, 'thread')}, {found.facts['cpu']}, torch {found.facts['torch']}")


@app.command(epilog="Try: tinylm-obs ladder tokenizer --json ladder.json")
@bounded()
def ladder(
    component: Annotated[str | None, typer.Argument(help="One component; without it all of them.")] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write the results here as well.")] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Size of the work; without it each rung's own.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs per figure, of which the median is shown.")] = 3,
    plot: Annotated[Path | None, typer.Option(help="Draw the ladders into this SVG file.")] = None,
    roofline: Annotated[bool, typer.Option(help="Ask how far each rung is from this machine's limits.")] = True,
) -> None:
    """Climb the ladders: run every rung, check that it equals the one below, and measure what the step bought."""
    from ._report import print_ladders
    from .climb import COLUMNS, climb, find_rungs
    from .tables import new_table, write_table

    rungs, notes = find_rungs(component)
    for note in notes if component is None else []:
        print(note, file=sys.stderr)
    if not rungs:
        raise ObservabilityError("wanted a phase with a ladder, got none; install tinylm-tokenizer or tinylm-model")
    limit = _limit() if roofline else None
    rows = climb(rungs, size, repeats, lambda line: print(line, file=sys.stderr, flush=True), limit)
    words = ["tinylm-obs ladder", component, f"--size {size}" if size else None]
    words.append(f"--repeats {repeats}" if repeats != 3 else None)
    table = new_table(f"Ladder: {component or 'all components'}", " ".join(filter(None, words)), COLUMNS, rows)
    print_ladders(table)
    if json is not None:
        write_table(table, json)
        print(f"wrote {json}", file=sys.stderr)
    if plot is not None:
        from ._atomic import write_text
        from .plot import ladders

        write_text(plot, ladders(table))
        print(f"wrote {plot}", file=sys.stderr)


def _limit() -> Any:
    """The machine's roofline, or None and a line that says why not."""
    from .roofline import measured

    try:
        return measured()
    except ObservabilityError as error:
        print(f"no fraction of the roofline: {error}", file=sys.stderr)
        return None


def _one_run(path: Path) -> Path:
    """The run at `path`, or the only one below it (a checkpoint directory holds run/)."""
    from ._readers import RUN_FILE, find_runs

    if (path / RUN_FILE).exists():
        return path
    found = find_runs(path)
    if len(found) != 1:
        raise ObservabilityError(
            f"wanted one run at or below {path}, got {len(found)}; `tinylm-obs list {path}` shows what is there"
        )
    return found[0]


def main() -> None:
    """`tinylm-obs`."""
    app()
