"""Training beside the peers: byte-level BPE of 32,000 tokens on 40 MB of text, and the Python rungs beside minbpe.

    python packages/tinylm-tokenizer/benchmarks/fetch_data.py mix
    python packages/tinylm-tokenizer/benchmarks/training.py [--quick] [--text FILE] [--rounds 5] [--vocabulary 32000]

Prints a table and writes benchmarks/results/training.json. Every run is a process of its own, so that its CPU time
and its peak memory (VmHWM, the interpreter included) are its own; the median of the rounds, in which everybody takes a
turn. All are given GPT-2's pattern. The merges are compared: gigabpe's and Hugging Face's must be ours, one by one,
when we take every line for a text of its own, as they do with a file.

minbpe is on no package registry. What stands for it here is its published algorithm written anew: count the pairs of
all pieces again for each merge, then rewrite every piece; when encoding, count a piece's pairs again for each merge.
It counts every occurrence of a piece, not each distinct piece once, as the original does.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from _bench import DATA, kept, need, table

MIX = DATA / "text" / "mix.txt"
PEERS = ("gigabpe", "rustbpe", "tokenizers")
PATTERN = "gpt2"
TWICE = "kernels twice, in two processes"
BYTES_OF_MERGES = 31_000  # merges that are compared: gigabpe leaves out bytes it has not seen, and learns more


# --- one run, in a process of its own: who → tokenizer.json in a folder (rustbpe writes none) ------------------------


def ours(path: str, vocabulary: int, threads: int, out: Path) -> None:
    train([path], vocabulary, threads, out)


def ours_by_line(path: str, vocabulary: int, threads: int, out: Path) -> None:
    with Path(path).open(encoding="utf-8", newline="\n") as file:
        train(file, vocabulary, threads, out)


def train(corpus: Iterable[str], vocabulary: int, threads: int, out: Path) -> None:
    from tinylm.tokenizer import Tokenizer

    trained = Tokenizer.train(corpus, vocab_size=vocabulary, pattern=PATTERN, special_tokens=[], threads=threads)
    trained.save(out.parent)


def gigabpe(path: str, vocabulary: int, threads: int, out: Path) -> None:
    import gigabpe

    gigabpe.train_tokenizer([path], vocabulary, str(out), pretokenizer="bytelevel", threads=threads)


def rustbpe(path: str, vocabulary: int, threads: int, out: Path) -> None:
    import rustbpe

    from tinylm.tokenizer.patterns import PATTERNS

    with Path(path).open(encoding="utf-8", newline="") as file:
        rustbpe.Tokenizer().train_from_iterator(file, vocabulary, pattern=PATTERNS[PATTERN])


def hugging_face(path: str, vocabulary: int, threads: int, out: Path) -> None:
    import tokenizers
    from tokenizers import pre_tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train([path], trainer)
    tokenizer.save(str(out))


def merges_of(path: Path) -> list[list[str]]:
    merges: list[Any] = json.loads(path.read_bytes())["model"]["merges"]
    return [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]


RUNS: dict[str, Callable[[str, int, int, Path], None]] = {
    "kernels": ours,
    "kernels by line": ours_by_line,
    "gigabpe": gigabpe,
    "rustbpe": rustbpe,
    "tokenizers": hugging_face,
}


def run_here(who: str, path: str, vocabulary: int, threads: int) -> None:
    """Train and write what was learned, which is looked at when the time has been taken; print one line of JSON."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory, "tokenizer.json")
        cpu, wall = time.process_time(), time.perf_counter()
        RUNS[who](path, vocabulary, threads, out)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        status = Path("/proc/self/status").read_text()
        merges = merges_of(out) if out.is_file() else []
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024
    digest = hashlib.sha256(json.dumps(merges[:BYTES_OF_MERGES]).encode()).hexdigest()
    print(json.dumps({"cpu": cpu, "wall": wall, "peak": peak, "merges": digest}))


