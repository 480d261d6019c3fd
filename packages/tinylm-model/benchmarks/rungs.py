"""CPU time of one training step of 4,192 parameters: microgpt's, and the rungs of the model's ladder.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python packages/tinylm-model/benchmarks/rungs.py [--microgpt FILE]
        [--json FILE] [--quick]

A step is one name: forward, backward and Adam. All see the same names. Ours have GPT-2's shape (norms with weights and
biases, GELU, a tied head), which is more work a letter than microgpt's; the matrices have the same sizes. The ways take
turns; a turn is ten names, or some round of them, and the figure is the median of its turns. With --microgpt,
Karpathy's file is timed too, in a process of its own, and our stand-in's losses must be its losses. It does NOT measure
learning: tests/model shows that the curves agree.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import microgpt_file
import numpy as np
import torch
from microgpt_step import Microgpt

from tinylm.model import Transformer
from tinylm.model.arrays import training as array_training
from tinylm.model.arrays.transformer import Transformer as Arrays
from tinylm.model.scalar import derived, gpt, training
from tinylm.model.tensors import training as tensor_training
from tinylm.model.tensors.transformer import Transformer as Tensors
from tinylm.observability.tables import cells, new_table, write_table
from tinylm.observability.timing import interleaved

TURNS = 7
NAMES = 10  # everybody's turn is a multiple of these, so that all see the same lengths
RATE = 0.01


class Original:
    """Karpathy's file: a turn is a run of it, which times its own steps."""

    def __init__(self, file: Path, names: list[str]) -> None:
        self.file, self.names, self.turns = file, names, list[float]()
        run, model = microgpt_file.run(file, names, NAMES), Microgpt()
        for node, weight in zip(model.parameters, run.weights, strict=True):
            node.data = weight
        losses = [model.step(ids, RATE * (1 - step / NAMES)) for step, ids in enumerate(run.ids)]
        worst = max(abs(ours - theirs) for ours, theirs in zip(losses, run.losses, strict=True))
        if worst > 1e-12:
            raise SystemExit(f"--microgpt: wanted the stand-in's losses, got some {worst} apart: another version?")
        print(f"{file.name}: {len(run.weights):,} parameters; the stand-in's losses of {NAMES} steps differ by {worst}")

    def __call__(self) -> None:
        run = microgpt_file.run(self.file, self.names, NAMES + 1)
        self.turns.append(sum(run.seconds[1:]) / NAMES * 1000)


def microgpt() -> Callable[[list[int]], object]:
    model = Microgpt()
    return lambda ids: model.step(ids, RATE)


def scalar(kind: type[gpt.GPT]) -> Callable[[list[int]], object]:
    model, optimizer = kind(training.CONFIG, training.start(training.CONFIG)), training.Adam()

    def step(ids: list[int]) -> None:
        _, gradients = model.loss_and_gradients(ids[:-1], ids[1:])
        optimizer.step(model.weights, gradients, RATE)

    return step


def arrays(folder: str, dtype: str) -> Callable[[list[int]], object]:
    model, optimizer = Arrays.load(folder, dtype), array_training.Adam()

    def step(ids: list[int]) -> None:
        row = np.array([ids])
        _, gradients = model.loss_and_gradients(row[:, :-1], row[:, 1:])
        optimizer.step(model.weights.flat, gradients.flat, RATE)

    return step


def tensors(folder: str) -> Callable[[list[int]], object]:
    model, optimizer = Tensors.load(folder), tensor_training.Adam()

    def step(ids: list[int]) -> None:
        row = torch.tensor([ids])
        _, gradients = model.loss_and_gradients(row[:, :-1], row[:, 1:])
        optimizer.step(model.weights.flat, gradients.flat, RATE)

    return step


def transformer(folder: str) -> Callable[[list[int]], object]:
    model = Transformer.load(folder, dtype="float32")
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, betas=(0.9, 0.99), fused=True)

    def step(ids: list[int]) -> None:
        row = torch.tensor([ids])
        model.loss(row[:, :-1], row[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU time of a training step of 4,192 parameters.")
    parser.add_argument("--json", type=Path, help="write the table here as well")
    parser.add_argument("--microgpt", type=Path, metavar="FILE", help="Karpathy's microgpt.py, to be timed as well")
    parser.add_argument("--quick", action="store_true", help="one short turn each: does it run?")
    options = parser.parse_args()
    torch.set_num_threads(1)
    words = [name for name in training.made_names(1000) if len(name) <= 15][:NAMES]  # 15 and two ends: its context
    names = [training.encode(word) for word in words]
    original = Original(options.microgpt, words) if options.microgpt is not None else None
    with tempfile.TemporaryDirectory() as folder:
        derived.GPT(training.CONFIG, training.start(training.CONFIG)).save(folder)
        ways = {  # a step, and how many a turn
            "microgpt's step (a stand-in in our words)": (microgpt(), NAMES),
            "scalar/gpt.py, autograd": (scalar(gpt.GPT), NAMES),
            "scalar/derived.py": (scalar(derived.GPT), 100),
            "arrays, float64": (arrays(folder, "float64"), 1000),
            "arrays, float32": (arrays(folder, "float32"), 1000),
            "tensors, float32": (tensors(folder), 200),
            "transformer, float32": (transformer(folder), 200),
        }

        def turn(step: Callable[[list[int]], object], count: int) -> Callable[[], None]:
            def run() -> None:
                for ids in itertools.islice(itertools.cycle(names), count):
                    step(ids)

            run()  # first calls set things up
            return run

        gc.freeze()  # torch's hundred thousand objects are not microgpt's to walk through
        counts = {way: NAMES if options.quick else count for way, (_, count) in ways.items()}
        turns = {way: turn(step, counts[way]) for way, (step, _) in ways.items()}
        if original is not None:
            turns["microgpt.py"] = original
        figures = interleaved(turns, 1 if options.quick else TURNS)
    costs = {} if original is None else {"microgpt.py, Karpathy's file": median(original.turns)}
    costs |= {way: figures[way].cpu_seconds / count * 1000 for way, count in counts.items()}
    first = next(iter(costs.values()))
    command = "python packages/tinylm-model/benchmarks/rungs.py" + (" --microgpt microgpt.py" if original else "")
    rows = [[way, cost, first / cost] for way, cost in costs.items()]
    table = new_table("Training step of 4,192 parameters", command, ["rung", "CPU-ms a step", "× microgpt"], rows)
    for line in [table["columns"], *cells(table)]:
        print("  ".join(text.ljust(44 if index == 0 else 16) for index, text in enumerate(line)))
    if options.json is not None:
        write_table(table, options.json)


if __name__ == "__main__":
    main()
