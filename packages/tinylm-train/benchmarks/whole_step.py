"""A whole training step of GPT-2 124M on one thread, optimiser and all: ours beside nanoGPT's and transformers'.

    python packages/tinylm-train/benchmarks/whole_step.py [--nanogpt DIRECTORY] [--rounds 3] [--json FILE] [--quick]

A step is forward, loss, backward, clipping to a norm of 1 and the update, of 4 x 256 tokens in bfloat16 (autocast),
each as its own project does it: ours with tinylm-train's Step (AdamW for everything, as the others have it; and Muon,
the default of pretrain), nanoGPT with its configure_optimizers and torch's fused AdamW, transformers with what its
Trainer uses (torch's fused AdamW). Ours keeps freed memory in large pages as tinylm-train does; "memory kept"
gives nanoGPT and transformers the same. Each figure is of a fresh process, whose first two steps only set things up;
the ways take turns, and the median of CPU times stands. Not here: the model alone (tinylm-model's train_step.py), data,
logging and checkpoints (data.py).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from tinylm.observability.tables import cells, new_table, write_table

BATCH, TIME, VOCABULARY = 4, 256, 50304  # nanoGPT's vocabulary: GPT-2's 50,257 rounded up to a multiple of 64
KEPT = ", memory kept"
Update = Callable[[Any, Any], None]


def ours(optimizer: str) -> Update:
    """tinylm-train's own step, with its default rates."""
    import contextlib

    import torch

    from tinylm.model import Transformer
    from tinylm.training import TrainConfig
    from tinylm.training.device import autocast
    from tinylm.training.optimizers import compute_products_in, optimizers_for
    from tinylm.training.step import Step
    from tinylm.training.strategy import SingleProcess

    config, shape = TrainConfig(
        data="-", out="-", preset="gpt2", depth=12, width=768, heads=12, context=1024, optimizer=optimizer
    ).resolve(VOCABULARY)
    model = Transformer(shape)
    optimizers = optimizers_for(model, config)
    compute_products_in(torch.bfloat16, optimizers.values())
    step = Step(model, optimizers, torch.device("cpu"), 1.0, 1, SingleProcess())
    step.autocast = autocast(torch.device("cpu"), torch.bfloat16) or contextlib.nullcontext

    def update(ids: Any, targets: Any) -> None:
        step.gradient(ids, targets)
        step.update(1.0)

    return update


def nanogpt(directory: str) -> Update:
    """train.py's lines; on a CPU its configure_optimizers would leave torch's fused kernel out, so it is asked for."""
    import torch

    sys.path.insert(0, directory)
    from model import GPT, GPTConfig  # type: ignore[import-not-found]  # nanoGPT's file

    model = GPT(GPTConfig(vocab_size=VOCABULARY, dropout=0.0))
    optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), "cpu")
    for group in optimizer.param_groups:
        group["fused"] = True
    return _plain(model, optimizer, lambda ids, targets: model(ids, targets)[1], torch)


def transformers() -> Update:
    """As transformers.Trainer does it by default: adamw_torch_fused, clipping to 1."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import GPT2Config, GPT2LMHeadModel

    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, **rates))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, fused=True)

    def loss(ids: Any, targets: Any) -> Any:
        return cross_entropy(model(ids).logits.flatten(0, 1), targets.flatten())

    return _plain(model, optimizer, loss, torch)


def _plain(model: Any, optimizer: Any, loss_of: Callable[[Any, Any], Any], torch: Any) -> Update:
    model.train()

    def update(ids: Any, targets: Any) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(ids, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return update


def measure(way: str, directory: str, steps: int) -> None:
    """In a process of its own: print CPU seconds a step."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    if way.startswith("ours") or way.endswith(KEPT):
        from tinylm.model import keep_freed_memory

        keep_freed_memory()
    made = {
        "ours, AdamW": lambda: ours("adamw"),
        "ours, Muon": lambda: ours("muon"),
        "nanoGPT": lambda: nanogpt(directory),
        "transformers": transformers,
    }
    update = made[way.removesuffix(KEPT)]()
    ids, targets = torch.randint(0, 50257, (2, BATCH, TIME))
    taken = []
    for _ in range(2 + steps):
        start = time.process_time()
        update(ids, targets)
        taken.append(time.process_time() - start)
    print(json.dumps({"seconds": median(taken[2:])}))


def main() -> None:
    parser = argparse.ArgumentParser(description="A whole training step of GPT-2 124M on one thread, beside others'.")
    parser.add_argument("--nanogpt", type=Path, metavar="DIRECTORY", help="a clone of nanoGPT, to be timed as well")
    parser.add_argument("--rounds", type=int, default=3, help="processes for each way")
    parser.add_argument("--json", type=Path, help="write the table here as well")
    parser.add_argument("--quick", action="store_true", help="one round of one step each, nothing written")
    parser.add_argument("--measure", metavar="WAY", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, str(options.nanogpt), 1 if options.quick else 3)
        return
    if options.nanogpt is not None and not (options.nanogpt / "model.py").is_file():
        raise SystemExit(f"--nanogpt: wanted a clone of nanoGPT, found no model.py in {options.nanogpt}")
    theirs = ["nanoGPT"] * (options.nanogpt is not None) + ["transformers"]
    ways = [*theirs, "ours, AdamW", "ours, Muon", *(way + KEPT for way in theirs)]
    found: dict[str, list[float]] = {}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    for _ in range(1 if options.quick else options.rounds):
        for way in ways:
            command = [sys.executable, __file__, "--measure", way, "--nanogpt", str(options.nanogpt)]
            command += ["--quick"] * options.quick
            out = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
            found.setdefault(way, []).append(json.loads(out.splitlines()[-1])["seconds"])
            print(way, found[way][-1], file=sys.stderr, flush=True)
    seconds = {way: median(found[way]) for way in ways}
    columns = ["step", "CPU-s a step", *(f"speed × {way}" for way in theirs)]
    rows = [[way, seconds[way], *(seconds[other] / seconds[way] for other in theirs)] for way in ways]
    title = f"A whole training step of GPT-2 124M, {BATCH} × {TIME} tokens, bfloat16, one thread, optimiser and all"
    command_line = f"python packages/tinylm-train/benchmarks/whole_step.py --nanogpt nanoGPT --rounds {options.rounds}"
    table = new_table(title, command_line, columns, rows)
    for line in [columns, *cells(table)]:
        print("  ".join(text.ljust(26) for text in line))
    if options.json is not None and not options.quick:
        write_table(table, options.json)


if __name__ == "__main__":
    main()
