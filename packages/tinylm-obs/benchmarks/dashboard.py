"""How fast the dashboard opens, and what its controls take over ten runs of 100,000 points, in a real Chromium.

    python packages/tinylm-obs/benchmarks/dashboard.py opening [--json FILE] [--repeats 5]
    python packages/tinylm-obs/benchmarks/dashboard.py controls [--json FILE] [--runs DIR]

Opening: from the start of `python -m tinylm.observability ui DIR` to the moment when the first chart holds a curve and
has been painted, in a browser that runs already and has nothing of the page in its cache; DIR is a run of 2,200 steps
with layers and histograms, as the quickstart leaves it. Of that, the server: until it says that it answers. A reload:
the same page once more. By the clock, so on a quiet machine.

Controls: DIR holds ten runs of 100,000 rows with the trainer's scalars (250 MB; --runs keeps them for the next time),
read to the end. A control is moved; until drawn: until every chart has its new options and a frame was painted. CPU
is the server's. Longest block: the longest task of the page's own thread meanwhile, 0 below 50 ms, the browser's own
threshold. Medians. Needs playwright and a Chromium ($CHROMIUM or the one installed); /proc, so Linux.
"""

import argparse
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from tinylm import observability as obs
from tinylm.observability.tables import cells, new_table, write_table

OPENING = ["what", "median (s)", "slowest (s)", "times"]
CONTROLS = ["control", "until drawn (s)", "server (s CPU)", "longest block of the page (ms)", "times"]
STEPS, ROWS, RUNS = 2_200, 100_000, 10
CHARTS = "[...document.querySelectorAll('.nicegui-echart')].map(e => getElement(e.id.slice(1))?.chart)"
DRAWN = f"() => window.getElement && {CHARTS}[0]?.getOption()?.series?.some(one => one.data?.length > 1)"
PAINTED = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
WATCH = f"""() => {{ window.set = new Map(); window.longest = 0;
    for (const chart of {CHARTS}) {{ const own = chart.setOption.bind(chart);
        chart.setOption = (...given) => {{ own(...given); window.set.set(chart, true); }}; }}
    new PerformanceObserver(list => {{ for (const one of list.getEntries())
        window.longest = Math.max(window.longest, one.duration); }}).observe({{type: 'longtask'}}); }}"""


def row(generator: random.Random, step: int) -> dict[str, float]:
    nats = 7 / (1 + step / 300) ** 0.3 + 0.1 * generator.random()
    rate, norm = 0.01 * (1 - step / 1e6), 1 + generator.random()
    own = {"loss": nats, "bits_per_character": nats / 2.05, "learning_rate": rate, "gradient_norm": norm}
    return own | {"tokens": 2048, "tokens_per_second": 2e4 + 1e3 * norm, "mfu": 0.1 * norm, "memory": 689360896}


def like_the_quickstart(directory: Path) -> None:
    generator = random.Random(0)
    layers = ["embed", *(f"blocks.{number}.{part}" for number in range(4) for part in ("attention", "mlp"))]
    edges = [-1 + place / 16 for place in range(33)]
    with obs.init(directory, config={"depth": 4}) as run:
        for step in range(STEPS):
            run.log(row(generator, step), step)
            if step % 100 == 0:
                run.log({f"gradient_norm/{layer}": generator.random() for layer in layers}, step)
                for layer in layers:
                    run.histogram(f"gradient/{layer}", [generator.randrange(9000) for _ in range(32)], edges, step)


def many_runs(directory: Path) -> None:
    for number in range(RUNS):
        generator = random.Random(number)
        with obs.init(directory / f"run-{number}", config={"seed": number}) as run:
            for step in range(ROWS):
                run.log(row(generator, step), step)


