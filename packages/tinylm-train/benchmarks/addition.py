"""Does fine-tuning teach? A pre-trained model learns two-digit addition by SFT and answers pairs it has never seen.

Data: all 8,100 pairs of numbers from 10 to 99, shuffled by a seed; 500 are kept for the end, and are never trained on,
in neither order of the two numbers. A question is "What is 23 + 45?", its answer "68": ordinary text on both sides.
Before and after, the unseen pairs are asked through `tinylm-infer chat --temperature 0`, one conversation each, and an
answer counts when it is the sum and nothing else. Needs tinylm-train and tinylm-infer; prints and writes one table.

    python packages/tinylm-train/benchmarks/addition.py data/processed/shakespeare/model --json OUT.json
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

UNSEEN = 500


def pairs(seed: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(trained on, unseen). b + a is unseen where a + b is."""
    both = [(a, b) for a in range(10, 100) for b in range(10, 100)]
    random.Random(seed).shuffle(both)
    unseen = both[:UNSEEN]
    held = {frozenset(pair) for pair in unseen}
    return [pair for pair in both if frozenset(pair) not in held], unseen


def question(a: int, b: int) -> str:
    return f"What is {a} + {b}?"


def write(path: Path, trained: list[tuple[int, int]]) -> None:
    rows = (
        [{"role": "user", "content": question(a, b)}, {"role": "assistant", "content": str(a + b)}] for a, b in trained
    )
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows), "utf-8")


def correct(model: Path, asked: list[tuple[int, int]]) -> tuple[int, list[str]]:
    """How many sums `tinylm-infer chat` gets right, and its first answers."""
    script = "".join(f"{question(a, b)}\n/clear\n" for a, b in asked)
    command = [sys.executable, "-m", "tinylm.inference", "chat", str(model), "--temperature", "0"]
    command += ["--max-tokens", "8", "--device", "cpu"]
    done = subprocess.run(command, input=script, capture_output=True, text=True, check=True)
    # An answer may have several lines, before: those that are no whole answer count as wrong.
    answers = done.stdout.split("\n")
    if len([line for line in answers if line]) == len(asked):
        answers = [line for line in answers if line]
        return sum(line.strip() == str(a + b) for line, (a, b) in zip(answers, asked, strict=True)), answers[:5]
    return _one_by_one(model, asked), answers[:5]


def _one_by_one(model: Path, asked: list[tuple[int, int]]) -> int:
    """Where answers have several lines and cannot be told apart in one stream: the class behind the command."""
    from tinylm.inference import LLM, SamplingParams
    from tinylm.inference.conversation import Conversation

    llm = LLM(str(model), device="cpu")
    params = SamplingParams(temperature=0, max_tokens=8)
    right = 0
    for a, b in asked:
        right += "".join(Conversation(llm, params).ask(question(a, b))).strip() == str(a + b)
    return right


def train(model: Path, data: Path, out: Path, steps: int, optimizer: str, rate: float | None, seed: int) -> float:
    """CPU seconds."""
    command = [sys.executable, "-m", "tinylm.training", "finetune", str(model), "--data", str(data), "--out", str(out)]
    command += ["--steps", str(steps), "--batch-size", "128", "--seed", str(seed), "--device", "cpu"]
    command += ["--optimizer", optimizer]
    command += [] if rate is None else ["--learning-rate", str(rate)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=Path("data/processed/shakespeare/model"))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="20 updates: only whether it runs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not (options.model / "config.json").is_file():
        print(f"no model at {options.model}, so nothing is measured: nox -s quickstart makes one")
        return
    trained, unseen = pairs(options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        data, out = Path(scratch, "addition.jsonl"), Path(scratch, "tuned")
        write(data, trained)
        before, said = correct(options.model, unseen)
        print(f"before: {before} of {len(unseen)} unseen pairs; it says {said}", flush=True)
        steps = 20 if options.quick else options.steps
        seconds = train(options.model, data, out, steps, options.optimizer, options.learning_rate, options.seed)
        after, said = correct(out, unseen)
        print(f"after: {after} of {len(unseen)} unseen pairs in {seconds:.0f} CPU-s; it says {said}", flush=True)
    report(
        {"quickstart": before, f"after {steps} updates": after}, len(trained), None if options.quick else options.json
    )


def report(right: dict[str, int], trained: int, out: Path | None) -> None:
    from tinylm.observability import tables
    from tinylm.training.tasks import Share

    rows: list[dict[str, object]] = []
    for model, count in right.items():
        low, high = Share(count, UNSEEN).interval
        interval = f"{low:.1%} to {high:.1%}"
        rows.append({"model": model, "right": f"{count} of {UNSEEN}", "95 % interval (Wilson)": interval})
    title = f"SFT on {trained:,} sums of two-digit numbers; {UNSEEN} unseen pairs asked through tinylm-infer chat"
    command = "python packages/tinylm-train/benchmarks/addition.py data/processed/shakespeare/model"
    if out is not None:
        tables.write_table(tables.new_table(title, command, list(rows[0]), rows), out)


if __name__ == "__main__":
    main()
