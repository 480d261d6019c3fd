"""Encoding, decoding and starting with cl100k and o200k, beside the libraries in use (`peers.py`).

    python packages/tinylm-tokenizer/benchmarks/encoding.py [--quick] [TABLE ...]

TABLE: cl100k-list, cl100k-array, cl100k-again, o200k-list, o200k-array, o200k-again, others (without one: all, which
takes half an hour). Every figure is the median of five rounds, arrays of fifteen (--quick: one), in which everybody
takes a turn; every turn is a fresh process whose first call meets text that it has not seen ("again": the third call,
as an array); CPU seconds of the process, one thread; a text's size is taken outside the timing. The ids of all are
compared with tiktoken's: ours must be the same; who else differs is marked.
Texts: data/raw/text, from `fetch_data.py --all`. Writes benchmarks/results/encode_*.json and start_and_worst.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import peers
from _bench import DATA, RESULTS, need, rounds, table

COMMAND = "python packages/tinylm-tokenizer/benchmarks/encoding.py"
TEXTS = ["english", "code", "scripts", "short", "short, one batch", "european", "chinese-japanese"]
DOCUMENTS = ["english", "code", "scripts"]
PYTHON = "tinylm, Python"  # byte_bpe_fast, where there is no kernel
LIBRARIES = [name for name in peers.LOADERS if name != PYTHON]
FASTEST = ["tinylm", "gigatoken", "fastokens", "toktok-rs", "tiktoken"]  # what o200k and arrays are measured with
LARGE = {"european", "chinese-japanese"}  # these with the fastest, too; quicktok-v1 was seen among them
OUTPUTS = {"list": "list of ids, first call", "array": "array of ids, first call", "again": "array of ids, third call"}
ROUNDS = {"list": 5, "array": 15, "again": 5}  # arrays are quick, and a virtual machine's speed changes within seconds
TABLES = [*(f"{encoding}-{output}" for encoding in ("cl100k", "o200k") for output in OUTPUTS), "others"]
WORST = ["one letter", "letters", "spaces", "combining", "emoji"]
WORST_LIBRARIES = ["tinylm", "gigatoken", "toktok-rs", "quicktok-v1", "bpe-openai", "tiktoken"]
PACKAGES = ["numpy", "regex", *(name for name in LIBRARIES if name != "tinylm")]


# --- one measurement, in a process of its own ------------------------------------------------------------------------


def text_of(name: str) -> str:
    return (DATA / "text" / f"{name}.txt").read_bytes().decode()


def worst_text(name: str, size: int) -> str:
    """`size` bytes of what makes a careless merge loop quadratic."""
    chance = random.Random(0)
    made: dict[str, Callable[[], str]] = {
        "one letter": lambda: "a" * size,
        "letters": lambda: "".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=size)),
        "spaces": lambda: " " * size,
        "combining": lambda: "e" + "\u0301" * (size // 2),
        "emoji": lambda: "".join(chance.choices("😀🎉👍🏽🤖", k=size // 4)),
    }
    return made[name]()


def digest(ids: Any) -> str:
    """What ids are compared by; "" where nothing is to be compared."""
    if "TINYLM_COMPARE" not in os.environ:
        return ""
    import numpy as np

    return hashlib.sha256(np.asarray(ids, dtype=np.uint32).tobytes()).hexdigest()[:16]


def measure_encode(library: str, encoding: str, name: str, output: str) -> dict[str, Any]:
    text = text_of(name.partition(",")[0])
    size = len(text.encode())
    lines = text.splitlines()
    codec = peers.load(library, encoding, DATA)
    if output != "list":
        import numpy  # noqa: F401 - some import it only now, and that is no encoding
    one = cast(Callable[[str], Any], codec.encode if output == "list" else codec.array)
    several = cast(Callable[[list[str]], Any], codec.batch)
    for _ in range(2 if output == "again" else 0):
        one(text)
    started = time.process_time()
    if name.endswith("one batch"):
        ids = several(lines)
    elif name == "short":
        ids = [one(line) for line in lines]
    else:
        ids = one(text)
    seconds = time.process_time() - started
    if name.startswith("short"):
        ids = [id for line in ids for id in line]
    return {"seconds": seconds, "bytes": size, "digest": digest(ids)}


def measure_decode(library: str, encoding: str, name: str) -> dict[str, Any]:
    text = text_of(name)
    codec = peers.load(library, encoding, DATA)
    ids = peers.load("tiktoken", encoding, DATA).encode(text)
    assert codec.decode is not None
    started = time.process_time()
    back = codec.decode(ids)
    seconds = time.process_time() - started
    right = (back if isinstance(back, str) else back.decode()) == text
    return {"seconds": seconds, "bytes": len(text.encode()), "digest": "text" if right else "another text"}


def measure_start(library: str, encoding: str) -> dict[str, Any]:
    """From nothing imported to the first ids (the interpreter's own start is left out)."""
    started = time.process_time()
    ids = peers.load(library, encoding, DATA).encode("Hello there, this is the first text.")
    return {"seconds": time.process_time() - started, "digest": digest(ids)}


def measure_worst(library: str, encoding: str, name: str, size: str) -> dict[str, Any]:
    text = worst_text(name, int(size))
    codec = peers.load(library, encoding, DATA)
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.process_time()
    ids = codec.encode(text)
    seconds, after = time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF)
    measured = {"seconds": seconds, "system": after.ru_stime - before.ru_stime, "peak_kb": after.ru_maxrss}
    measured |= {"bytes": int(size), "digest": digest(ids)}
    del ids
    started = time.process_time()
    codec.encode(text)  # now the system has pages at hand that were used before
    return {**measured, "again": time.process_time() - started}


