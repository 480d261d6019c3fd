"""The rungs in plain Python beside minbpe's algorithm, and what each step of the byte-level ladder bought.

    python packages/tinylm-tokenizer/benchmarks/plain.py [--quick]

minbpe (Karpathy 2024; it is on no index) is the usual plain-Python tokenizer. Its algorithm is written again here, from
its description: training counts every pair of every piece after every merge and then rewrites every piece; encoding
looks for the earliest merge among all pairs of a piece, again and again. Our own plain rung differs in one thing: equal
pieces are counted together. Same text and same pieces for all; merges and ids must be the same. CPU seconds, medians of
three rounds in one process. Writes benchmarks/results/rungs.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from _bench import DATA, need, table

from tinylm.tokenizer import byte_bpe, byte_bpe_fast, kernels
from tinylm.tokenizer._pretokenize import split
from tinylm.tokenizer._vocabulary import Vocabulary, from_training

PATTERN = "cl100k"
MERGES = 256
Ids = list[int]


def replace(ids: Ids, left: int, right: int, new: int) -> Ids:
    """Every `left, right` in `ids` becomes `new`, from the left."""
    result: Ids = []
    place = 0
    while place < len(ids):
        if ids[place] == left and place + 1 < len(ids) and ids[place + 1] == right:
            result.append(new)
            place += 2
        else:
            result.append(ids[place])
            place += 1
    return result


def minbpe_train(pieces: list[str], alphabet: Ids, merges: int) -> list[tuple[int, int]]:
    """The merges, each (left, right); ties go to the smallest pair, as in our rungs."""
    words = [[alphabet[byte] for byte in piece.encode()] for piece in pieces]
    learned = []
    for number in range(merges):
        counts = Counter(pair for word in words for pair in pairwise(word))
        left, right = min(counts, key=lambda pair: (-counts[pair], pair))
        words = [replace(word, left, right, 256 + number) for word in words]
        learned.append((left, right))
    return learned


def minbpe_encode(pieces: list[str], alphabet: Ids, merges: dict[tuple[int, int], int]) -> Ids:
    ids: Ids = []
    for piece in pieces:
        word = [alphabet[byte] for byte in piece.encode()]
        while len(word) > 1:
            counts = Counter(pairwise(word))  # as it does: the same function serves training and encoding
            left, right = min(counts, key=lambda pair: merges.get(pair, 1 << 60))
            if (left, right) not in merges:
                break
            word = replace(word, left, right, merges[left, right])
        ids += word
    return ids


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    result = run()
    return time.process_time() - started, result


def compare(job: str, rounds: int, size: int, runs: dict[str, Callable[[], Any]]) -> list[list[Any]]:
    """Rows (job, rung, CPU s, MB/s, × the row above, × minbpe's algorithm); the results must be equal."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        results = {}
        for name, run in runs.items():
            seconds, results[name] = timed(run)
            times[name].append(seconds)
        first = next(iter(results.values()))
        if wrong := [name for name, result in results.items() if result != first]:
            raise SystemExit(f"{job}: other results than the first: {', '.join(wrong)}")
    medians = {name: statistics.median(values) for name, values in times.items()}
    rows: list[list[Any]] = []
    above = slowest = next(iter(medians.values()))
    for name, median in medians.items():
        rows.append([job, name, median, size / 1e6 / median, above / median, slowest / median])
        above = median
    return rows


def main() -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description="Plain-Python rungs beside minbpe's algorithm.")
    parser.add_argument("--quick", action="store_true", help="one round instead of three, less text")
    quick = parser.parse_args().quick
    need("text/english.txt")
    everything = (DATA / "text" / "english.txt").read_bytes().decode()
    small, text = everything[:100_000], everything[: 200_000 if quick else 1_000_000]
    pieces = split(small, (PATTERN,))
    counted = Counter(pieces)
    vocabulary: Vocabulary = from_training(kernels.train_merges(Counter(split(text, (PATTERN,))), 8000), [], PATTERN)
    alphabet = list(vocabulary.byte_ids())
    pairs = {(left, right): new for left, right, new in vocabulary.merges}

    def pairs_of(train: Callable[..., Any]) -> Callable[[], Any]:
        return lambda: [(left, right) for left, right, *_ in train(counted, MERGES)]

    training = {
        "minbpe's algorithm": lambda: minbpe_train(pieces, alphabet, MERGES),
        "byte_bpe": pairs_of(byte_bpe.train_merges),
        "byte_bpe_fast": pairs_of(byte_bpe_fast.train_merges),
        "kernels": pairs_of(kernels.train_merges),
    }
    encoding = {
        "minbpe's algorithm": lambda: minbpe_encode(split(text, (PATTERN,)), alphabet, pairs),
        "byte_bpe": lambda: byte_bpe.encode(text, list(pairs), PATTERN),
        "byte_bpe_fast": lambda: byte_bpe_fast.Encoder(vocabulary).encode(text),
        "kernels": lambda: kernels.make_encoder(vocabulary).encode(text),
    }
    count = 1 if quick else 3
    rows = compare(f"train, {MERGES} merges", count, len(small.encode()), training)
    rows += compare("encode, 8,000 merges", count, len(text.encode()), encoding)
    table(
        "rungs",
        "Byte-level BPE rung by rung, English: training on 0.1 MB, encoding 1 MB",
        "python packages/tinylm-tokenizer/benchmarks/plain.py",
        ["job", "rung", "CPU s", "MB/s", "× the rung below", "× minbpe's algorithm"],
        rows,
        ["numpy", "regex"],
    )
    return [
        {
            "job": f"{job}: plain Python",
            "unit": "MB/s",
            **{key: next(row[3] for row in rows if row[:2] == [job, name]) for key, name in RUNGS.items()},
            "peer": "minbpe's algorithm",
            "peer_figure": next(row[3] for row in rows if row[0] == job),
            "exact": "every rung the same",
        }
        for job in dict.fromkeys(row[0] for row in rows)
    ]


RUNGS = {"plain": "byte_bpe", "incremental": "byte_bpe_fast", "kernels": "kernels"}

if __name__ == "__main__":
    main()
