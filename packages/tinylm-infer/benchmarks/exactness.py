"""Every rung of decoding writes the same tokens: counted over many prompts, ties counted apart.

    python packages/tinylm-infer/benchmarks/exactness.py [--checkpoint DIR --text FILE] [--prompts 1000] [--tokens 128]

Each prompt is written by the lowest rung: alone, the whole text through the model again for every token, one function
per sampling step; greedy, and drawn from a seed. Then in every other way, in float32. A first difference counts as a
tie only where the lowest rung itself hangs on less than 1e-4: greedy, its likeliest logit and the other way's token's;
seeded, its draw and the interval of the other way's token. `batch_invariant=True` is compared with itself, one text at
a time, in bfloat16 as well, where nothing counts as a tie; its cost is that of the same texts, in CPU-seconds.
Without a checkpoint: a small random model and random prompts; else windows of the text, half of them with a beginning
in common. Exit code 1 where a difference is no tie. Not here: speed (`tinylm-obs ladder decoding`).
"""

import argparse
import copy
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from tinylm.inference import SamplingParams
from tinylm.inference.compiled import Compiled
from tinylm.inference.engine import Engine
from tinylm.inference.engine_config import EngineConfig
from tinylm.inference.plain_weights import use_kernels
from tinylm.inference.sampling import apply_temperature, sample
from tinylm.inference.speculation import PromptLookup
from tinylm.inference.static_batch import static_batch
from tinylm.model import Transformer, TransformerConfig
from tinylm.observability.tables import cells, new_table, write_table
from tinylm.tokenizer import Tokenizer

Texts = list[list[int]]
Params = list[SamplingParams]
Way = Callable[[Transformer, Texts, Params], Texts]
VOCABULARY, LONGEST, COMMON, CLOSE, TEMPERATURE = 512, 32, 16, 1e-4, 0.8
BATCH = 50  # texts of a static batch


def engine_texts(model: Transformer, prompts: Texts, params: Params, speculate: bool = False, **options: Any) -> Texts:
    engine = Engine(model, config=EngineConfig(**options), propose=PromptLookup() if speculate else None)
    texts = [engine.add_request(str(i), *pair)[0] for i, pair in enumerate(zip(prompts, params, strict=True))]
    while engine.busy:
        engine.step()
    return [text.output for text in texts]


def alone(model: Transformer, prompts: Texts, params: Params, **options: Any) -> Texts:
    """One after the other, each in an engine that has seen nothing else."""
    return [engine_texts(model, [p], [q], **options)[0] for p, q in zip(prompts, params, strict=True)]


def compiled_texts(model: Transformer, prompts: Texts, params: Params) -> Texts:
    batch = min(BATCH, len(prompts))
    step = Compiled(model, batch, LONGEST + (params[0].max_tokens or 0))
    texts = []
    for i in range(0, len(prompts), batch):
        begin = min(i, len(prompts) - batch)  # the last batch is full as well
        texts += step.write(prompts[begin : begin + batch], params[begin : begin + batch])[i - begin :]
    return texts


def static_texts(model: Transformer, prompts: Texts, params: Params) -> Texts:
    parts = [slice(i, i + BATCH) for i in range(0, len(prompts), BATCH)]
    return [text for part in parts for text in static_batch(model, prompts[part], params[part])]


def kernel_texts(model: Transformer, prompts: Texts, params: Params) -> Texts:
    use_kernels(model)
    return engine_texts(model, prompts, params, max_num_seqs=8)  # a step of 8 tokens still takes that way


def preempted_texts(model: Transformer, prompts: Texts, params: Params) -> Texts:
    """In a cache that holds three full texts: the others are thrown out again and again."""
    config, full = model.config, LONGEST + (params[0].max_tokens or 0) + 16
    cache = 3 * full * 2 * config.depth * config.kv_heads * config.head_dim * 4
    return engine_texts(model, prompts, params, max_num_batched_tokens=64, kv_cache_memory_bytes=cache)


def engine_way(**options: Any) -> Way:
    return lambda *work: engine_texts(*work, **options)


WAYS: dict[str, Way] = {
    "KV cache": lambda m, *work: [static_batch(m, [p], [q])[0] for p, q in zip(*work, strict=True)],
    "static batch": static_texts,
    "paged, batched, chunked": engine_way(enable_prefix_caching=False, max_num_batched_tokens=64),
    "prefix cache": engine_way(max_num_batched_tokens=64),
    "preempted": preempted_texts,
    "speculation": engine_way(max_num_batched_tokens=64, speculate=True),
    "C++ pass": kernel_texts,
    "compiled": compiled_texts,
}


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


@torch.inference_mode()
def lowest(model: Transformer, prompt: list[int], params: SamplingParams) -> list[int]:
    """One text alone, no cache, one function per sampling step."""
    rng, output = random.Random(params.seed), list[int]()
    for _ in range(params.max_tokens or 0):
        output.append(sample(logits_after(model, prompt, output), params, prompt, output, rng))
    return output


