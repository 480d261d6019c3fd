"""A longer fuzz run than the tests': broken files into the loaders, any text through encode and decode.

    python packages/tinylm-tokenizer/benchmarks/fuzz.py [--minutes 5] [--seed 0]

Loaders: real files (data/raw/vocabularies) and those of tokenizers trained here are cut, overwritten, spliced and,
where they are JSON, changed in one part; `Tokenizer.load` must give a tokenizer that can encode, or a TokenizerError.
Texts: characters of every kind, in runs and mixtures; the ids of cl100k and o200k must be tiktoken's, arrays and
streams the same as lists, and decoding must give the text back. The first violation ends the run with exit code 1, and
prints what repeats it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import peers
from _bench import DATA, need

from tinylm.tokenizer import Tokenizer, TokenizerError
from tinylm.tokenizer._formats.convert import convert
from tinylm.tokenizer.ladder import made_text

SMALL = ["bert/vocab.json", "botchan-bpe/tokenizer.model", "botchan-unigram/tokenizer.model", "gpt2/vocab.json"]
# What is made of a tokenizer trained here: the algorithm and the file.
MADE = [("bpe", "tokenizer.json"), ("bpe", "x.tiktoken"), ("unigram", "tokenizer.json"), ("unigram", "x.model")]
MADE += [("sentencepiece-bpe", "tokenizer.json"), ("wordpiece", "tokenizer.json"), ("wordpiece", "vocab.txt")]
GGUF = "smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
HEAD = 3_000_000  # bytes of that file: the tokenizer stands before the weights
LARGE = ["cl100k/cl100k_base.tiktoken", "mistral-v3/tokenizer.model", "qwen3/tokenizer.json", "gemma3/tokenizer.json"]
RANGES = [
    (0, 0x7F),
    (0x80, 0x24F),
    (0x300, 0x36F),
    (0x370, 0x1FFF),
    (0x2000, 0x2FFF),
    (0x3000, 0x9FFF),
    (0xA000, 0xD7FF),
]
RANGES += [(0xE000, 0xFFFF), (0x10000, 0x1FFFF), (0x20000, 0x10FFFF)]
PIECES = [
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "'s",
    "'LL",
    "'ſ",
    "12",
    "123456",
    "<|endoftext|>",
    "a",
    "The",
    "ſ",
    "ß",
    "…",
    "\u200d",
]


def any_text(chance: Random) -> str:
    parts = []
    for _ in range(chance.randint(0, 12)):
        kind = chance.random()
        if kind < 0.4:
            low, high = chance.choice(RANGES)
            parts.append("".join(chr(chance.randint(low, high)) for _ in range(chance.randint(1, 8))))
        elif kind < 0.9:
            parts.append(chance.choice(PIECES))
        else:
            parts.append(chance.choice(PIECES) * chance.randint(2, 700))
    return "".join(parts)


def broken(data: bytes, chance: Random) -> bytes:
    """`data` cut, overwritten here and there, or with a stretch of it moved."""
    changed = bytearray(data)
    kind = chance.randrange(4)
    if kind == 0:
        return data[: chance.randrange(len(data))]
    if kind == 1:
        start, length = chance.randrange(len(data)), chance.randint(1, 2000)
        to = chance.randrange(len(data))
        changed[to:to] = data[start : start + length]
        return bytes(changed)
    reach = len(data) if kind == 2 else min(len(data), 3000)
    for _ in range(chance.choice([1, 2, 10, 100])):
        changed[chance.randrange(reach)] = chance.randrange(256)
    return bytes(changed)


def changed_json(document: Any, chance: Random) -> Any:
    """One value somewhere in a document replaced by another kind of value, or left out."""
    places: list[tuple[Any, Any]] = []
    todo = [document]
    while todo and len(places) < 4000:
        node = todo.pop()
        pairs = list(node.items() if isinstance(node, dict) else enumerate(node))[:200]
        places += [(node, key) for key, _ in pairs]
        todo += [value for _, value in pairs if isinstance(value, (dict, list)) and value]
    node, key = chance.choice(places)
    replacement = chance.choice([None, -1, 2**70, 1.5, "", "x", [], {}, [1], {"type": "x"}, True, "\ud800"])
    if chance.random() < 0.2 and isinstance(node, dict):
        del node[key]
    else:
        node[key] = replacement
    return document


def made(folder: Path) -> dict[str, bytes]:
    """The files of small tokenizers, which changes reach more of than of large ones."""
    files = {}
    for algorithm, name in MADE:
        tokenizer = Tokenizer.train([made_text(20_000)], vocab_size=700, algorithm=algorithm)
        convert(tokenizer, folder / algorithm / name)
        files[f"{algorithm}/{name}"] = (folder / algorithm / name).read_bytes()
    return files


def try_loader(name: str, data: bytes, chance: Random, folder: Path, counts: Counter[str]) -> None:
    path = folder / Path(name).name
    if name.endswith(".json") and chance.random() < 0.7:
        data = json.dumps(changed_json(json.loads(data), chance)).encode("utf-8", errors="surrogatepass")
    else:
        data = broken(data, chance)
    path.write_bytes(data)
    counts["files"] += 1
    try:
        tokenizer = Tokenizer.load(path, pattern="cl100k" if path.suffix == ".tiktoken" else None)
        tokenizer.decode(tokenizer.encode("Hello wörld, 日本 12345 <unk>"))
    except TokenizerError:
        counts["files refused"] += 1


def try_text(text: str, pairs: list[tuple[Tokenizer, Any]], counts: Counter[str]) -> None:
    counts["texts"] += 1
    for tokenizer, reference in pairs:
        ids = tokenizer.encode(text)
        assert ids == reference(text), "ids are not tiktoken's"
        assert tokenizer.encode_array(text).tolist() == ids, "the array is not the list"
        assert list(tokenizer.encode_stream(iter([text[:5], text[5:]]))) == ids, "the stream is not the list"
        assert tokenizer.decode(ids) == text, "decoding does not give the text back"


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuzz the loaders, encoding and decoding.")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    names = [*SMALL * 4, *LARGE]
    need(
        *(f"vocabularies/{name}" for name in (*names, GGUF)),
        "vocabularies/o200k/o200k_base.tiktoken",
        packages=["tiktoken"],
    )
    files = {name: (DATA / "vocabularies" / name).read_bytes() for name in names}
    files[GGUF] = (DATA / "vocabularies" / GGUF).read_bytes()[:HEAD]
    pairs = []
    for encoding in ("cl100k", "o200k"):
        arguments = (encoding, DATA)
        pairs.append((Tokenizer.load(peers.ranks(*arguments)), peers.load("tiktoken", *arguments).encode))
    warnings.simplefilter("ignore")
    counts: Counter[str] = Counter()
    number, end = 0, time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "merges.txt").write_bytes((DATA / "vocabularies" / "gpt2" / "merges.txt").read_bytes())
        files |= made(Path(folder))
        names += [name for name in files if name not in names] * 2
        while time.monotonic() < end:
            chance = Random(f"{options.seed} {number}")
            name = chance.choice(names)
            try:
                try_loader(name, files[name], chance, Path(folder), counts)
                for _ in range(100):
                    try_text(any_text(chance), pairs, counts)
            except Exception as error:
                print(f"case {number} of seed {options.seed} ({name}): {type(error).__name__}: {error}")
                raise
            number += 1
    print(", ".join(f"{count:,} {what}" for what, count in counts.items()), f"· seed {options.seed} · no violation")


if __name__ == "__main__":
    main()
