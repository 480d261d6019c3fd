"""Every rung of decoding writes the same tokens: counted over many prompts, ties counted apart.

    python packages/tinylm-infer/benchmarks/exactness.py [--checkpoint DIR --text FILE] [--prompts 1000] [--tokens 128]

Each prompt is written by the lowest rung (lowest.py): alone, the whole text through the model again for every token,
one function per sampling step; greedy, and drawn from a seed. Then in every other way (ways.py), in float32. A first
difference counts as a tie only where the lowest rung itself hangs on less than 1e-4: greedy, its likeliest logit and
the other way's token's; seeded, its draw and the interval of the other way's token. Weights of 8 and 4 bits are
compared with the lowest rung on the same weights, `batch_invariant=True` with itself, one text at a time, in bfloat16
as well, where nothing counts as a tie; its cost is that of the same texts, in CPU-seconds. Without a checkpoint: a
small random model and random prompts; else windows of the text, half of them with a beginning in common. With
`--keep FILE` it goes on where it was stopped. Exit code 1 where a difference is no tie. Not here: speed (`table.py`).
"""

import argparse
import copy
import hashlib
import random
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lowest import is_tie, lowest
from pieces import Pieces
from ways import LONGEST, WAYS, Params, Texts, alone, engine_texts

from tinylm.inference import SamplingParams
from tinylm.inference.quantization import SCHEMES, quantize
from tinylm.model import Transformer, TransformerConfig
from tinylm.observability.tables import cells, new_table, write_table
from tinylm.tokenizer import Tokenizer

VOCABULARY, COMMON, TEMPERATURE = 512, 16, 0.8
PART, COST_TEXTS = 250, 32  # texts that are written at once
KINDS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DRAWINGS = ("greedy", "seeded")
HALF = ("texts", "differ", "ties")
COLUMNS = ["way", "compared with", *(f"{name}: {column}" for name in DRAWINGS for column in HALF), "CPU-s"]


def make_model(tokens: int) -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig.preset("qwen3", VOCABULARY, 2, width=64, head_dim=16, context=LONGEST + tokens)
    return Transformer(config).eval()


def make_prompts(count: int, ids: list[int]) -> Texts:
    """1 to 32 tokens that stand side by side in `ids`; every second prompt begins with the same 16."""
    chooser = random.Random(0)
    prompts = []
    for i in range(count):
        length, begin = chooser.randint(1, LONGEST - COMMON), chooser.randrange(len(ids) - LONGEST)
        prompts.append((ids[:COMMON] if i % 2 else []) + ids[begin : begin + length])
    return prompts


def count(model: Transformer, prompts: Texts, params: Params, expected: Texts, got: Texts) -> tuple[int, int]:
    """(texts that differ, those of them that are ties)."""
    differing = ties = 0
    for prompt, p, ours, theirs in zip(prompts, params, expected, got, strict=True):
        if ours != theirs:
            at = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
            differing += 1
            ties += is_tie(model, prompt, ours, at, theirs[at], p)
    return differing, ties


def written(model: Transformer, prompts: Texts, params: Params) -> Texts:
    """By the lowest rung; the engine's texts are its guesses."""
    guesses = engine_texts(model, prompts, params)
    return [lowest(model, *each) for each in zip(prompts, params, guesses, strict=True)]


def cost(model: Transformer, prompts: Texts, params: Params) -> float:
    """CPU-seconds of batch_invariant=True over those without it, median of 5 interleaved runs."""
    ratios = []
    for _ in range(5):
        seconds = []
        for invariant in (False, True):
            fresh = copy.deepcopy(model)
            start = time.process_time()
            engine_texts(fresh, prompts, params, batch_invariant=invariant)
            seconds.append(time.process_time() - start)
        ratios.append(seconds[1] / seconds[0])
    return median(ratios)


def drawing(name: str, texts: int, tokens: int) -> Params:
    if name == "greedy":
        return [SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)] * texts
    return [SamplingParams(temperature=TEMPERATURE, max_tokens=tokens, ignore_eos=True, seed=i) for i in range(texts)]