def run(who: str, path: Path, vocabulary: int, threads: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", who, "--text", str(path)]
    command += ["--vocabulary", str(vocabulary), "--threads", str(threads)]
    environment = {**os.environ, "RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": str(threads > 1)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def two_processes(path: Path, vocabulary: int) -> dict[str, Any]:
    """Two of one thread each, side by side and nothing in common: what two cores of this machine do at most."""
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: run("kernels", path, vocabulary, 1), range(2))
    added = {name: first[name] + second[name] for name in ("cpu", "peak")}
    return {**added, "wall": max(first["wall"], second["wall"]), "merges": first["merges"]}


def beside_the_peers(path: Path, vocabulary: int, rounds: int) -> list[list[Any]]:
    """Rows: job, who, CPU seconds, seconds, peak MB, how many times ours (CPU)."""
    runs: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for number in range(rounds):
        for who, threads in (("kernels", 1), ("kernels", 2), *((peer, 1) for peer in PEERS), ("gigabpe", 2)):
            once = partial(run, who, path, vocabulary, threads)
            runs.setdefault((who, threads), []).append(kept(["training.py", number, who, threads, vocabulary], once))
        both = kept(["training.py", number, "two processes", vocabulary], partial(two_processes, path, vocabulary))
        runs.setdefault((TWICE, 1), []).append(both)
    by_line = run("kernels by line", path, vocabulary, 2)["merges"]
    for (who, _), results in runs.items():
        if who in ("gigabpe", "tokenizers") and {result["merges"] for result in results} != {by_line}:
            raise SystemExit(f"the merges of {who} are not ours")
    median = {
        key: {name: statistics.median(result[name] for result in results) for name in ("cpu", "wall", "peak")}
        for key, results in runs.items()
    }
    one = median["kernels", 1]["cpu"]
    job = f"train {vocabulary:,} tokens on {path.stat().st_size / 1e6:.0f} MB"
    return [
        [job, f"{who}, {threads} thread{'s' * (threads > 1)}", row["cpu"], row["wall"], row["peak"], row["cpu"] / one]
        for (who, threads), row in sorted(median.items(), key=lambda item: item[1]["cpu"])
    ]


def speed_of_two_threads(rows: list[list[Any]]) -> dict[str, float]:
    """How many times as fast two threads are as one, by the clock: of use where nothing else runs. machine: how much
    two processes do that share nothing, beside one: no thread can do more."""
    seconds = {row[1]: row[3] for row in rows}
    speed = {who: seconds[f"{who}, 1 thread"] / seconds[f"{who}, 2 threads"] for who in ("kernels", "gigabpe")}
    speed["machine"] = 2 * seconds["kernels, 1 thread"] / seconds[f"{TWICE}, 1 thread"]  # work of two in that time
    print("two threads ÷ one, by the clock:", ", ".join(f"{who} {ratio:.2f}" for who, ratio in speed.items()))
    return speed


# --- the Python rungs beside minbpe's algorithm ----------------------------------------------------------------------


def counted_again(ids: list[int], counts: dict[tuple[int, int], int]) -> None:
    for pair in itertools.pairwise(ids):
        counts[pair] = counts.get(pair, 0) + 1


def rewritten(ids: list[int], pair: tuple[int, int], new_id: int) -> list[int]:
    result, i = [], 0
    while i < len(ids):
        if ids[i] == pair[0] and i < len(ids) - 1 and ids[i + 1] == pair[1]:
            result.append(new_id)
            i += 2
        else:
            result.append(ids[i])
            i += 1
    return result


def minbpe_train(pieces: list[str], wanted: int) -> dict[tuple[int, int], int]:
    words = [list(piece.encode()) for piece in pieces]
    merges: dict[tuple[int, int], int] = {}
    for new_id in range(256, 256 + wanted):
        counts: dict[tuple[int, int], int] = {}
        for ids in words:
            counted_again(ids, counts)
        best = max(counts, key=lambda pair: counts[pair])
        words = [rewritten(ids, best, new_id) for ids in words]
        merges[best] = new_id
    return merges


def minbpe_encode(pieces: list[str], merges: dict[tuple[int, int], int]) -> list[int]:
    result: list[int] = []
    for piece in pieces:
        ids = list(piece.encode())
        while len(ids) >= 2:
            counts: dict[tuple[int, int], int] = {}
            counted_again(ids, counts)
            pair = min(counts, key=lambda pair: merges.get(pair, float("inf")))
            if pair not in merges:
                break
            ids = rewritten(ids, pair, merges[pair])
        result.extend(ids)
    return result


def seconds_of(work: Callable[[], Any]) -> dict[str, float]:
    started = time.process_time()
    work()
    return {"seconds": time.process_time() - started}


def beside_minbpe(text: str, rounds: int) -> list[list[Any]]:
    from tinylm.tokenizer import byte_bpe, byte_bpe_fast, kernels
    from tinylm.tokenizer._engines.vocabulary import from_training
    from tinylm.tokenizer._text.pretokenize import count_pieces, split

    stages, wanted, known = (PATTERN,), 300, 8000  # merges to train, and merges to encode with
    merges = kernels.train_merges(count_pieces([text], stages), known)
    vocabulary = from_training(merges, [], PATTERN)
    as_bytes = [byte_bpe.BYTE_OF_ID[id] if id < 256 else id for id in range(256 + known)]
    ranks = {(as_bytes[left], as_bytes[right]): 256 + rank for rank, (left, right) in enumerate(merges)}
    start = text[: len(text) // 4]
    jobs: dict[str, dict[str, Callable[[], Any]]] = {
        f"train {wanted} merges, {len(start.encode()) / 1e6:.1f} MB, Python": {
            "byte_bpe": lambda: byte_bpe.train_merges(count_pieces([start], stages), wanted),
            "byte_bpe_fast": lambda: byte_bpe_fast.train_merges(count_pieces([start], stages), wanted),
            "minbpe's algorithm": lambda: minbpe_train(split(start, stages), wanted),
        },
        f"encode with {known:,} merges, {len(text.encode()) / 1e6:.1f} MB, Python": {
            "byte_bpe": lambda: byte_bpe.encode(text, merges, PATTERN),
            "byte_bpe_fast": lambda: byte_bpe_fast.Encoder(vocabulary).encode(text),
            "minbpe's algorithm": lambda: minbpe_encode(split(text, stages), ranks),
        },
    }
    rows: list[list[Any]] = []
    for job, everybody in jobs.items():
        seconds: dict[str, list[float]] = {who: [] for who in everybody}
        for number in range(rounds):
            for who, work in everybody.items():
                seconds[who].append(kept(["training.py", number, job, who], partial(seconds_of, work))["seconds"])
        slowest = statistics.median(seconds["minbpe's algorithm"])
        for who, times in seconds.items():
            cpu = statistics.median(times)
            rows.append([job, who, cpu, "–", "–", slowest / cpu])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--text", type=Path, default=MIX)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--one", choices=RUNS, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return run_here(options.one, str(options.text), options.vocabulary, options.threads)
    need(packages=PEERS)
    if not options.text.is_file():
        raise SystemExit(f"wanted a text, found none at {options.text}: fetch it with fetch_data.py mix")
    rounds = 1 if options.quick else options.rounds
    rows = beside_the_peers(options.text, options.vocabulary, rounds)
    with options.text.open(encoding="utf-8", newline="") as file:
        rows += beside_minbpe(file.read(1_000_000), min(rounds, 3))
    table(
        "training",
        "Training byte-level BPE (ratio: × our CPU time; Python: × minbpe's speed)",
        "python packages/tinylm-tokenizer/benchmarks/training.py",
        ["job", "who", "CPU seconds", "seconds", "peak MB", "ratio"],
        rows,
        [*PEERS, "regex"],
        threads=speed_of_two_threads(rows),
    )


if __name__ == "__main__":
    main()
