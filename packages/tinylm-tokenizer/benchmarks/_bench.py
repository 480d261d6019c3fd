"""What the benchmarks share: where data and results are, one measurement in a fresh process, and a table as JSON."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("TINYLM_DATA") or HERE.parents[2] / "data" / "raw")
RESULTS = HERE / "results"
ONE_THREAD = {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}


def need(*names: str, packages: Sequence[str] = ()) -> None:
    """End with one line, the command that helps, if one of these files (below data/raw) or packages is not there."""
    absent = [package for package in packages if find_spec(package) is None]
    if absent:
        raise SystemExit(
            f"not installed: {', '.join(absent)}; run: pip install -r packages/tinylm-tokenizer/benchmarks/peers.txt"
        )
    missing = [name for name in names if not (DATA / name).is_file()]
    if missing:
        raise SystemExit(
            f"not in {DATA}: {', '.join(missing)}; run: python packages/tinylm-tokenizer/benchmarks/fetch_data.py --all"
        )


def fresh(script: str, *arguments: str, timeout: float = 600, compare: bool = False) -> dict[str, Any]:
    """Run `script ARGUMENTS` in a process of its own, one thread; its last line is a JSON object, or {"error": why}.
    compare: it is to say what its results can be compared by (TINYLM_COMPARE)."""
    command = [sys.executable, "-W", "ignore", str(HERE / script), *arguments]
    environment = {**os.environ, **ONE_THREAD, **({"TINYLM_COMPARE": "1"} if compare else {})}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"error": f"more than {timeout:g} s"}
    except (IndexError, ValueError):
        return {"error": (done.stderr.strip().splitlines() or ["nothing printed"])[-1][:200]}
    return result


Task = tuple[str, ...]


def rounds(script: str, tasks: Iterable[Task], count: int, timeout: float = 600) -> dict[Task, dict[str, Any]]:
    """Every task once a round, in turn; the medians of "seconds", and what else the first round said, in which results
    are compared. With TINYLM_BENCHMARKS=FOLDER what was measured is kept there, and a run that was ended goes on."""
    found: dict[Task, dict[str, Any]] = {}
    times: dict[Task, list[float]] = {}
    tasks = list(tasks)
    started = time.monotonic()
    for number in range(count):
        for task in tasks:
            if "error" in found.get(task, {}):
                continue
            once = partial(fresh, script, *task, timeout=timeout, compare=number == 0)
            result = kept([script, number, *task], once)
            found[task] = result if number == 0 or "error" in result else found[task]
            times.setdefault(task, []).append(result.get("seconds", 0.0))
        print(f"{script} {tasks[0][0]}: round {number + 1}/{count}, {time.monotonic() - started:.0f} s", flush=True)
    for task, result in found.items():
        if "error" not in result:
            result["seconds"] = statistics.median(times[task])
    return found


def kept(key: Sequence[Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `measure` says, or what an earlier run kept of it: see `rounds`."""
    folder = os.environ.get("TINYLM_BENCHMARKS")
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]
    path = Path(folder, f"{name}.json") if folder else None
    if path and path.is_file():
        result: dict[str, Any] = json.loads(path.read_bytes())
        return result
    result = measure()
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result), encoding="utf-8")
    return result


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    facts = {"cpu": name, "cores": os.cpu_count(), "system": platform.system(), "architecture": platform.machine()}
    return {**facts, "python": platform.python_version()}


def installed(packages: Sequence[str]) -> dict[str, str]:
    """The versions of those packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def table(
    name: str, title: str, command: str, columns: list[str], rows: list[Any], packages: Sequence[str], **more: Any
) -> None:
    """Print a table, and write it to results/NAME.json, from which the README's tables are made; a --quick run leaves
    that file as it is."""
    print(f"\n{title}")
    for row in [columns, *rows]:
        print("  ".join(f"{_cell(cell):>13}" for cell in row))
    content = {
        "format": 1,
        "title": title,
        "command": command,
        "machine": machine(),
        "versions": installed(packages),
        "date": datetime.now(UTC).date().isoformat(),
        "columns": columns,
        "rows": rows,
        **more,
    }
    if "--quick" in sys.argv:
        return
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