@contextmanager
def server(directory: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The command itself, and its address once it answers."""
    command = [sys.executable, "-m", "tinylm.observability", "ui", str(directory), "--port", "0", "--no-browser"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        found = re.search(r"http://\S+", line)
        if found is None:
            raise SystemExit(f"wanted the dashboard's address, got {line}{process.stderr.read()}")
        yield found[0], process
    finally:
        process.terminate()
        process.communicate()


@contextmanager
def chromium() -> Iterator[Any]:
    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        browser.new_context().new_page().goto("about:blank")
        yield browser
        browser.close()


def opening(directory: Path, repeats: int) -> list[list[Any]]:
    found: dict[str, list[float]] = {"server answers": [], "first curve painted": [], "a reload": []}
    with chromium() as browser:
        for _ in range(repeats):
            page = browser.new_context().new_page()
            started = time.perf_counter()
            with server(directory) as (address, _process):
                found["server answers"].append(time.perf_counter() - started)
                page.goto(address, wait_until="commit")
                page.wait_for_function(DRAWN, polling="raf")
                page.evaluate(PAINTED)
                found["first curve painted"].append(time.perf_counter() - started)
                started = time.perf_counter()
                page.reload(wait_until="commit")
                page.wait_for_function(DRAWN, polling="raf")
                page.evaluate(PAINTED)
                found["a reload"].append(time.perf_counter() - started)
            page.context.close()
    return [[what, statistics.median(times), max(times), repeats] for what, times in found.items()]


def cpu(process: subprocess.Popen[str]) -> float:
    """Seconds of CPU of the server, its threads included."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def controls(directory: Path, repeats: int) -> list[list[Any]]:
    found: dict[str, list[tuple[float, float, float]]] = {}
    with chromium() as browser, server(directory) as (address, process):
        page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
        page.set_default_timeout(400_000)
        page.goto(address)
        read = f"document.querySelector('nav')?.innerText.split('step {ROWS - 1:,}').length > {RUNS}"
        while not page.evaluate(read):
            page.wait_for_timeout(500)
        page.wait_for_timeout(6_000)  # the last rows are drawn
        page.evaluate(WATCH)

        def moved(name: str, move: Callable[[], Any]) -> None:
            page.evaluate("() => { window.set.clear(); window.longest = 0; }")
            before, began = cpu(process), time.perf_counter()
            move()
            page.wait_for_function(f"() => {CHARTS}.every(chart => window.set.has(chart))", polling="raf")
            page.evaluate(PAINTED)
            took = time.perf_counter() - began
            page.wait_for_timeout(300)
            found.setdefault(name, []).append((took, cpu(process) - before, page.evaluate("window.longest")))

        press = page.keyboard.press
        for _ in range(repeats):
            for axis in ("time", "tokens", "steps"):
                moved(f"x axis: {axis}", lambda: press("x"))
            moved("y axis: logarithmic, or not", lambda: press("y"))
            moved("smoothing: one more", lambda: press("+"))
            moved("smoothing: one less", lambda: press("-"))
            moved("zoom into a tenth", lambda: zoom(page, 45, 55))
            moved("zoom: the whole", lambda: press("0"))
    middle = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in found.items()}
    return [[name, *figures, repeats] for name, figures in middle.items()]


def zoom(page: Any, start: float, end: float) -> None:
    page.evaluate(f"{CHARTS}[0].dispatchAction({{type: 'dataZoom', start: {start}, end: {end}}})")


def main() -> None:
    parser = argparse.ArgumentParser(description="Opening and controls of the dashboard.")
    parser.add_argument("what", choices=["opening", "controls"])
    parser.add_argument("--json", type=Path, help="write the table here as well")
    parser.add_argument("--runs", type=Path, help="where the runs stand, or are to be made and kept")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = options.runs or Path(scratch)
        if not obs.find_runs(directory):
            (like_the_quickstart if options.what == "opening" else many_runs)(directory)
        rows = (opening if options.what == "opening" else controls)(directory, options.repeats)
    columns = OPENING if options.what == "opening" else CONTROLS
    command = f"python packages/tinylm-obs/benchmarks/dashboard.py {options.what}"
    table = new_table(f"Dashboard: {options.what}", command, columns, rows)
    for line in [columns, *cells(table)]:
        print("  ".join(text.ljust(26) for text in line))
    if options.json is not None:
        write_table(table, options.json)


if __name__ == "__main__":
    main()