MEASURE: dict[str, Callable[..., dict[str, Any]]] = {
    "encode": measure_encode,
    "decode": measure_decode,
    "start": measure_start,
    "worst": measure_worst,
}


# --- tables ----------------------------------------------------------------------------------------------------------


def rate(result: dict[str, Any]) -> float | str:
    """MB per CPU second, marked where the ids are not tiktoken's."""
    if "error" in result:
        return "–"
    value = float(result["bytes"] / 1e6 / result["seconds"])
    return value if result.get("right", True) else f"{value:.3g} (other ids)"


def check(found: dict[tuple[str, ...], dict[str, Any]], key: Callable[[tuple[str, ...]], tuple[str, ...]]) -> None:
    """Mark whose ids are tiktoken's. Ours must be: otherwise the figures are worth nothing, and the run ends."""
    reference = {key(task): result.get("digest") for task, result in found.items() if task[1] == "tiktoken"}
    for task, result in found.items():
        result["right"] = result.get("digest") == reference[key(task)]
        if task[1] in ("tinylm", PYTHON) and not result["right"]:
            raise SystemExit(f"tinylm: {task} gave other results than tiktoken: {result}")
        if "error" in result:
            print(f"{' '.join(task)}: {result['error']}")


def best(column: dict[str, Any]) -> tuple[str, float]:
    """The quickest peer with the right ids in a column of rates."""
    rates = {who: value for who, value in column.items() if who not in ("tinylm", PYTHON) and isinstance(value, float)}
    who = max(rates, key=lambda name: rates[name])
    return who, rates[who]


def libraries(encoding: str, output: str, text: str) -> list[str]:
    """Who takes part: everybody with cl100k as lists, the fastest everywhere; slow ones do not read large texts."""
    if encoding != "cl100k" or output != "list" or text in LARGE:
        return [*FASTEST, *(["quicktok-v1"] if text in LARGE else [])]
    if text == "short, one batch":
        return ["tinylm", "gigatoken", "fastokens", "tiktoken"]
    everybody = [name for name in LIBRARIES if name != "tokenizers" or text == "english"]
    return [*everybody, *([PYTHON] if text in DOCUMENTS else [])]


def encode_table(encoding: str, output: str, count: int) -> None:
    """Measure and write one table."""
    texts = {"list": TEXTS, "array": DOCUMENTS, "again": [*DOCUMENTS, *sorted(LARGE)]}[output]
    tasks = [("encode", who, encoding, text, output) for text in texts for who in libraries(encoding, output, text)]
    found = rounds("encoding.py", tasks, count)
    check(found, lambda task: task[2:])
    cells = {
        text: {
            library: rate(found[task]) if (task := ("encode", library, encoding, text, output)) in found else "–"
            for library in [*LIBRARIES, PYTHON]
        }
        for text in texts
    }
    measured = [library for library in [*LIBRARIES, PYTHON] if any(cells[text][library] != "–" for text in texts)]
    rows: list[list[Any]] = [[library, *(cells[text][library] for text in texts)] for library in measured]
    ours = [float(cells[text]["tinylm"]) for text in texts]
    rows.append(["tinylm ÷ best", *(mine / best(cells[text])[1] for mine, text in zip(ours, texts, strict=True))])
    table(
        f"encode_{encoding}_{output}",
        f"{encoding}, text to {OUTPUTS[output]} in a fresh process: MB per CPU second",
        COMMAND,
        ["library", *texts],
        rows,
        PACKAGES,
    )


