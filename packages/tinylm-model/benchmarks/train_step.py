"""One training step of GPT-2 124M on one thread: ours beside nanoGPT's and transformers' model.

    python packages/tinylm-model/benchmarks/train_step.py [--nanogpt DIRECTORY] [--precision bfloat16] [--rounds 5]
        [--json FILE] [--quick]

A step is forward, loss and backward of 4 x 256 tokens, as each project's own trainer runs it: float32, or autocast to
bfloat16; "as trained" is with freed memory kept in large pages, as tinylm-train does, and for comparison
nanoGPT with the same. Each figure is of a fresh process, whose first two steps only set things up; the ways take turns
and the median stands. Peak is what the process grew by from before the model was made, gradients included.
--nanogpt is a clone of github.com/karpathy/nanoGPT, whose model.py is imported from there; without it that row is
missing. It does NOT measure the optimiser, the data or the logging: tinylm-train's benchmarks do.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from tinylm.observability.tables import cells, new_table, write_table

BATCH, TIME, VOCABULARY = 4, 256, 50304  # nanoGPT's vocabulary: GPT-2's 50,257 rounded up to a multiple of 64
KEPT = ", as trained"
PRECISIONS = ("float32", "bfloat16")


def ours() -> tuple[Any, Callable[[Any, Any, Any], Any]]:
    from tinylm.model import Transformer, TransformerConfig
    from tinylm.model.linear import narrow_gradients

    shape = {"width": 768, "heads": 12, "context": 1024}
    config = TransformerConfig.preset("gpt2", vocab_size=VOCABULARY, depth=12, **shape)
    model = Transformer(config)
    narrow_gradients(model)  # as tinylm-train does for AdamW
    return model, lambda model, ids, targets: model.loss(ids, targets)


def nanogpt(directory: str) -> tuple[Any, Callable[[Any, Any, Any], Any]]:
    sys.path.insert(0, directory)
    from model import GPT, GPTConfig  # type: ignore[import-not-found]  # nanoGPT's file

    model = GPT(GPTConfig(vocab_size=VOCABULARY, dropout=0.0))
    return model, lambda model, ids, targets: model(ids, targets)[1]


def transformers() -> tuple[Any, Callable[[Any, Any, Any], Any]]:
    from torch.nn.functional import cross_entropy
    from transformers import GPT2Config, GPT2LMHeadModel

    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, **rates))
    return model, lambda model, ids, targets: cross_entropy(model(ids).logits.flatten(0, 1), targets.flatten())


def measure(way: str, directory: str, precision: str, steps: int) -> None:
    """In a process of its own: print CPU seconds a step and the peak in bytes."""
    import torch

    if way.endswith(KEPT):
        from tinylm.model import keep_freed_memory

        keep_freed_memory()
        way = way.removesuffix(KEPT)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    model, loss_of = nanogpt(directory) if way == "nanogpt" else {"ours": ours, "transformers": transformers}[way]()
    model.train()
    ids, targets = torch.randint(0, 50257, (2, BATCH, TIME))
    taken = []

    def step() -> None:  # a function of its own, as in tinylm-train: what led to the loss goes before the next step
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            loss = loss_of(model, ids, targets)
        loss.backward()
        model.zero_grad(set_to_none=True)

    for _ in range(2 + steps):
        start = time.process_time()
        step()
        taken.append(time.process_time() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    print(json.dumps({"seconds": median(taken[2:]), "peak": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description="A training step of GPT-2 124M on one thread, beside others'.")
    parser.add_argument("--nanogpt", type=Path, metavar="DIRECTORY", help="a clone of nanoGPT, to be timed as well")
    parser.add_argument("--precision", choices=PRECISIONS, help="this one alone; default: both")
    parser.add_argument("--rounds", type=int, default=5, help="processes for each way and precision")
    parser.add_argument("--json", type=Path, help="write the table here as well")
    parser.add_argument("--quick", action="store_true", help="one round of one step each: does it run?")
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "PRECISION"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    steps = 1 if options.quick else 2
    if options.measure:
        measure(options.measure[0], str(options.nanogpt), options.measure[1], steps)
        return
    if options.nanogpt is not None and not (options.nanogpt / "model.py").is_file():
        raise SystemExit(f"--nanogpt: wanted a clone of nanoGPT, found no model.py in {options.nanogpt}")
    ways = ["ours", "ours" + KEPT, "transformers"]
    if options.nanogpt is not None:
        ways = ["nanogpt", "ours", "nanogpt" + KEPT, "ours" + KEPT, "transformers"]
    precisions = [options.precision] if options.precision else PRECISIONS
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    for _ in range(1 if options.quick else options.rounds):
        for precision in precisions:
            for way in ways:
                command = [sys.executable, __file__, "--measure", way, precision]
                command += ["--nanogpt", str(options.nanogpt)] * (options.nanogpt is not None)
                command += ["--quick"] * options.quick
                out = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
                found.setdefault((precision, way), []).append(json.loads(out.splitlines()[-1]))
                print(precision, way, found[precision, way][-1], file=sys.stderr, flush=True)

    rows = []
    for precision in precisions:
        speeds = {way: BATCH * TIME / median(run["seconds"] for run in found[precision, way]) for way in ways}
        peaks = {way: median(run["peak"] for run in found[precision, way]) / 1e6 for way in ways}
        for way in ways:
            ratios = [speeds[way] / speeds[ways[0]], peaks[way] / peaks[ways[0]]]
            rows.append([precision, way, speeds[way], ratios[0], peaks[way], ratios[1]])
    columns = ["precision", "model", "tokens a CPU-s", f"× {ways[0]}", "peak, MB", f"× {ways[0]}'s peak"]
    title = "A training step of GPT-2 124M, 4 × 256 tokens, one thread: forward, loss and backward"
    command = "python packages/tinylm-model/benchmarks/train_step.py --nanogpt nanoGPT"
    command += f" --precision {options.precision}" * (options.precision is not None) + f" --rounds {options.rounds}"
    table = new_table(title, command, columns, rows)
    for line in [columns, *cells(table)]:
        print("  ".join(text.ljust(18) for text in line))
    if options.json is not None:
        write_table(table, options.json)


if __name__ == "__main__":
    main()
