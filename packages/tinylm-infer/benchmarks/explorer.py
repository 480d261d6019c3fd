"""The explorer's answers: how long each question takes that the page asks, on texts that it has not seen.

    python packages/tinylm-infer/benchmarks/explorer.py NAME=CHECKPOINT ... [--rounds 3] [--json FILE]

A process of its own serves each model, as `tinylm-infer explore` does; every round asks about another text of 64
tokens, the most that is looked at. Opening: from the command to its first answer. CPU-seconds are the server's, and
tell more than the clock does where other jobs run. A GGUF file is measured a second time as a Hugging Face directory
made from it. Limits: 1 s an interaction for the quickstart's model, 3 s for SmolLM2-135M.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from tinylm.model import Transformer
from tinylm.observability.tables import cells, new_table, write_table
from tinylm.tokenizer import Tokenizer

COLUMNS = ["model", "interaction", "seconds (median)", "seconds (worst)", "CPU-seconds (median)"]
LINES = "Two households, both alike in dignity, in fair Verona, where we lay our scene, round {}. "
QUESTIONS: list[tuple[str, str, dict[str, Any]]] = [
    ("a new text: tokens and merges", "tokens", {}),
    ("blocks, heads, embeddings", "layers", {}),
    ("logit lens", "lens", {}),
    ("next token", "choice", {}),
    ("next token, another knob", "choice", {"top_k": 5, "top_p": 0.9, "min_p": 0.01}),
    ("writing, first answer", "writing", {"count": 24}),
    ("every saved step", "history", {"position": 3}),
    ("a number and its vectors", "number", {"value": "blocks.1.mlp/5/17"}),
    ("a number of the same text", "number", {"value": "logits/5/17"}),
    ("other rungs", "rungs", {}),
]


class Explorer:
    """A running `tinylm-infer explore` of one model."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self._process, self._port = psutil.Process(process.pid), port

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=600)) as connection:
            content = None if body is None else json.dumps(body)
            connection.request("POST" if body else "GET", f"/api/{path}", content, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = json.loads(answer.read())
            if answer.status != 200:
                raise SystemExit(f"{path}: {text}")
            return text

    def timed(self, path: str, body: dict[str, Any]) -> tuple[float, float]:
        """Seconds by the clock, and of the server's CPU."""
        before, start = self.cpu(), time.perf_counter()
        self.ask(path, body)
        return time.perf_counter() - start, self.cpu() - before

    def cpu(self) -> float:
        used = self._process.cpu_times()
        return float(used.user + used.system)


@contextlib.contextmanager
def explore(path: Path) -> Iterator[tuple[Explorer, float]]:
    """The explorer, and how long it took to open."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "tinylm.inference", "explore", str(path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            told = re.search(r":(\d+) ", process.stdout.readline())
            if told is None:
                raise SystemExit(f"{path}: the explorer did not start")
            explorer = Explorer(process, int(told[1]))
            explorer.ask("models")
            yield explorer, time.perf_counter() - start
        finally:
            process.terminate()


def measure(name: str, path: Path, rounds: int) -> list[dict[str, Any]]:
    with explore(path) as (explorer, opening):
        taken: dict[str, list[tuple[float, float]]] = {"opening": [(opening, explorer.cpu())]}
        for number in range(rounds):
            text = LINES.format(number) * 8
            point = len(explorer.ask("models")["points"]) - 1
            for says, question, more in QUESTIONS:
                taken.setdefault(says, []).append(explorer.timed(question, {"point": point, "text": text, **more}))
    return [
        {
            "model": name,
            "interaction": says,
            "seconds (median)": round(statistics.median(clock for clock, _ in times), 2),
            "seconds (worst)": round(max(clock for clock, _ in times), 2),
            "CPU-seconds (median)": round(statistics.median(cpu for _, cpu in times), 2),
        }
        for says, times in taken.items()
    ]


def as_directory(path: Path, folder: str) -> Path:
    """A GGUF file as a Hugging Face directory."""
    Transformer.load(path, dtype="float32").save(folder)
    Tokenizer.load(path).save(folder)
    return Path(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=CHECKPOINT")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the table here")
    options = parser.parse_args()
    rows = []
    for name, path in ((name, Path(path)) for name, _, path in (model.partition("=") for model in options.models)):
        rows += measure(name, path, options.rounds)
        if path.suffix == ".gguf":
            with tempfile.TemporaryDirectory() as folder:
                rows += measure(f"{name}, as a directory", as_directory(path, folder), options.rounds)
    names = " ".join(f"{model.partition('=')[0]}=..." for model in options.models)
    command = f"python packages/tinylm-infer/benchmarks/explorer.py {names} --rounds {options.rounds}"
    title = "The explorer's answers about a new text of 64 tokens, float32 on a CPU"
    table = new_table(title, command, COLUMNS, rows)
    print(*(" | ".join(row) for row in cells(table, Path("table"))), sep="\n")
    if options.json:
        write_table(table, options.json)


if __name__ == "__main__":
    main()