def summary_of_encoding(encoding: str, output: str) -> list[dict[str, Any]]:
    """The rows of the summary, from the table that was written: one for each text."""
    written = json.loads((RESULTS / f"encode_{encoding}_{output}.json").read_text())
    *libraries, _ = written["rows"]
    found = []
    for number, text in enumerate(written["columns"][1:], 1):
        column = {row[0]: row[number] for row in libraries}
        who, figure = best(column)
        figures = {"unit": "MB/s", "kernels": column["tinylm"], "peer": who, "peer_figure": figure}
        figures |= {"incremental": column.get(PYTHON, "–"), "date": written["date"]}
        found.append({"job": f"encode, {encoding}, {output}: {text}", **figures, "exact": "ids = tiktoken's"})
    return found


def other_table(count: int) -> None:
    """Decoding, start and worst cases."""
    decode = rounds("encoding.py", [("decode", who, "cl100k", "english") for who in LIBRARIES], count)
    start = rounds("encoding.py", [("start", who, "cl100k") for who in LIBRARIES], count)
    size = str(1_000_000)
    worst = rounds(
        "encoding.py", [("worst", who, "cl100k", case, size) for case in WORST for who in WORST_LIBRARIES], count
    )
    for found in (decode, start, worst):
        check(found, lambda task: task[2:])
    rows = []
    for who in LIBRARIES:
        milliseconds = [
            1000 * worst[task]["seconds"] if (task := ("worst", who, "cl100k", case, size)) in worst else "–"
            for case in WORST
        ]
        rows.append([who, rate(decode["decode", who, "cl100k", "english"]), start["start", who, "cl100k"]["seconds"]])
        rows[-1] += milliseconds
    columns = ["library", "decode MB/s", "start, CPU s", *(f"1 MB of {case}, ms" for case in WORST)]
    table(
        "start_and_worst",
        "cl100k: decoding, starting (import, load, first encode) and texts that make a careless merge loop quadratic",
        COMMAND,
        columns,
        rows,
        PACKAGES,
    )


def summary_of_others() -> list[dict[str, Any]]:
    """The rows of the summary: ours and the best peer, higher is better for decoding, lower for the rest."""
    named = {row[0]: row[1:] for row in json.loads((RESULTS / "start_and_worst.json").read_text())["rows"]}

    def row(job: str, column: int, pick: Callable[..., str], unit: str) -> dict[str, Any]:
        figures = {who: cells[column] for who, cells in named.items() if isinstance(cells[column], float)}
        ours = figures.pop("tinylm")
        who = pick(figures, key=lambda name: figures[name])
        return {"job": job, "unit": unit, "kernels": ours, "peer": who, "peer_figure": figures[who]}

    found = [row("decode, cl100k", 0, max, "MB/s"), row("start with cl100k", 1, min, "CPU s")]
    return found + [row(f"1 MB of {case}", 2 + number, min, "ms") for number, case in enumerate(WORST)]


def write_json_vocabulary(encoding: str) -> None:
    """tokenizer.json of a vocabulary, for the libraries that read nothing else."""
    path = Path(peers.tokenizer_json(encoding, DATA))
    if not path.is_file():
        from tinylm.tokenizer import Tokenizer

        Tokenizer.load(peers.ranks(encoding, DATA)).save(path.parent)


def main() -> None:
    parser = argparse.ArgumentParser(description="Encoding beside the libraries in use.")
    parser.add_argument("--quick", action="store_true", help="one round instead of five")
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"which to measure: {', '.join(TABLES)}")
    options = parser.parse_args()
    if unknown := [name for name in options.tables if name not in TABLES]:
        parser.error(f"unknown table {', '.join(unknown)}: choose from {', '.join(TABLES)}")
    need(
        *(f"text/{text}.txt" for text in TEXTS if "," not in text),
        "vocabularies/cl100k/cl100k_base.tiktoken",
        "vocabularies/o200k/o200k_base.tiktoken",
        packages=["tiktoken"],
    )
    for name in options.tables or TABLES:
        encoding, _, output = name.partition("-")
        write_json_vocabulary(encoding if output else "cl100k")
        if output:
            encode_table(encoding, output, 1 if options.quick else ROUNDS[output])
        else:
            other_table(1 if options.quick else 5)


def summary() -> list[dict[str, Any]]:
    """The rows of the summary, from the tables of the last run."""
    tables = [(encoding, output) for encoding in ("cl100k", "o200k") for output in ("list", "array")]
    return [row for one in tables for row in summary_of_encoding(*one)] + summary_of_others()


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in MEASURE:
        print(json.dumps(MEASURE[sys.argv[1]](*sys.argv[2:])))
    else:
        main()
