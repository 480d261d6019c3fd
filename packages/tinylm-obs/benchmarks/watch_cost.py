"""What obs.watch costs: a training step without it, with it on a step that it looks at, and on one that it only counts.

    python packages/tinylm-obs/benchmarks/watch_cost.py [--json FILE] [--quick]

CPU time of whole steps (forward, backward, AdamW, the row of metrics), the kinds taking turns, medians. A look
includes activations, gradients, updates, histograms, the attention patterns of one sequence and the writing. The share
is that of a look spread over 100 steps, the default, plus what counting costs. Needs tinylm-model.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from tinylm import observability as obs
from tinylm.model import Transformer, TransformerConfig
from tinylm.observability.tables import cells, new_table, write_table

EVERY = 100
SHAPES = {  # vocabulary, depth, width, context, batch
    "1.0 M parameters, 8 × 128 tokens": (2048, 4, 128, 128, 8),
    "5.3 M parameters, 8 × 256 tokens": (2048, 6, 256, 256, 8),
    "23 M parameters, 4 × 512 tokens": (8192, 6, 512, 512, 4),
}
COLUMNS = ["model", "step (ms CPU)", "looked at (ms CPU)", "only counted (µs CPU)", f"% at every {EVERY}"]


class Bench:
    def __init__(self, shape: tuple[int, ...], folder: Path) -> None:
        vocabulary, depth, width, context, batch = shape
        torch.manual_seed(0)
        config = TransformerConfig.preset("qwen3", vocab_size=vocabulary, depth=depth, width=width, context=context)
        self.model = Transformer(config)
        self.ids = torch.randint(0, vocabulary, (batch, context))
        self.run = obs.init(folder)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.number = 0

    def step(self, watch: obs.Watch | None, number: int) -> float:
        started = time.process_time()
        if watch is not None:
            watch.begin(number)
        loss = self.model.loss(self.ids, self.ids)
        loss.backward()
        if watch is not None and watch.due:
            watch.attention(self.patterns())
        self.optimizer.step()
        self.optimizer.zero_grad()
        nats = float(loss.detach())
        self.run.log({"loss": nats}, step=number)
        if watch is not None:
            watch.end(nats)
        return time.process_time() - started

    def patterns(self) -> dict[str, Any]:
        taps: dict[str, Any] = {}
        with torch.no_grad():
            self.model.hidden(self.ids[:1], taps=taps)
        return {name: value for name, value in taps.items() if name.endswith("pattern")}

    def times(self, turns: int) -> tuple[float, float]:
        """Milliseconds of a step that is not watched and of one that is looked at."""
        plain, looked = [], []
        for turn in range(turns + 1):
            plain.append(self.step(None, 2 * turn + 1))
            with obs.watch(self.model, self.run, [self.optimizer], every=2) as watch:
                looked.append(self.step(watch, 2 * turn))
        return 1e3 * statistics.median(plain[1:]), 1e3 * statistics.median(looked[1:])

    def counting(self) -> float:
        """Microseconds that a watch takes on a step that it only counts, the optimiser's hooks included."""
        calls = 2000
        with obs.watch(self.model, self.run, every=10**9) as watch:
            started = time.process_time()
            for number in range(1, calls + 1):
                watch.begin(number)
                watch._before_update(self.optimizer)
                watch._after_update(self.optimizer)
                watch.end(3.0 + number % 7 / 100)
            return (time.process_time() - started) / calls * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of watching a model.")
    parser.add_argument("--json", type=Path, help="write the table here as well")
    parser.add_argument("--quick", action="store_true", help="two turns only: does it run?")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, shape in SHAPES.items():
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(shape, Path(folder))
            plain, looked = bench.times(2 if options.quick else 7)
            counting = bench.counting()
        share = 100 * (counting / 1e3 + (looked - plain) / EVERY) / plain
        rows.append([name, plain, looked, counting, share])
    table = new_table("Cost of watching", "python packages/tinylm-obs/benchmarks/watch_cost.py", COLUMNS, rows)
    for line in [COLUMNS, *cells(table)]:
        print("  ".join(text.ljust(36 if index == 0 else 22) for index, text in enumerate(line)))
    if options.json is not None:
        write_table(table, options.json)


if __name__ == "__main__":
    main()
