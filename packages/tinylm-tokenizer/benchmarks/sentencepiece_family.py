"""SentencePiece-BPE and Unigram beside sentencepiece itself: encoding and training.

    python packages/tinylm-tokenizer/benchmarks/sentencepiece_family.py [--quick]

Writes benchmarks/results/sentencepiece.json. MB per CPU second on one thread, each in a fresh process, the median of
five rounds in turn. "list", "array": the first call on 4 MB of English as one text; "lines": every line in a call of
its own. The plain rung gets the first 200,000 characters. Ids that differ end the run, and so do trained BPE pieces
that differ and a trained Unigram vocabulary under which the corpus is less likely than under sentencepiece's.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import math
import sys
import time
from typing import Any

from _bench import DATA, RESULTS, need, rounds, table
from encoding import digest, text_of

COMMAND = "python packages/tinylm-tokenizer/benchmarks/sentencepiece_family.py"
MODELS = ("botchan-bpe", "mistral-v1", "botchan-unigram", "kyoto-unigram")
TRAINED = (("botchan", "2000"), ("english", "8000"))
LIBRARIES = ("tinylm", "tinylm, Python", "sentencepiece")
PLAIN = 200_000  # characters
EXACT = {"bpe": "pieces = sentencepiece's", "unigram": "as likely, or likelier"}


def measure(library: str, output: str, name: str) -> dict[str, Any]:
    """Encode English with a model, the first call of this process."""
    import numpy  # noqa: F401 - its import is no encoding

    path = str(DATA / "vocabularies" / name / "tokenizer.model")
    text = text_of("english")[: PLAIN if library == "tinylm, Python" else None]
    lines = text.splitlines()
    if library == "sentencepiece":
        import sentencepiece

        encode = sentencepiece.SentencePieceProcessor(model_file=path).encode
    else:
        from tinylm.tokenizer import Tokenizer, kernels

        if library == "tinylm, Python":
            kernels._compiled = lambda: None
        tokenizer = Tokenizer.load(path)
        encode = tokenizer.encode_array if output == "array" else tokenizer.encode
    gc.collect()
    started = time.process_time()
    ids = [encode(line) for line in lines] if output == "lines" else encode(text)
    seconds = time.process_time() - started
    flat = [id for line in ids for id in line] if output == "lines" else ids
    return {"seconds": seconds, "bytes": len(text.encode()), "digest": digest(flat), "ids": len(flat)}


def likelihood(model: Any, words: dict[str, int]) -> float:
    """Nats a character of the corpus under the likeliest pieces, with probabilities that sum to 1."""
    from tinylm.tokenizer import unigram_training
    from tinylm.tokenizer._engines.sentencepiece_data import Kind

    learned = zip(model.pieces, model.scores, model.kinds, strict=True)
    scores = {text: score for text, score, kind in learned if kind == Kind.NORMAL}
    total = math.log(math.fsum(map(math.exp, scores.values())))
    pieces = unigram_training._Pieces({text: score - total for text, score in scores.items()})
    nats = math.fsum(number * pieces.best(pieces.lattice(word))[1] for word, number in words.items())
    return nats / sum(number * len(word) for word, number in words.items())


def train(library: str, algorithm: str, name: str, size: str) -> dict[str, Any]:
    """Learn a vocabulary with sentencepiece's options. digest: of the pieces; for Unigram the likelihood."""
    from tinylm.tokenizer._formats.sentencepiece_model import read
    from tinylm.tokenizer._trainers.sentencepiece_corpus import Options
    from tinylm.tokenizer.kernels import sentencepiece_training as training

    text = text_of(name)
    options = Options(
        int(size), normalization="nmt_nfkc", dummy_prefix=True, remove_extra_spaces=True, byte_fallback=False
    )
    assert options.steps  # compiled once; sentencepiece has its rules compiled already
    started = time.process_time()
    if library == "sentencepiece":
        import sentencepiece

        out = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text.split("\n")),
            model_writer=out,
            vocab_size=int(size),
            model_type=algorithm,
            max_sentence_length=1_000_000,
            num_threads=1,
            minloglevel=2,
        )
        model = read(out.getvalue(), "sentencepiece")
    elif algorithm == "bpe":
        model = training.train_bpe([text], options)
    else:
        model = training.train_unigram([text], options, threads=1)
    seconds = time.process_time() - started
    found: Any = digest([ord(character) for character in "\n".join(model.pieces)])
    if algorithm == "unigram" and found:
        found = likelihood(model, training._count([text], options).words)
    return {"seconds": seconds, "bytes": len(text.encode()), "digest": found}


