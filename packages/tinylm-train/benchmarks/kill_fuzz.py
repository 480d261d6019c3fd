"""Kill a real run at random moments, start the same command each time, and compare with a run that nobody killed.

    python packages/tinylm-train/benchmarks/kill_fuzz.py --kills 24

Each process is `python -m tinylm.training pretrain`, killed with SIGKILL after a random time: while it starts, in a
step, while a checkpoint is written. The run has accumulation, an average of the weights, float16's loss scale, several
epochs and two optimisers. At the end every tensor, every number of state.json but its times and checksums, and every
logged loss, gradient norm and learning rate must be those of the run that nobody killed, bit for bit. Exit code 1 and
the names of what differs otherwise. The last line is one JSON object. POSIX only.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from tinylm import observability as obs
from tinylm.tokenizer import Tokenizer
from tinylm.training import prepare

RUN = "--depth 2 --width 64 --context 32 --batch-size 8 --accumulate 2 --average 0.9 --dtype float16 --threads 1 "
RUN += "--compile never --checkpoint-every 7 --validate-every 20 --warmup-steps 10 --device cpu"
TIMES = ("seconds", "seal", "sha256")  # torch writes the same tensors into a file in no fixed order
LOGGED = ("loss", "gradient_norm", "learning_rate", "loss_scale", "skipped", "sample", "validation_bits_per_character")


def text(seed: int, words: int) -> str:
    """Lines of invented words."""
    draw = random.Random(seed)
    lexicon = ["".join(draw.choices(["ba", "ne", "ti", "lo", "mur", "sen"], k=2)) for _ in range(40)]
    return "\n".join(" ".join(draw.choices(lexicon, k=8)) for _ in range(words // 8)) + "\n"


def start(data: Path, out: Path, steps: int, log: Path) -> subprocess.Popen[bytes]:
    """The command, as a user gives it."""
    command = [sys.executable, "-m", "tinylm.training", "pretrain", "--data", str(data), "--out", str(out)]
    with log.open("ab") as file:
        return subprocess.Popen([*command, "--steps", str(steps), *RUN.split()], stdout=file, stderr=file)


def rows(out: Path) -> int:
    """How many lines the run has logged."""
    path = out / "run" / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def outcome(out: Path) -> dict[str, Any]:
    """All that a run leaves but its times."""
    newest = max((out / "steps").iterdir(), key=lambda path: path.name)
    state = json.loads((newest / "state.json").read_text("utf-8"))
    facts: dict[str, Any] = {f"state: {name}": value for name, value in state.items() if name not in TIMES}
    for path in [newest / "model.safetensors", *(newest / "state").glob("*.safetensors")]:
        facts |= {f"{path.name}: {name}": value.tobytes() for name, value in load_file(path).items()}
    for row in obs.read_metrics(out / "run"):
        facts[f"step {row['step']}"] = [row.get(name) for name in LOGGED]
    return facts


def moment(out: Path, process: subprocess.Popen[bytes], draw: random.Random) -> str:
    """Wait for a random moment of this attempt; says which kind it was."""
    if draw.random() < 0.15:
        time.sleep(draw.random() * 3.0)
        return "while starting"
    before, deadline = rows(out), time.monotonic() + 120
    while rows(out) == before and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    if draw.random() < 0.5:
        time.sleep(draw.random() * 1.5)
        return "in training"
    while process.poll() is None and not list((out / "steps").glob(".*.tmp")) and time.monotonic() < deadline:
        time.sleep(0.0005)
    time.sleep(draw.random() * 0.02)
    return "while a checkpoint was written"


def main() -> int:
    """Print each kill and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=24)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=None, help="of the moments; another one each time if not given")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(4), "little")
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "text.txt").write_text(text(0, 6000), "utf-8")
        Tokenizer.train([text(0, 6000)], vocab_size=320).save(folder / "tokenizer")
        prepare([folder / "text.txt"], folder / "tokenizer", folder / "data", "tail:0.1")
        whole, broken = folder / "whole", folder / "broken"
        if start(folder / "data", whole, options.steps, folder / "whole.txt").wait():
            print((folder / "whole.txt").read_text("utf-8"))
            return 1
        kinds: collections.Counter[str] = collections.Counter()
        wanted, different, runs = outcome(whole), [], 0
        while sum(kinds.values()) < options.kills:
            broken, log = folder / f"broken-{runs}", folder / f"broken-{runs}.txt"
            runs += 1
            until_the_end(folder / "data", broken, options.steps, log, draw, kinds, options.kills)
            got = outcome(broken)
            different += sorted(key for key in wanted.keys() | got.keys() if wanted.get(key) != got.get(key))
        epochs = json.loads(max((whole / "steps").glob("*/state.json")).read_text("utf-8"))["loader"]["epoch"]
        facts = {"seed": seed, "kills": dict(kinds), "runs": runs, "steps": options.steps, "epochs": epochs}
        print(json.dumps(facts | {"compared": len(wanted), "different": different[:10]}))
        return 1 if different else 0


def until_the_end(
    data: Path, out: Path, steps: int, log: Path, draw: random.Random, kinds: collections.Counter[str], kills: int
) -> None:
    """Start the same run until it ends by itself, killing it while kills are left."""
    while True:
        process = start(data, out, steps, log)
        if sum(kinds.values()) < kills:
            kind = moment(out, process, draw)
            if process.poll() is None:
                process.kill()
                process.wait()
                kinds[kind] += 1
                print(f"kill {sum(kinds.values())}, {kind}: {rows(out)} rows so far", flush=True)
                continue
        if process.wait():
            raise SystemExit(f"the run failed: {log.read_text('utf-8')[-2000:]}")
        return


if __name__ == "__main__":
    sys.exit(main())
