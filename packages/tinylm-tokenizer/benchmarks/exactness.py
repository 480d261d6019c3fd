"""The long comparison with tiktoken: every id of GPT-2, cl100k and o200k, on as much text as there is.

    python packages/tinylm-tokenizer/benchmarks/exactness.py [--strings 20000] [--seed 0] [FILE ...]

1. FILE ... (default: every text in data/raw/text that `fetch_data.py --all` has made), in one piece each;
2. made strings of what pre-tokenisation has to think about and of any characters;
3. every code point in several contexts.

Prints what was compared; ends with exit code 1 and the shortest differing piece at the first difference. Needs tiktoken
and the vocabularies of `fetch_data.py`.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import peers
from _bench import DATA, need

from tinylm.tokenizer import Tokenizer

ENCODINGS = {"r50k": "gpt2", "cl100k": "cl100k", "o200k": "o200k"}
PARTS = [
    *(
        " ",
        "  ",
        "     ",
        "\n",
        "\r\n",
        "\t",
        "\u00a0",
        "\u3000",
        "\x85",
        "\x1c",
        "\v",
        "'s",
        "'LL",
        "'ſ",
        "'",
        "don't",
    ),
    *("x", "A", "Été", "ABc", "aB", "ǅ", "ʰ", "日本", "中A", "ⅷ", "½", "7", "42", "12345", "٣٤", "e\u0301", "\u0301"),
    *(
        "किं",
        "\u200d",
        "\ufe0f",
        "👩‍👧",
        "!",
        "?!",
        "/",
        "//",
        "_",
        "’s",
        "<|endoftext|>",
        "😀",
        "the",
        " of",
        "import ",
    ),
]


def strings(count: int, seed: int) -> Iterator[str]:
    chance = random.Random(seed)
    for _ in range(count):
        yield "".join(
            chance.choice(PARTS) if chance.random() < 0.85 else chr(chance.choice([*range(32, 127), 0x1F600, 0x4E00]))
            for _ in range(chance.randrange(60))
        )


def every_character() -> Iterator[str]:
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    for start in range(0, len(characters), 4096):
        yield "".join(f"a{c} {c}1{c}.{c}A{c}  {c}\n{c}\n" for c in characters[start : start + 4096])


def first_difference(text: str, ours: list[int], theirs: list[int], tokenizer: Tokenizer) -> str:
    same = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    place = len(tokenizer.decode_bytes(ours[:same]))
    around = text.encode()[max(place - 30, 0) : place + 30]
    return f"at byte {place}, {around!r}: ours {ours[same : same + 5]}, tiktoken's {theirs[same : same + 5]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strings", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("files", nargs="*", type=Path, default=sorted((DATA / "text").glob("*.txt")))
    options = parser.parse_args()
    need(*(f"vocabularies/{name}/{name}_base.tiktoken" for name in ENCODINGS), packages=["tiktoken"])
    for encoding, pattern in ENCODINGS.items():
        tokenizer = Tokenizer.load(peers.ranks(encoding, DATA), pattern=pattern)
        reference = peers.load("tiktoken", encoding, DATA)
        jobs: dict[str, Iterator[str]] = {
            "files": (path.read_bytes().decode() for path in options.files),
            "strings": strings(options.strings, options.seed),
            "every character": every_character(),
        }
        for job, texts in jobs.items():
            count = size = 0
            for text in texts:
                ours, theirs = tokenizer.encode(text), reference.encode(text)
                if ours != theirs:
                    sys.exit(f"{encoding}, {job}: {first_difference(text, ours, theirs, tokenizer)}")
                if tokenizer.decode_bytes(ours) != text.encode():
                    sys.exit(f"{encoding}, {job}: decoding does not give the text back")
                count, size = count + 1, size + len(text.encode())
            print(f"{encoding:8} {job:16} {count:6,} texts, {size / 1e6:6.1f} MB: the same ids", flush=True)


if __name__ == "__main__":
    main()