def encoding_rows(count: int) -> list[list[Any]]:
    jobs = [(output, name) for name in MODELS for output in ("list", "array", "lines")]
    tasks = [("measure", who, *job) for job in jobs for who in LIBRARIES]
    found = rounds("sentencepiece_family.py", tasks, count)
    rows = []
    for output, name in jobs:
        ours, plain, peer = (found["measure", who, output, name] for who in LIBRARIES)
        if ours.get("digest") != peer.get("digest") or "error" in plain:
            raise SystemExit(f"{name}, {output}: the ids differ from sentencepiece's: {ours}, {plain}, {peer}")
        rates = [result["bytes"] / 1e6 / result["seconds"] for result in (plain, ours, peer)]
        rows.append([f"{name}: encode, {output}", *rates, rates[1] / rates[2], "ids = sentencepiece's"])
    return rows


def training_rows(count: int) -> list[list[Any]]:
    jobs = [(algorithm, *job) for algorithm in EXACT for job in TRAINED]
    libraries = (LIBRARIES[0], LIBRARIES[2])
    found = rounds("sentencepiece_family.py", [("train", who, *job) for job in jobs for who in libraries], count)
    rows = []
    for job in jobs:
        ours, peer = (found["train", who, *job] for who in libraries)
        algorithm, name, size = job
        if "error" in ours or "error" in peer:
            raise SystemExit(f"training {job}: {ours}, {peer}")
        good = ours["digest"] >= peer["digest"] if algorithm == "unigram" else ours["digest"] == peer["digest"]
        if not good:
            raise SystemExit(f"training {job}: ours {ours['digest']}, sentencepiece's {peer['digest']}")
        if algorithm == "unigram":
            print(f"{name}, {size}: {ours['digest']:.5f} nats a character, sentencepiece {peer['digest']:.5f}")
        rates = [result["bytes"] / 1e6 / result["seconds"] for result in (ours, peer)]
        job_name = f"train {algorithm}, {int(size):,} pieces: {name}"
        rows.append([job_name, "–", *rates, rates[0] / rates[1], EXACT[algorithm]])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="SentencePiece-BPE and Unigram beside sentencepiece.")
    parser.add_argument("--quick", action="store_true", help="one round instead of five")
    count = 1 if parser.parse_args().quick else 5
    files = ["text/english.txt", "text/botchan.txt", *(f"vocabularies/{name}/tokenizer.model" for name in MODELS)]
    need(*files, packages=["sentencepiece"])
    table(
        "sentencepiece",
        "SentencePiece-BPE and Unigram beside sentencepiece: MB per CPU second, in a fresh process",
        COMMAND,
        ["job", "plain", "kernels", "sentencepiece", "× sentencepiece", "exactness"],
        [*encoding_rows(count), *training_rows(count)],
        ["numpy", "sentencepiece"],
    )


def summary() -> list[dict[str, Any]]:
    """The rows of the summary, from the table of the last run."""
    rows = json.loads((RESULTS / "sentencepiece.json").read_text())["rows"]
    figures = {"unit": "MB/s", "peer": "sentencepiece"}
    return [
        {"job": job, "plain": plain, "kernels": kernels, "peer_figure": peer, "exact": exact, **figures}
        for job, plain, kernels, peer, _, exact in rows
    ]


if __name__ == "__main__":
    if sys.argv[1:2] in (["measure"], ["train"]):
        print(json.dumps({"measure": measure, "train": train}[sys.argv[1]](*sys.argv[2:])))
    else:
        main()
