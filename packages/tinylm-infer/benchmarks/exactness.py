"""Every rung of decoding writes the same tokens: counted over many prompts, ties counted apart.

    python packages/tinylm-infer/benchmarks/exactness.py [--prompts 1000] [--tokens 128]

Each prompt is written alone with `tinylm.model.generate`'s KV cache rung, greedy, and drawn from seeds by the lowest
rung of sampling; then by the engine in several ways. A first difference is a tie where, recomputed without any cache,
greedy: the two likeliest logits are closer than 1e-4; seeded: the draw is that close to an edge of its interval.
Small random model, float32. Prints one line a way and a last line of JSON; exit code 1 where a difference is no tie.
Not here: speed (the ladder, `tinylm-obs ladder decoding`).
"""

import argparse
import json
import random
import sys
from typing import Any

import torch

from tinylm.inference import SamplingParams
from tinylm.inference.engine import Engine
from tinylm.inference.engine_config import EngineConfig
from tinylm.inference.sampling import apply_temperature, sample
from tinylm.inference.speculation import PromptLookup
from tinylm.model import KVCache, Transformer, TransformerConfig

VOCABULARY, CLOSE, TEMPERATURE = 512, 1e-4, 0.8
WAYS: dict[str, dict[str, Any]] = {
    "batched, paged, chunked": {"enable_prefix_caching": False, "max_num_batched_tokens": 64},
    "prefix-cached": {"max_num_batched_tokens": 64},
    "preempted": {"max_num_batched_tokens": 64, "kv_cache_memory_bytes": 1 << 20},
    "speculative": {"max_num_batched_tokens": 64, "speculate": True},
}


def make_model(tokens: int) -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig.preset("qwen3", VOCABULARY, 2, width=64, head_dim=16, context=32 + tokens)
    return Transformer(config).eval()


def make_prompts(count: int) -> list[list[int]]:
    """1 to 32 tokens; every second one begins with the same 16."""
    chooser = random.Random(0)
    common = [chooser.randrange(VOCABULARY) for _ in range(16)]
    return [
        (common if i % 2 else []) + [chooser.randrange(VOCABULARY) for _ in range(chooser.randint(1, 16))]
        for i in range(count)
    ]


@torch.inference_mode()
def naive(model: Transformer, prompt: list[int], params: SamplingParams) -> list[int]:
    """One text alone, a contiguous cache, one function per sampling step."""
    rng, output, new = random.Random(params.seed), list[int](), prompt
    cache = KVCache(model.config, 1, model.config.context)
    for _ in range(params.max_tokens or 0):
        logits = model(torch.tensor([new]), cache=cache, logits_at=[-1])[0, 0]
        output.append(sample(logits, params, prompt, output, rng))
        new = output[-1:]
    return output


def engine_texts(
    model: Transformer, prompts: list[list[int]], params: list[SamplingParams], way: dict[str, Any]
) -> Any:
    options = {**way}
    propose = PromptLookup() if options.pop("speculate", False) else None
    engine = Engine(model, config=EngineConfig(**options), propose=propose)
    pairs = zip(prompts, params, strict=True)
    texts = [engine.add_request(str(i), prompt, p)[0] for i, (prompt, p) in enumerate(pairs)]
    while engine.busy:
        engine.step()
    return [text.output for text in texts]


@torch.inference_mode()
def is_tie(model: Transformer, prompt: list[int], output: list[int], at: int, params: SamplingParams) -> bool:
    """Whether the token number `at`, recomputed without a cache, hangs on less than CLOSE."""
    logits = model(torch.tensor([[*prompt, *output[:at]]]), logits_at=[-1])[0, 0]
    if params.greedy:
        first, second = logits.topk(2).values.tolist()
        return bool(first - second < CLOSE)
    rng = random.Random(params.seed)
    uniform = [rng.random() for _ in range(at + 1)][-1]
    edges = apply_temperature(logits, params.temperature).double().softmax(0).cumsum(0)
    return bool((edges - uniform).abs().min() < CLOSE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=128)
    given = parser.parse_args()
    torch.set_num_threads(1)  # the model is tiny
    model, prompts = make_model(given.tokens), make_prompts(given.prompts)
    found: dict[str, Any] = {"format": 1, "prompts": given.prompts, "tokens": given.tokens, "ways": {}}
    for drawing in ("greedy", "seeded"):
        kind = {"temperature": 0} if drawing == "greedy" else {"temperature": TEMPERATURE}
        params = [
            SamplingParams(max_tokens=given.tokens, seed=None if drawing == "greedy" else i, **kind)
            for i in range(given.prompts)
        ]
        expected = [naive(model, prompt, p) for prompt, p in zip(prompts, params, strict=True)]
        for name, way in WAYS.items():
            ties = differences = 0
            got = engine_texts(model, prompts, params, way)
            for prompt, mine, theirs, p in zip(prompts, got, expected, params, strict=True):
                if mine != theirs:
                    at = next(i for i, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b)
                    tie = is_tie(model, prompt, theirs, at, p)
                    ties, differences = ties + tie, differences + (not tie)
            print(f"{drawing:7} {name:24} differences {differences}, ties {ties}, of {given.prompts} texts", flush=True)
            found["ways"][f"{drawing}, {name}"] = {"differences": differences, "ties": ties}
    print(json.dumps(found))
    sys.exit(any(way["differences"] for way in found["ways"].values()))


if __name__ == "__main__":
    main()
