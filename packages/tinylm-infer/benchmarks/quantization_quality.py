"""What 8 and 4 bits cost in perplexity: models trained here in full precision, three seeds of two shapes.

    python packages/tinylm-infer/benchmarks/quantization_quality.py --data DATA_DIR [--runs FOLDER] [--gguf FILE]

DATA_DIR is what `tinylm-train prepare` made (the quickstart's: data/processed/shakespeare/tokens). Trains with
`tinylm-train pretrain`, in float32, what FOLDER does not hold yet (broken off, the same command goes on), then measures
the validation split, whole windows of 256 tokens. The bounds: at most +0.5 % of perplexity for int8 and +4 % for int4;
exits with 1 where one is broken. `--gguf`: a model that is somebody else's and rounded already, on the same text; no
bound holds for it, and its file is also run in its own blocks. It does NOT measure speed. Next: decode.py.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from pathlib import Path
from statistics import mean

import numpy as np
import torch

from tinylm.inference.quantization import SCHEMES, quantize
from tinylm.inference.quantization.gguf import load_gguf
from tinylm.model import Transformer
from tinylm.observability.tables import cells, new_table, write_table
from tinylm.tokenizer import Tokenizer

SHAPES = {
    "quickstart's, depth 6": ("--depth", "6"),
    "GPT-2's, depth 6": ("--depth", "6", "--preset", "gpt2", "--width", "192"),
}
BOUNDS = {"int8": 0.005, "int4": 0.04}
STEPS, SEEDS = 300, 3
WINDOW = 256  # tokens: the context of the models trained here
FIXED = ("--dtype", "float32", "--batch-size", "8", "--validate-every", str(STEPS))
COLUMNS = ["model", "seed", "perplexity, float32", *SCHEMES, "in its own blocks"]


def train(data: Path, out: Path, options: tuple[str, ...], steps: int, seed: int) -> Transformer:
    """A finished run is left as it is: the command says so."""
    command = [sys.executable, "-m", "tinylm.training", "pretrain", "--data", str(data), "--out", str(out)]
    subprocess.run([*command, *options, *FIXED, "--steps", str(steps), "--seed", str(seed)], check=True)
    return Transformer.load(out, dtype=torch.float32).eval()


@torch.inference_mode()
def perplexity(model: Transformer, ids: torch.Tensor) -> float:
    """Over windows of WINDOW tokens; ids (N,)."""
    windows = ids[: (len(ids) - 1) // WINDOW * WINDOW + 1]
    nats = [float(model.loss(w[None, :-1], w[None, 1:])) for w in windows.unfold(0, WINDOW + 1, WINDOW)]
    return math.exp(mean(nats))


def losses(model: Transformer, ids: torch.Tensor) -> tuple[float, dict[str, float]]:
    """Its perplexity, and by which part that of each scheme is higher."""
    plain = perplexity(model, ids)
    return plain, {scheme: perplexity(quantize(model, scheme), ids) / plain - 1 for scheme in SCHEMES}


def gguf_row(path: Path, text: str, tokens: int) -> list[object]:
    """As those of the models trained here, its own tokens; the blocks of its file beside all of them decoded."""
    ids = torch.tensor(Tokenizer.load(path).encode(text))[:tokens]
    plain, found = losses(Transformer.load(path, dtype=torch.float32).eval(), ids)
    own = perplexity(load_gguf(path), ids) / plain - 1
    kind = path.stem.rpartition(".")[2]
    name = f"{path.stem.removesuffix(f'.{kind}')}, whose file is {kind} already"
    return [name, None, plain, *map(percent, found.values()), percent(own)]


def percent(part: float) -> str:
    return f"{100 * part:+.2f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description="Perplexity of quantised models beside float32.")
    parser.add_argument("--data", type=Path, required=True, help="what `tinylm-train prepare` made")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/quantization_quality"), help="where the models are kept"
    )
    parser.add_argument("--gguf", type=Path, help="this model as well")
    parser.add_argument("--tokens", type=int, default=40_000, help="of the validation split")
    parser.add_argument("--json", type=Path, help="write the table here as well")
    parser.add_argument(
        "--quick", action="store_true", help="one seed, 30 steps: shows that it works, no bound is checked"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    ids = torch.from_numpy(np.load(options.data / "validation-00000.npy")[: options.tokens].astype(np.int64))
    rows: list[list[object]] = []
    worst = dict.fromkeys(SCHEMES, 0.0)
    steps, seeds = (30, 1) if options.quick else (STEPS, SEEDS)
    for shape, flags in SHAPES.items():
        for seed in range(seeds):
            out = options.runs / f"{shape.partition(chr(39))[0]}-{steps}-{seed}"
            plain, found = losses(train(options.data, out, flags, steps, seed), ids)
            worst = {scheme: max(worst[scheme], found[scheme]) for scheme in SCHEMES}
            rows.append([shape, seed, plain, *map(percent, found.values()), None])
    command = "python packages/tinylm-infer/benchmarks/quantization_quality.py --data data/processed/shakespeare/tokens"
    if options.gguf is not None:
        text = Tokenizer.load(options.data).decode(ids.tolist())
        rows.append(gguf_row(options.gguf, text, options.tokens))
        command += f" --gguf {options.gguf.name}"
    title = f"Perplexity of quantised models, {steps} steps of training, {len(ids)} tokens in windows of {WINDOW}"
    table = new_table(title, command, COLUMNS, rows)
    for line in [table["columns"], *cells(table)]:
        print("  ".join(text.ljust(22) for text in line))
    if options.json is not None:
        write_table(table, options.json)
    broken = {scheme: worst[scheme] for scheme, most in BOUNDS.items() if worst[scheme] > most}
    if broken and not options.quick:
        sys.exit(f"wanted at most {BOUNDS} more perplexity, got {broken}")


if __name__ == "__main__":
    main()
