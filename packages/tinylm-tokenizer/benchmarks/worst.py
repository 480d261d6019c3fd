"""One piece that never ends, of 1, 10 and 100 MB: does the time of encoding grow with its length, and no faster?

    python packages/tinylm-tokenizer/benchmarks/worst.py [--quick] [--rounds 5]

Beside us bpe-openai, whose algorithm is linear, at 1 MB: the ids must be the same. Every figure is taken in a fresh
process: CPU seconds from the string to the list of ids; 1 MB: the median of five rounds (--quick: one) in which both
take a turn; longer ones once (--quick: not). Peak memory is the whole process, string and list of ids included. What
the system takes of 100 MB is getting memory and setting it to zero, which costs several times as much where nobody has
used that memory lately. So each text is encoded a second time in the same process ("again"), with nothing remembered
of it but where the memory was: a piece of this length is in no cache.
Other libraries at 1 MB: encoding.py, which has the texts, too. Writes benchmarks/results/worst.json.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from _bench import RESULTS, need, rounds, table
from encoding import WORST

COMMAND = "python packages/tinylm-tokenizer/benchmarks/worst.py"
ENCODINGS = ("cl100k", "o200k")
MB = 1_000_000
OURS = ("tinylm, 1 MB", "10 MB", "100 MB")
OF_100_MB = ("of that the system", "growth", "100 MB again", "growth again", "peak MB at 100 MB")


def row_of(encoding: str, case: str, found: dict[tuple[str, ...], dict[str, Any]]) -> list[Any]:
    """One line of the table. Errors: SystemExit where the ids are not bpe-openai's."""

    def result(who: str, size: int) -> dict[str, Any]:
        return found.get(("worst", who, encoding, case, str(size)), {})

    ours, peer = result("tinylm", MB), result("bpe-openai", MB)
    if ours.get("digest") != peer.get("digest") or "error" in ours:
        raise SystemExit(f"{encoding}, 1 MB of {case}: other ids than bpe-openai's, or none: {ours}, {peer}")
    times = [result("tinylm", size).get("seconds") for size in (MB, 10 * MB, 100 * MB)]
    milliseconds = [1000 * seconds if seconds else "–" for seconds in times]
    growth = times[2] / times[0] / 100 if times[2] and times[0] else "–"
    of_that: list[Any] = ["–"] * 5
    if largest := result("tinylm", 100 * MB):
        of_that = [1000 * largest["system"], growth, 1000 * largest["again"], largest["again"] / ours["again"] / 100]
        of_that.append(largest["peak_kb"] / 1000)
    return [encoding, case, 1000 * peer["seconds"], *milliseconds, *of_that]


def main() -> None:
    parser = argparse.ArgumentParser(description="One piece that never ends, of 1, 10 and 100 MB.")
    parser.add_argument("--rounds", type=int, default=5, help="of the 1 MB texts")
    parser.add_argument("--quick", action="store_true", help="1 MB only, one round")
    options = parser.parse_args()
    need("vocabularies/cl100k/cl100k_base.tiktoken", "vocabularies/o200k/o200k_base.tiktoken", packages=["bpe_openai"])
    cases = [(encoding, case) for encoding in ENCODINGS for case in WORST]
    tasks = [("worst", who, *case, str(MB)) for case in cases for who in ("tinylm", "bpe-openai")]
    found = rounds("encoding.py", tasks, 1 if options.quick else options.rounds)
    if not options.quick:
        larger = [("worst", "tinylm", *case, str(size)) for case in cases for size in (10 * MB, 100 * MB)]
        found |= rounds("encoding.py", larger, 1, timeout=600)  # making the text takes longer than encoding it
    table(
        "worst",
        "One piece that never ends: CPU milliseconds by its length; growth: time of 100 MB ÷ (100 × time of 1 MB)",
        COMMAND,
        ["encoding", "text", "bpe-openai, 1 MB", *OURS, *OF_100_MB],
        [row_of(*case, found) for case in cases],
        ["numpy", "bpe-openai"],
    )


def summary() -> list[dict[str, Any]]:
    """The rows of the summary: o200k (cl100k is in encoding.py's, beside every library)."""
    rows = json.loads((RESULTS / "worst.json").read_text())["rows"]
    fixed = {"unit": "ms", "peer": "bpe-openai", "exact": "ids = bpe-openai's"}
    return [
        {"job": f"1 MB of {case}, o200k", "kernels": ours, "peer_figure": peer, **fixed}
        for encoding, case, peer, ours, *_ in rows
        if encoding == "o200k"
    ]


if __name__ == "__main__":
    main()
