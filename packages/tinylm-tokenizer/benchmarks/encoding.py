"""Our rungs beside tiktoken and tokenizers: training and encoding the same made text, with the same vocabulary.

    python packages/tinylm-tokenizer/benchmarks/encoding.py

Prints a table and writes benchmarks/results/encoding.json. CPU seconds of this process on one thread, the median of
five rounds in which everybody takes a turn; every round has text that nobody has seen, so that caches start cold. The
results are compared too: a rung or a peer that gives other merges or ids ends the run.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["RAYON_NUM_THREADS"] = "1"  # before tokenizers is imported

import tiktoken
import tokenizers
from tokenizers import pre_tokenizers

from tinylm.tokenizer import Tokenizer, byte_bpe_fast, kernels
from tinylm.tokenizer._json_byte_level import to_printable
from tinylm.tokenizer._pretokenize import count_pieces, split
from tinylm.tokenizer._vocabulary import from_training
from tinylm.tokenizer.ladder import made_text
from tinylm.tokenizer.patterns import PATTERNS

ROUNDS = 5
CHARACTERS = 1_000_000
VOCABULARY = 4096
PATTERN = "llama3"  # the same expression in all three libraries
RESULTS = Path(__file__).with_name("results") / "encoding.json"


def peers_training(text: str) -> dict[str, Callable[[], Any]]:
    """Name → the merged tokens, as text."""

    def ours(train: Callable[..., Any]) -> Callable[[], Any]:
        def run() -> Any:
            merges = train(count_pieces([text], (PATTERN,)), VOCABULARY - 256)
            return sorted(map(to_printable, from_training(merges, [], PATTERN).tokens.values()))

        return run

    def hugging_face() -> Any:
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(tokenizers.Regex(PATTERNS[PATTERN]), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = tokenizers.trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator([text], trainer)
        return sorted(tokenizer.get_vocab())

    return {
        "byte_bpe_fast": ours(byte_bpe_fast.train_merges),
        "kernels": ours(kernels.train_merges),
        "tokenizers": hugging_face,
    }


def peers_encoding(text: str) -> dict[str, Callable[[], Any]]:
    """Name → the ids, as a list. Making the encoders is not timed."""
    tokenizer = Tokenizer.train([made_text(CHARACTERS, seed=99)], vocab_size=VOCABULARY, pattern=PATTERN)
    ranks = {token: id for id, token in tokenizer.engine.vocabulary.tokens.items()}
    tik = tiktoken.Encoding("ours", pat_str=PATTERNS[PATTERN], mergeable_ranks=ranks, special_tokens={})
    with tempfile.TemporaryDirectory() as directory:
        tokenizer.save(directory)
        hugging_face = tokenizers.Tokenizer.from_file(str(Path(directory) / "tokenizer.json"))
    fast = byte_bpe_fast.Encoder(tokenizer.engine.vocabulary)
    return {
        "byte_bpe_fast": lambda: fast.encode_pieces(split(text, (PATTERN,))),
        "kernels": lambda: tokenizer.encode(text),
        "tiktoken": lambda: tik.encode_ordinary(text),
        "tokenizers": lambda: hugging_face.encode(text, add_special_tokens=False).ids,
    }


def measure(job: str, make: Callable[[str], dict[str, Callable[[], Any]]]) -> list[list[Any]]:
    """Rows of the table: job, who, MB per CPU second, and how many times as quick as the slowest peer's rung."""
    seconds: dict[str, list[float]] = {}
    for round in range(ROUNDS):
        text = made_text(CHARACTERS, seed=round)
        results = {}
        for name, run in make(text).items():
            started = time.process_time()
            results[name] = run()
            seconds.setdefault(name, []).append(time.process_time() - started)
        if len({json.dumps(result) for result in results.values()}) != 1:
            raise SystemExit(f"{job}: the results differ in round {round}")
    size = len(text.encode()) / 1e6
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return [
        [job, name, size / median, medians["tokenizers"] / median]
        for name, median in sorted(medians.items(), key=lambda item: -item[1])
    ]


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    facts = {"cpu": name, "cores": os.cpu_count(), "system": platform.system(), "architecture": platform.machine()}
    return {**facts, "python": platform.python_version()}


def main() -> None:
    if not kernels.available():
        raise SystemExit("the compiled kernel is not installed: there is nothing to compare")
    rows = measure("train 4,096 tokens", peers_training) + measure("encode, list out", peers_encoding)
    packages = ("numpy", "regex", "tiktoken", "tokenizers")
    table = {
        "format": 1,
        "title": "Byte-level BPE: our rungs and the peers, made text of 1 MB",
        "command": "python packages/tinylm-tokenizer/benchmarks/encoding.py",
        "machine": machine(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "date": datetime.now(UTC).date().isoformat(),
        "columns": ["job", "who", "MB per CPU second", "× tokenizers"],
        "rows": rows,
    }
    for job, name, rate, ratio in rows:
        print(f"{job:20} {name:14} {rate:8.2f} MB/s {ratio:6.2f} × tokenizers")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(table, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
