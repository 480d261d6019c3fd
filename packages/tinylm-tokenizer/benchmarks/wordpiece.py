"""WordPiece beside nanotoken and tokenizers: text to an array of ids (bert-base-uncased), and learning pieces.

    python packages/tinylm-tokenizer/benchmarks/wordpiece.py [--quick]

Encoding: MB per CPU second, one thread, first call on unseen text in a fresh process, the median of five rounds in
turn. The ids of all are compared on every text. Training: CPU seconds for 30,000 tokens of a file, counting included;
what tokenizers' WordPieceTrainer learns is not the same: it joins the commonest pair. Writes wordpiece.json and
wordpiece_training.json in benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _bench import DATA, RESULTS, need, rounds, table
from encoding import digest, text_of

COMMAND = "python packages/tinylm-tokenizer/benchmarks/wordpiece.py"
TEXTS = ["english", "code", "scripts", "chinese-japanese"]
TRAINED = ["english", "mix"]
LIBRARIES = ["tinylm", "tinylm, Python", "nanotoken", "tokenizers"]


def vocabulary() -> str:
    """bert-base-uncased as vocab.txt: the package's list has "▁" before the start of a word and nothing inside one."""
    tokens: list[str] = json.loads((DATA / "vocabularies" / "bert" / "vocab.json").read_bytes())
    tokens[1] = "[unused0]"  # the list has an empty entry there
    special = [token.startswith("[") and token.endswith("]") and len(token) > 2 for token in tokens]
    written = [
        token if alone else token.removeprefix("▁") if token[0] == "▁" else f"##{token}"
        for token, alone in zip(tokens, special, strict=True)
    ]
    return "".join(f"{token}\n" for token in written)


def encoder(library: str, document: str) -> Callable[[str], Any]:
    """Text → ids, from a tokenizer.json."""
    if library == "nanotoken":
        import nanotoken

        codec = nanotoken.Tokenizer.from_json(Path(document).read_bytes())
        return lambda text: codec.encode(text, add_special_tokens=False)
    if library == "tokenizers":
        import tokenizers

        other = tokenizers.Tokenizer.from_file(document)
        return lambda text: other.encode(text, add_special_tokens=False).ids
    from tinylm.tokenizer import Tokenizer, kernels

    if library == "tinylm, Python":
        kernels._compiled = lambda: None
    return Tokenizer.load(document).encode_array


def measure(library: str, name: str, document: str) -> dict[str, Any]:
    import numpy  # noqa: F401 - its import is no encoding

    text = text_of(name)[:1_000_000]
    encode = encoder(library, document)
    started = time.process_time()
    ids = encode(text)
    return {"seconds": time.process_time() - started, "bytes": len(text.encode()), "digest": digest(ids)}


def train(library: str, name: str) -> dict[str, Any]:
    """Learn 30,000 tokens from a file."""
    path = str(DATA / "text" / f"{name}.txt")
    if library == "tokenizers":
        import tokenizers
        from tokenizers import models, normalizers, pre_tokenizers, trainers

        tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=30_000, limit_alphabet=1000, show_progress=False)
        started = time.process_time()
        tokenizer.train([path], trainer)
    else:
        from tinylm.tokenizer import Tokenizer, kernels

        if library == "tinylm, Python":
            kernels._compiled = lambda: None
        started = time.process_time()
        Tokenizer.train([path], vocab_size=30_000, algorithm="wordpiece", threads=1)
    return {"seconds": time.process_time() - started, "digest": None}


def training(count: int) -> None:
    """The table of training; plain Python is left out: it needs minutes for a megabyte."""
    libraries = ["tinylm", "tokenizers"]
    found = rounds("wordpiece.py", [("train", who, text) for text in TRAINED for who in libraries], count)
    seconds = {who: [found["train", who, text].get("seconds", "–") for text in TRAINED] for who in libraries}
    table(
        "wordpiece_training",
        "WordPiece training, 30,000 tokens: CPU seconds, one thread",
        COMMAND,
        ["library", *TRAINED],
        [[who, *seconds[who]] for who in libraries],
        ["numpy", "tokenizers"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="WordPiece beside nanotoken and tokenizers.")
    parser.add_argument("--quick", action="store_true", help="one round instead of five")
    count = 1 if parser.parse_args().quick else 5
    texts = dict.fromkeys([*TEXTS, *TRAINED])
    need("vocabularies/bert/vocab.json", *(f"text/{text}.txt" for text in texts), packages=["tokenizers"])
    training(count)
    from tinylm.tokenizer import Tokenizer

    folder = DATA / "vocabularies" / "bert" / "json"
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text(vocabulary(), encoding="utf-8")
    Tokenizer.load(folder / "vocab.txt").save(folder)
    document = str(folder / "tokenizer.json")
    tasks = [("measure", who, text, document) for text in TEXTS for who in LIBRARIES]
    found = rounds("wordpiece.py", tasks, count)
    rates: dict[str, dict[str, Any]] = {who: {} for who in LIBRARIES}
    for (_, who, text, _), result in found.items():
        reference = found["measure", "tokenizers", text, document]["digest"]
        if "error" in result:
            print(f"{who}, {text}: {result['error']}")
        if "error" in result or result["digest"] != reference:
            if who.startswith("tinylm"):
                raise SystemExit(f"{who}, {text}: other ids than tokenizers': {result}")
            rates[who][text] = "–"
        else:
            rates[who][text] = result["bytes"] / 1e6 / result["seconds"]
    table(
        "wordpiece",
        "WordPiece, bert-base-uncased: MB per CPU second, first call in a fresh process",
        COMMAND,
        ["library", *TEXTS],
        [[who, *(rates[who][text] for text in TEXTS)] for who in LIBRARIES],
        ["numpy", "nanotoken", "tokenizers"],
    )


def summary() -> list[dict[str, Any]]:
    """The rows of the summary, from the tables of the last run."""
    rates = {who: figures for who, *figures in json.loads((RESULTS / "wordpiece.json").read_text())["rows"]}
    encoding = [
        {
            "job": f"WordPiece encode, array: {text}",
            "unit": "MB/s",
            "plain": rates["tinylm, Python"][number],
            "kernels": rates["tinylm"][number],
            "peer": "nanotoken",
            "peer_figure": rates["nanotoken"][number],
            "exact": "ids = tokenizers'",
        }
        for number, text in enumerate(TEXTS)
    ]
    written = RESULTS / "wordpiece_training.json"
    if not written.is_file():
        print(f"no results of {written.name}: rows left out")
    ours, theirs = json.loads(written.read_text())["rows"] if written.is_file() else ([], [])
    trained = [
        {
            "job": f"WordPiece training, 30,000 tokens: {text}",
            "unit": "CPU s",
            "kernels": ours[number],
            "peer": "tokenizers",
            "peer_figure": theirs[number],
            "exact": "pieces = plain's",
        }
        for number, text in enumerate(TRAINED, 1)
        if ours
    ]
    return encoding + trained


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        print(json.dumps(measure(*sys.argv[2:])))
    elif sys.argv[1:2] == ["train"]:
        print(json.dumps(train(*sys.argv[2:])))
    else:
        main()
