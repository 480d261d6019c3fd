"""Every way of decoding that `exactness.py` compares: the same call, prompts and parameters to texts.

A way takes a model that is its own to change. All texts of a call have the same `max_tokens`. Nothing is compared here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tinylm.inference import SamplingParams
from tinylm.inference.compiled import Compiled
from tinylm.inference.engine import Engine
from tinylm.inference.engine_config import EngineConfig
from tinylm.inference.plain_weights import use_kernels
from tinylm.inference.speculation import PromptLookup
from tinylm.inference.static_batch import static_batch
from tinylm.model import Transformer

Texts = list[list[int]]
Params = list[SamplingParams]
Way = Callable[[Transformer, Texts, Params], Texts]
LONGEST = 32  # tokens of a prompt
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
