"""What is around a step: `prepare` by text size and threads; a batch, a row of the log and a checkpoint beside a step.

    python packages/tinylm-train/benchmarks/data.py prepare --json OUT      about a minute
    python packages/tinylm-train/benchmarks/data.py loader --json OUT       about half a minute; GPT-2's 124M shape
    python packages/tinylm-train/benchmarks/data.py checkpoint --json OUT   about two minutes; the same shape

The text is made: sentences of words as frequent as a language's (Zipf), in another order in every block. Each prepare
runs in a process of its own, whose CPU time and peak memory the system reports. A step is a forward and backward pass
in bfloat16 on one thread, 4 x 256 tokens, all in CPU time. What a checkpoint costs is the difference between whole
`pretrain` runs of as many steps that save once and after every step, their writing threads included. Not here: how fast
the tokenizer is alone (tinylm-tokenizer's benchmarks).
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_MEGABYTE = 1_000_000
_BLOCK = 5 * _MEGABYTE
_PREPARE = (
    "import sys; from tinylm.training.prepare import prepare; "
    "prepare([sys.argv[1]], sys.argv[2], sys.argv[3], threads=int(sys.argv[4]))"
)


def block() -> list[str]:
    """Lines of made-up sentences, a block in all."""
    draw = random.Random(0)
    syllables = [
        "ka",
        "to",
        "mi",
        "ren",
        "sol",
        "ba",
        "chi",
        "u",
        "per",
        "and",
        "ing",
        "né",
        "tra",
        "vel",
        "on",
        "ly",
        "ment",
    ]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(20_000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    lines, size = [], 0
    while size < _BLOCK:
        line = " ".join(draw.choices(words, weights, k=draw.randint(4, 30))).capitalize() + ".\n"
        lines.append(line)
        size += len(line.encode())
    return lines


def write(path: Path, lines: list[str], megabytes: int) -> None:
    """A text of about so many megabytes: the block again and again, shuffled."""
    draw = random.Random(1)
    with path.open("w", encoding="utf-8", newline="") as file:
        while file.tell() < megabytes * _MEGABYTE:
            draw.shuffle(lines)
            file.write("".join(lines))
            file.flush()


def measure_prepare(folder: Path, sizes: list[int]) -> list[dict[str, Any]]:
    """One row for each size and number of threads."""
    from tinylm.tokenizer import Tokenizer

    lines = block()
    tokenizer = Tokenizer.train(["".join(lines)], vocab_size=8192)
    tokenizer.save(folder / "tokenizer")
    rows = []
    for megabytes in sizes:
        text = folder / "text.txt"
        write(text, lines, megabytes)
        for threads in (1, 2):
            out = folder / f"data-{megabytes}-{threads}"
            command = [sys.executable, "-c", _PREPARE, str(text), str(folder / "tokenizer"), str(out), str(threads)]
            started = time.perf_counter()
            process = subprocess.Popen(command)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            seconds = time.perf_counter() - started
            if process.returncode:
                raise SystemExit(f"prepare ended with {process.returncode}")
            cpu = usage.ru_utime + usage.ru_stime
            size = text.stat().st_size / _MEGABYTE
            rows.append(
                {
                    "text, MB": round(size),
                    "threads": threads,
                    "s": round(seconds, 2),
                    "CPU-s": round(cpu, 2),
                    "MB/s": round(size / seconds, 1),
                    "MB per CPU-s": round(size / cpu, 1),
                    "peak memory, MB": round(usage.ru_maxrss * 1024 / _MEGABYTE),
                }
            )
            print(rows[-1], flush=True)
        one, two = (folder / f"data-{megabytes}-{threads}" for threads in (1, 2))
        if any(path.read_bytes() != (two / path.name).read_bytes() for path in one.iterdir()):
            raise SystemExit("one thread and two gave different data sets")
    return rows


def measure_loader(folder: Path, repeats: int) -> list[dict[str, Any]]:
    """The time in `next` while steps run, against the step, for windows and for packed documents."""
    import torch

    from tinylm import observability as obs
    from tinylm.model import Transformer, TransformerConfig
    from tinylm.tokenizer import Tokenizer
    from tinylm.training import TokenDataset, prepare
    from tinylm.training.data import Loader, LoaderState

    torch.set_num_threads(1)
    lines = block()
    (folder / "docs").mkdir()
    for number in range(0, len(lines), 12):
        (folder / "docs" / f"{number:06d}.txt").write_text("".join(lines[number : number + 12]), "utf-8")
    Tokenizer.train(["".join(lines)], vocab_size=8192).save(folder / "tokenizer")
    prepare([folder / "docs"], folder / "tokenizer", folder / "data", "documents:0.01")
    dataset = TokenDataset(folder / "data")
    model = Transformer(
        TransformerConfig.preset("gpt2", vocab_size=50_257, depth=12, width=768, heads=12, context=1024)
    )
    rows = []
    for packing in ("windows", "documents"):
        loader = Loader(dataset, 4, 256, 0, LoaderState(), packing=packing)
        model.separate_documents = packing == "documents"
        with obs.init(directory=folder / packing) as run:
            waits, logs, steps = [], [], []
            clock = time.thread_time  # another thread draws the next batch meanwhile
            for number in range(repeats + 1):
                begun = clock()
                inputs, targets = loader.next()
                drawn = clock()
                with torch.autocast("cpu", torch.bfloat16):
                    loss = model.loss(inputs, targets)
                loss.backward()
                model.zero_grad()
                stepped = clock()
                run.log({"loss": loss.item(), "gradient_norm": 1.0, "learning_rate": 0.1, "tokens": 1024}, step=number)
                done = clock()
                if number:  # the first batch is not ready yet, and the first step is slower
                    waits.append(drawn - begun)
                    steps.append(stepped - drawn)
                    logs.append(done - stepped)
            run.finish()
        began = time.process_time()
        count = 100
        for _ in range(count):
            loader._draw(loader.state)
        drawing = (time.process_time() - began) / count
        step = statistics.median(steps)
        rows.append(
            {
                "rows": packing,
                "step, CPU-s": round(step, 3),
                "taking a batch, CPU-ms": round(1e3 * statistics.median(waits), 3),
                "drawing it in the thread, CPU-ms": round(1e3 * drawing, 3),
                "logging, CPU-ms": round(1e3 * statistics.median(logs), 3),
                "all of it, % of the step": round(
                    100 * (statistics.median(waits) + drawing + statistics.median(logs)) / step, 3
                ),
            }
        )
        print(rows[-1], flush=True)
    return rows


def measure_checkpoint(folder: Path, steps: int) -> list[dict[str, Any]]:
    """CPU seconds of whole runs: a few steps, more steps, and as many with a checkpoint after each."""
    from tinylm.tokenizer import Tokenizer
    from tinylm.training import prepare

    lines = block()
    rest = [f"<|{number}|>" for number in range(50_257 - 8192)]  # no text has them: the head has GPT-2's size
    Tokenizer.train(["".join(lines)], vocab_size=50_257, special_tokens=rest).save(folder / "tokenizer")
    (folder / "text.txt").write_text("".join(lines[:4000]), "utf-8")
    prepare([folder / "text.txt"], folder / "tokenizer", folder / "data", "tail:0.01")

    def run(count: int, every: int) -> float:
        out = folder / f"run-{count}-{every}"
        fixed = (
            f"--data {folder / 'data'} --out {out} --preset gpt2 --depth 12 --width 768 --heads 12 --context 256 "
            "--batch-size 4 --optimizer adamw --device cpu --dtype bfloat16 --threads 1 --compile never "
            "--no-keep-best --keep 1 --validate-every 1000000"
        )
        command = [sys.executable, "-m", "tinylm.training", "pretrain", *fixed.split()]
        command += ["--steps", str(count), "--checkpoint-every", str(every)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"pretrain ended with {process.returncode}")
        shutil.rmtree(out)
        return usage.ru_utime + usage.ru_stime

    short, long, saving = run(2, 1000), run(2 + steps, 1000), run(2 + steps, 1)
    step, checkpoint = (long - short) / steps, (saving - long) / (1 + steps)
    row: dict[str, Any] = {"step, CPU-s": round(step, 3), "checkpoint, CPU-s": round(checkpoint, 3)}
    for every in (100, 250, 1000):
        row[f"every {every} steps, % of them"] = round(100 * checkpoint / (every * step), 2)
    print(row, flush=True)
    return [row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=["prepare", "loader", "checkpoint"], default="prepare")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures there")
    parser.add_argument("--quick", action="store_true", help="small sizes, nothing written")
    options = parser.parse_args()
    from tinylm.observability import tables

    with tempfile.TemporaryDirectory() as name:
        if options.what == "prepare":
            title = "prepare: one text of many megabytes, by size and threads"
            rows = measure_prepare(Path(name), [5, 10] if options.quick else [50, 500])
        elif options.what == "checkpoint":
            title = "What a checkpoint costs (GPT-2's 124M shape, 4 x 256 tokens, AdamW, one thread)"
            rows = measure_checkpoint(Path(name), 1 if options.quick else 6)
        else:
            title = "What data costs a training step (GPT-2's 124M shape, 4 x 256 tokens, one thread)"
            rows = measure_loader(Path(name), 1 if options.quick else 5)
    command = f"python packages/tinylm-train/benchmarks/data.py {options.what}"
    if options.json is not None and not options.quick:
        tables.write_table(tables.new_table(title, command, list(rows[0]), rows), options.json)


if __name__ == "__main__":
    main()
