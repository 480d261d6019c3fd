"""SentencePiece-BPE and Unigram beside sentencepiece itself: encoding and training, in one interleaved run.

    python packages/tinylm-tokenizer/benchmarks/sentencepiece_family.py

Prints a table and writes benchmarks/results/sentencepiece.json. CPU seconds of this process on one thread, the median
of five rounds in which both take a turn. "cold": a new encoder, its cache is empty; "lines": every line is a text of
its own. Ids that differ end the run, and so does a Unigram vocabulary that is less likely than sentencepiece's.
"""

from __future__ import annotations

import io
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its waiting threads would count as CPU time

import sentencepiece
from _bench import DATA, RESULTS, need

from tinylm.tokenizer import unigram_training
from tinylm.tokenizer._engines.sentencepiece_data import Kind, SentencePieceModel
from tinylm.tokenizer._formats.sentencepiece_model import read
from tinylm.tokenizer._trainers.sentencepiece_corpus import Options
from tinylm.tokenizer.kernels import sentencepiece as encoding
from tinylm.tokenizer.kernels import sentencepiece_training as training

ROUNDS = 5
MODELS = ("botchan-bpe", "mistral-v1", "botchan-unigram", "kyoto-unigram")
TRAINED = (("botchan", 2000), ("english", 8000))


def median(tasks: dict[str, Callable[[], Any]]) -> tuple[dict[str, float], dict[str, Any]]:
    """CPU seconds of each task, and what it returned last."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    results: dict[str, Any] = {}
    for _ in range(ROUNDS):
        for name, task in tasks.items():
            started = time.process_time()
            results[name] = task()
            seconds[name].append(time.process_time() - started)
    return {name: statistics.median(times) for name, times in seconds.items()}, results


def encode(name: str, text: str) -> list[list[Any]]:
    """Rows: job, MB per CPU second here and there, ratio."""
    path = DATA / "vocabularies" / name / "tokenizer.model"
    model = read(path.read_bytes(), name)
    peer = sentencepiece.SentencePieceProcessor(model_file=str(path))
    lines = text.splitlines()
    fresh = [encoding.Encoder(model) for _ in range(ROUNDS)]
    warm = encoding.Encoder(model)
    tasks = {
        "cold": lambda: fresh.pop().encode(text),
        "peer": lambda: peer.encode(text),
        "array": lambda: warm.encode_array(text),
        "lines": lambda: [warm.encode(line) for line in lines],
        "peer lines": lambda: [peer.encode(line) for line in lines],
    }
    times, results = median(tasks)
    if results["cold"] != results["peer"] or results["lines"] != results["peer lines"]:
        raise SystemExit(f"{name}: the ids differ from sentencepiece's")
    size = len(text.encode()) / 1e6
    pairs = (("encode, list, cold", "cold", "peer"), ("encode, array", "array", "peer"))
    pairs = (*pairs, ("encode, lines", "lines", "peer lines"))
    return [
        [f"{job}: {name}", size / times[ours], size / times[theirs], times[theirs] / times[ours]]
        for job, ours, theirs in pairs
    ]


def likelihood(model: SentencePieceModel, words: dict[str, int]) -> float:
    """Nats a character of the corpus under the likeliest pieces, with probabilities that sum to 1."""
    learned = zip(model.pieces, model.scores, model.kinds, strict=True)
    scores = {text: score for text, score, kind in learned if kind == Kind.NORMAL}
    total = math.log(math.fsum(map(math.exp, scores.values())))
    pieces = unigram_training._Pieces({text: score - total for text, score in scores.items()})
    nats = math.fsum(number * pieces.best(pieces.lattice(word))[1] for word, number in words.items())
    return nats / sum(number * len(word) for word, number in words.items())


def train(name: str, size: int, algorithm: str) -> list[Any]:
    """A row: job, MB per CPU second here and there, ratio."""
    text = (DATA / "text" / f"{name}.txt").read_text(encoding="utf-8")
    options = Options(size, normalization="nmt_nfkc", dummy_prefix=True, remove_extra_spaces=True, byte_fallback=False)
    assert options.steps  # compiled once; sentencepiece has its rules compiled already

    def ours() -> SentencePieceModel:
        if algorithm == "bpe":
            return training.train_bpe([text], options)
        return training.train_unigram([text], options, threads=1)

    def theirs() -> bytes:
        out = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text.split("\n")),
            model_writer=out,
            vocab_size=size,
            model_type=algorithm,
            max_sentence_length=1_000_000,
            num_threads=1,
            minloglevel=2,
        )
        return out.getvalue()

    times, results = median({"ours": ours, "theirs": theirs})
    model, peer = results["ours"], read(results["theirs"], "sentencepiece")
    if algorithm == "bpe" and model.pieces != peer.pieces:
        raise SystemExit(f"{name}: the BPE pieces differ from sentencepiece's")
    if algorithm == "unigram":
        words = training._count([text], options).words
        mine, other = likelihood(model, words), likelihood(peer, words)
        print(f"log-likelihood of {name} at {size}: {mine:.5f} nats a character, sentencepiece {other:.5f}")
        if mine < other:
            raise SystemExit(f"{name}: less likely than under sentencepiece's vocabulary")
    mb = len(text.encode()) / 1e6
    job = f"train {algorithm}, {size:,} pieces: {name}"
    return [job, mb / times["ours"], mb / times["theirs"], times["theirs"] / times["ours"]]


def main() -> None:
    need("text/english.txt", "text/botchan.txt", *(f"vocabularies/{name}/tokenizer.model" for name in MODELS))
    text = (DATA / "text" / "english.txt").read_text(encoding="utf-8")
    rows = [row for name in MODELS for row in encode(name, text)]
    rows += [train(name, size, algorithm) for algorithm in ("bpe", "unigram") for name, size in TRAINED]
    for job, ours, theirs, ratio in rows:
        print(f"{job:44} {ours:8.2f} MB/s  sentencepiece {theirs:6.2f} MB/s  {ratio:6.2f} ×")
    table = {
        "format": 1,
        "title": "SentencePiece-BPE and Unigram beside sentencepiece",
        "command": "python packages/tinylm-tokenizer/benchmarks/sentencepiece_family.py",
        "machine": {"system": platform.system(), "architecture": platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), "sentencepiece": version("sentencepiece")},
        "date": datetime.now(UTC).date().isoformat(),
        "columns": ["job", "MB per CPU second", "sentencepiece", "ratio"],
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "sentencepiece.json").write_text(
        json.dumps(table, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