def logits_after(model: Transformer, prompt: list[int], output: list[int]) -> torch.Tensor:
    return model(torch.tensor([[*prompt, *output]]), logits_at=[-1])[0, 0]


@torch.inference_mode()
def is_tie(model: Transformer, prompt: list[int], output: list[int], at: int, other: int, params: Any) -> bool:
    """Whether the lowest rung's token number `at` is less than CLOSE away from being `other`."""
    logits = logits_after(model, prompt, output[:at])
    if params.greedy:
        return bool(logits.max() - logits[other] < CLOSE)
    rng = random.Random(params.seed)
    uniform = [rng.random() for _ in range(at + 1)][-1]
    ends = apply_temperature(logits, params.temperature).double().softmax(0).cumsum(0)
    begins = torch.cat([ends.new_zeros(1), ends[:-1]])
    return bool(begins[other] - CLOSE < uniform < ends[other] + CLOSE)


def count(model: Transformer, prompts: Texts, params: Params, expected: Texts, got: Texts) -> tuple[int, int]:
    """(texts that differ, those of them that are ties)."""
    differing = ties = 0
    for prompt, p, ours, theirs in zip(prompts, params, expected, got, strict=True):
        if ours != theirs:
            at = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
            differing += 1
            ties += is_tie(model, prompt, ours, at, theirs[at], p)
    return differing, ties


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


def measure(model: Transformer, prompts: Texts, tokens: int, invariant_texts: int) -> list[list[object]]:
    """Rows: way, compared with, greedy (texts, differing, ties), seeded (the same), cost."""
    found: dict[str, list[object]] = {name: [name, "the lowest rung"] for name in WAYS}
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    found |= {kind: [f"batch_invariant, {kind}", "itself alone"] for kind in kinds}
    for name in ("greedy", "seeded"):
        params = drawing(name, len(prompts), tokens)
        expected = []
        for i, pair in enumerate(zip(prompts, params, strict=True), 1):
            expected.append(lowest(model, *pair))
            if i % 100 == 0:
                print(f"{name}: {i} of {len(prompts)} texts by the lowest rung", file=sys.stderr, flush=True)
        for way, write in WAYS.items():
            got = write(copy.deepcopy(model), prompts, params)
            found[way] += [len(prompts), *count(model, prompts, params, expected, got)]
            print(f"{name}: {found[way]}", file=sys.stderr, flush=True)
        for kind, dtype in kinds.items():
            work = copy.deepcopy(model).to(dtype), prompts[:invariant_texts], params[:invariant_texts]
            both = [run(*work, batch_invariant=True) for run in (alone, engine_texts)]
            found[kind] += [len(work[1]), sum(a != b for a, b in zip(*both, strict=True)), 0]
            print(f"{name}: {found[kind]}", file=sys.stderr, flush=True)
    few, params = prompts[:32], drawing("greedy", 32, tokens)[: len(prompts[:32])]
    for way in WAYS:
        found[way].append("")
    for kind, dtype in kinds.items():
        found[kind].append(f"{cost(copy.deepcopy(model).to(dtype), few, params):.2f} ×")
    return list(found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="a trained model; with --text")
    parser.add_argument("--text", type=Path, help="where its prompts come from")
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--invariant-prompts", type=int, default=1000, help="for batch_invariant, which is slow")
    parser.add_argument("--json", type=Path, help="write the table here as well")
    given = parser.parse_args()
    if (given.checkpoint is None) != (given.text is None):
        parser.error("--checkpoint and --text go together")
    torch.set_num_threads(1)  # the model is tiny
    if given.checkpoint is None:
        model, chooser = make_model(given.tokens), random.Random(1)
        ids = [chooser.randrange(VOCABULARY) for _ in range(10_000)]
    else:
        model = Transformer.load(given.checkpoint, dtype=torch.float32).eval()
        ids = Tokenizer.load(given.checkpoint).encode(given.text.read_text(encoding="utf-8")[:1_000_000])
    prompts = make_prompts(given.prompts, ids)
    rows = measure(model, prompts, given.tokens, given.invariant_prompts)
    half = ["texts", "differ", "ties"]
    columns = ["way", "compared with", *(f"{n}: {c}" for n in ("greedy", "seeded") for c in half), "CPU-s"]
    title = f"Texts of {given.tokens} tokens that differ; CPU-s: of batch_invariant over without, interleaved"
    table = new_table(title, "python packages/tinylm-infer/benchmarks/exactness.py", columns, rows)
    for line in [table["columns"], *cells(table)]:
        print("  ".join(text.ljust(26 if i == 0 else 16) for i, text in enumerate(line)))
    if given.json is not None:
        write_table(table, given.json)
    found = [[int(str(number)) for number in row[2:8]] for row in rows]
    sys.exit(any(row[1] > row[2] or row[4] > row[5] for row in found))


if __name__ == "__main__":
    main()
