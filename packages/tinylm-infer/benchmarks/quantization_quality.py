"""What 8 and 4 bits cost in perplexity: models trained here in full precision, three seeds of two shapes.

    python packages/tinylm-infer/benchmarks/quantization_quality.py --data DATA_DIR [--runs FOLDER] [--json FILE]

DATA_DIR is what `tinylm-train prepare` made (the quickstart's: data/processed/shakespeare/tokens). Trains with
`tinylm-train pretrain` what FOLDER does not hold yet, then measures the validation split, whole windows of the context.
The bounds: at most +0.5 % of perplexity for int8 and +4 % for int4; exits with 1 where one is broken. It does NOT
measure speed. Next: decode.py.
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
from tinylm.model import Transformer
from tinylm.observability.tables import cells, new_table, write_table

SHAPES = {
    "quickstart's, depth 6": ("--depth", "6"),
    "GPT-2's, depth 6": ("--depth", "6", "--preset", "gpt2", "--width", "192"),
}
BOUNDS = {"int8": 0.005, "int4": 0.04}
STEPS, SEEDS = 150, 3


def train(data: Path, out: Path, options: tuple[str, ...], steps: int, seed: int) -> None:
    """A finished run is left as it is: the command says so."""
    command = [sys.executable, "-m", "tinylm.training", "pretrain", "--data", str(data), "--out", str(out)]
    subprocess.run([*command, *options, "--steps", str(steps), "--seed", str(seed)], check=True)


@torch.inference_mode()
def perplexity(model: Transformer, ids: torch.Tensor) -> float:
    """Over windows of the context; ids (N,)."""
    context = model.config.context
    windows = ids[: (len(ids) - 1) // context * context + 1]
    nats = [float(model.loss(w[None, :-1], w[None, 1:])) for w in windows.unfold(0, context + 1, context)]
    return math.exp(mean(nats))


def main() -> None:
    parser = argparse.ArgumentParser(description="Perplexity of quantised models beside float32.")
    parser.add_argument("--data", type=Path, required=True, help="what `tinylm-train prepare` made")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/quantization_quality"), help="where the models are kept"
    )
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
    for shape, flags in SHAPES.items():
        for seed in range(1 if options.quick else SEEDS):
            steps = 30 if options.quick else STEPS
            out = options.runs / f"{shape.partition(chr(39))[0]}-{steps}-{seed}"
            train(options.data, out, flags, steps, seed)
            model = Transformer.load(out, dtype=torch.float32).eval()
            plain = perplexity(model, ids)
            row: list[object] = [shape, seed, plain]
            for scheme in SCHEMES:
                loss = perplexity(quantize(model, scheme), ids) / plain - 1
                worst[scheme] = max(worst[scheme], loss)
                row.append(f"{100 * loss:+.2f} %")
            rows.append(row)
    columns = ["shape", "seed", "perplexity, float32", *SCHEMES]
    title = f"Perplexity of quantised models, {STEPS} steps of training, {len(ids)} tokens of validation"
    table = new_table(title, "python packages/tinylm-infer/benchmarks/quantization_quality.py", columns, rows)
    for line in [table["columns"], *cells(table)]:
        print("  ".join(text.ljust(22) for text in line))
    if options.json is not None:
        write_table(table, options.json)
    broken = {scheme: worst[scheme] for scheme, most in BOUNDS.items() if worst[scheme] > most}
    if broken and not options.quick:
        sys.exit(f"wanted at most {BOUNDS} more perplexity, got {broken}")


if __name__ == "__main__":
    main()
