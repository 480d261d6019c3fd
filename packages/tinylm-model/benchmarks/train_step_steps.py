"""What each step bought in the training step of GPT-2 124M on one thread, and the profile that was the reason for it.

    python packages/tinylm-model/benchmarks/train_step_steps.py [--precision bfloat16] [--json FILE] [--quick]

The step is train_step.py's. The first row undoes what makes it fast, by putting the plain forms below in the model's
place; each further row undoes one thing less, the last one nothing. Each figure is the median of a fresh process's
steps after its first two; the profile is where that process spent its own time in one more step, by torch.profiler: the
reason for the next row. It does NOT measure anybody else's model: train_step.py does.
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

import torch
from torch import Tensor
from train_step import BATCH, PRECISIONS, TIME, ours

from tinylm.model import attention, linear, loss, norm, transformer
from tinylm.observability.tables import cells, new_table, write_table


def plain_head() -> None:
    """Chunks of 2^20 logits, which is 20 rows here, each with its own cast of the head to 16 bits."""

    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, per_row: Tensor, tied: Any) -> Tensor:
        total = torch.zeros(())
        grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        step = max(1, (1 << 20) // len(weight))
        for start in range(0, len(hidden), step):
            rows = slice(start, start + step)
            h, s, t = hidden[rows], per_row[rows], targets[rows, None]
            log_p = torch.log_softmax((h @ weight.T).float(), dim=-1)
            total -= (log_p.gather(1, t)[:, 0] * s).sum()
            delta = log_p.exp_().scatter_add_(1, t, torch.full_like(t, -1, dtype=torch.float32)).to(h.dtype)
            grad_hidden[rows] = (delta @ weight.to(h.dtype)) * s[:, None]
            grad_weight += delta.T @ (h * s[:, None].to(h.dtype))
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.tied, ctx.dtypes = tied, (weight.dtype, weight.dtype)
        return total

    loss._FusedHead.forward = staticmethod(forward)


def plain_norm() -> None:
    """float32 comes out, and each product that takes it casts it again."""
    norm.LayerNorm.forward = torch.nn.LayerNorm.forward


def plain_attention() -> None:
    """torch's own backward."""
    attention._by_hand = lambda q: False


def plain_memory() -> None:
    """glibc's own thresholds: large tensors are new mappings each step."""


def plain_gelu() -> None:
    """torch's own."""
    transformer.gelu = lambda x: torch.nn.functional.gelu(x, approximate="tanh")


def plain_table() -> None:
    """The embedding's gradient is a table of its own, which is added to the head's."""
    transformer.tied_on_cpu = lambda embed: None


def plain_linear() -> None:
    """Autocast's casts, and each weight's gradient beside them in float32; LayerNorm keeps its input in float32."""
    linear.Linear.forward = torch.nn.Linear.forward
    layer_norm = norm.LayerNorm
    layer_norm.forward = lambda self, x: torch.nn.LayerNorm.forward(self, x).to(norm.compute_dtype(x))


def plain_pages() -> None:
    """Pages of 4 KB."""
    from tinylm.model import device

    device._advise_large_pages = lambda *_: None


def kept_memory() -> None:
    from tinylm.model import keep_freed_memory

    keep_freed_memory()


STEPS: list[tuple[str, Callable[[], None]]] = [
    ("head: large chunks, its weight cast once, softmax in cache", plain_head),
    ("LayerNorm gives the products' type", plain_norm),
    ("freed memory is kept (as tinylm-train does)", plain_memory),
    ("attention's backward by hand (16 bits)", plain_attention),
    ("GELU keeps its derivative, in cache", plain_gelu),
    ("one gradient of the tied table", plain_table),
    ("weights' gradients in the memory of their casts, LayerNorm keeps 16 bits", plain_linear),
    ("pages of 2 MB (as tinylm-train does)", plain_pages),
]


def measure(undone: int, precision: str, steps: int) -> None:
    """In a process of its own: with the last `undone` of STEPS undone, print CPU seconds a step, peak and profile."""
    plain = [undo for _, undo in STEPS[len(STEPS) - undone :]]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    for undo in reversed(plain):  # the earliest step's last: LayerNorm's plain form is two of them
        undo()
    if plain_memory not in plain:
        kept_memory()
    model, loss_of = ours()
    ids, targets = torch.randint(0, 50257, (2, BATCH, TIME))

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            value = loss_of(model, ids, targets)
        value.backward()
        model.zero_grad(set_to_none=True)

    taken = []
    for _ in range(2 + steps):
        start = time.process_time()
        step()
        taken.append(time.process_time() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    events = sorted(profile.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    hottest = ", ".join(f"{_short(event.key)} {event.self_cpu_time_total / total:.0%}" for event in events[:5])
    print(json.dumps({"seconds": median(taken[2:]), "peak": peak, "hotspots": hottest}))


def _short(name: str) -> str:
    return name.removeprefix("aten::").replace("_scaled_dot_product_flash_attention_for_cpu", "sdpa")


def main() -> None:
    parser = argparse.ArgumentParser(description="What each step bought in a training step of GPT-2 124M, one thread.")
    parser.add_argument("--precision", choices=PRECISIONS, default="bfloat16", help="default: bfloat16")
    parser.add_argument("--json", type=Path, help="write the table here as well")
    parser.add_argument("--quick", action="store_true", help="one step each: does it run?")
    parser.add_argument("--measure", type=int, metavar="UNDONE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        measure(options.measure, options.precision, 1 if options.quick else 2)
        return
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    rows: list[list[Any]] = []
    for undone in range(len(STEPS), -1, -1):
        command = [sys.executable, __file__, "--measure", str(undone), "--precision", options.precision]
        command += ["--quick"] * options.quick
        out = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        found = json.loads(out.splitlines()[-1])
        name = STEPS[len(STEPS) - undone - 1][0] if undone < len(STEPS) else "before: the plain forms"
        speed = BATCH * TIME / found["seconds"]
        gained = speed / rows[-1][1] if rows else 1.0
        rows.append([name, speed, gained, found["peak"] / 1e6, found["hotspots"]])
        print(*rows[-1], file=sys.stderr, flush=True)
    columns = ["step", "tokens a CPU-s", "× the row above", "peak, MB", "its profile: own time"]
    title = f"A training step of GPT-2 124M in {options.precision}, 4 × 256 tokens, one thread: what each step bought"
    command_line = f"python packages/tinylm-model/benchmarks/train_step_steps.py --precision {options.precision}"
    table = new_table(title, command_line, columns, rows)
    for line in [columns, *cells(table)]:
        print("  ".join(line))
    if options.json is not None:
        write_table(table, options.json)


if __name__ == "__main__":
    main()