class Exactness:
    """The measurement: `rows` are those of the table; what was found is kept in `pieces`, part by part."""

    def __init__(self, model: Transformer, prompts: Texts, tokens: int, pieces: Pieces) -> None:
        self.prompts, self.pieces = prompts, pieces
        self.models = {"float32": model, **{scheme: quantize(model, scheme) for scheme in SCHEMES}}
        self.params = {name: drawing(name, len(prompts), tokens) for name in DRAWINGS}

    def rows(self, invariant_texts: int) -> list[list[object]]:
        """way, compared with, greedy (texts, differing, ties), seeded (the same), cost."""
        rows = []
        for way in [*WAYS, *SCHEMES]:
            compared = "the lowest rung" + (", the same weights" if way in SCHEMES else "")
            rows.append([way, compared, *self.both(way, len(self.prompts)), ""])
        for kind in KINDS:
            way = f"batch_invariant, {kind}"
            rows.append([way, "itself alone", *self.both(way, invariant_texts), f"{self.cost(kind):.2f} ×"])
        return rows

    def both(self, way: str, texts: int) -> list[int]:
        """Greedy: texts, differing, ties; then seeded."""
        counts = []
        for name in DRAWINGS:
            found = [self.part(name, way, slice(i, min(i + PART, texts))) for i in range(0, texts, PART)]
            counts += [texts, *map(sum, zip(*found, strict=True))]
        print(f"{way}: {counts}", file=sys.stderr, flush=True)
        return counts

    def part(self, name: str, way: str, part: slice) -> tuple[int, int]:
        """(texts that differ, those of them that are ties)."""
        found = self.pieces.get(f"{name}, {way}, {part.start}-{part.stop}", lambda: self.compare(name, way, part))
        return found[0], found[1]

    def compare(self, name: str, way: str, part: slice) -> tuple[int, int]:
        work = self.prompts[part], self.params[name][part]
        if kind := KINDS.get(way.removeprefix("batch_invariant, ")):
            model = copy.deepcopy(self.models["float32"]).to(kind)
            both = [run(model, *work, batch_invariant=True) for run in (alone, engine_texts)]
            return sum(a != b for a, b in zip(*both, strict=True)), 0
        weights = way if way in SCHEMES else "float32"
        model = self.models[weights]
        expected = self.pieces.get(
            f"{name}, the lowest rung, {weights}, {part.start}-{part.stop}", lambda: written(model, *work)
        )
        got = engine_texts(model, *work) if way in SCHEMES else WAYS[way](copy.deepcopy(model), *work)
        return count(model, *work, expected, got)

    def cost(self, kind: str) -> float:
        """Of batch_invariant=True, one text."""
        few = self.prompts[:COST_TEXTS], self.params["greedy"][:COST_TEXTS]
        model = self.models["float32"]
        return float(self.pieces.get(f"cost, {kind}", lambda: cost(copy.deepcopy(model).to(KINDS[kind]), *few)))


def measure(given: argparse.Namespace, keep: Path | None) -> dict[str, Any]:
    """The table; `given` are the options of `add_options`."""
    torch.set_num_threads(1)  # the model is tiny
    command = "python packages/tinylm-infer/benchmarks/exactness.py"
    if given.checkpoint is None:
        model, chooser = make_model(given.tokens), random.Random(1)
        ids = [chooser.randrange(VOCABULARY) for _ in range(10_000)]
    else:
        model = Transformer.load(given.checkpoint, dtype=torch.float32).eval()
        ids = Tokenizer.load(given.checkpoint).encode(given.text.read_text(encoding="utf-8")[:1_000_000])
        command += " --checkpoint data/processed/shakespeare/model --text data/raw/shakespeare/shakespeare.txt"
    prompts = make_prompts(given.prompts, ids)
    weights = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()
    of = {"weights": weights, "prompts": prompts, "tokens": given.tokens}
    found = Exactness(model, prompts, given.tokens, Pieces(keep, of, given.again))
    title = f"Texts of {given.tokens} tokens that differ; CPU-s: of batch_invariant over without, interleaved"
    return new_table(title, command, COLUMNS, found.rows(min(given.prompts, given.invariant_prompts)))


def holds(table: dict[str, Any]) -> bool:
    """Whether every difference is a tie."""
    return all(row[3] == row[4] and row[6] == row[7] for row in table["rows"])


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, help="a trained model; with --text")
    parser.add_argument("--text", type=Path, help="where its prompts come from")
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--invariant-prompts", type=int, default=1000, help="for batch_invariant, which is slow")
    parser.add_argument("--again", nargs="*", metavar="WORD", help="measure what has the word in its name once more")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--keep", type=Path, help="what was found so far: the same command goes on where it was")
    parser.add_argument("--json", type=Path, help="write the table here as well")
    given = parser.parse_args()
    if (given.checkpoint is None) != (given.text is None):
        parser.error("--checkpoint and --text go together")
    table = measure(given, given.keep)
    for line in [table["columns"], *cells(table)]:
        print("  ".join(text.ljust(26 if i == 0 else 16) for i, text in enumerate(line)))
    if given.json is not None:
        write_table(table, given.json)
    sys.exit(not holds(table))


if __name__ == "__main__":
    main()
