"""tinylm.inference: how fast a checkpoint writes and how well it predicts a text: what `tinylm-infer bench` measures.

It measures; it does not compare (that is `tinylm-obs`), and prints nothing (that is `cli.py`).
"""

import math
import random
import statistics
import time
from typing import Any

import torch

from tinylm.inference._errors import InferenceError
from tinylm.inference.llm import LLM
from tinylm.inference.sampling_params import SamplingParams


def speed(llm: LLM, prompt_tokens: int, max_tokens: int, repetitions: int = 3) -> dict[str, Any]:
    """Seconds to the first token, seconds per later token, tokens per second: medians of `repetitions` after a warm-up.

    The prompt is `prompt_tokens` random ids (the same each time); decoding is greedy and runs past end-of-text.
    Time per token counts the tokens after the first, so `max_tokens` must be at least 2.
    """
    config = llm.model.config
    if prompt_tokens < 1 or max_tokens < 2 or prompt_tokens + max_tokens > config.context:
        raise InferenceError(
            f"wanted a prompt of at least 1 and at least 2 new tokens, together within the context ({config.context}), "
            f"got {prompt_tokens} and {max_tokens}; choose --prompt-tokens and --max-tokens to fit"
        )
    chooser = random.Random(0)
    prompt = {"prompt_token_ids": [chooser.randrange(config.vocab_size) for _ in range(prompt_tokens)]}
    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)
    for _ in zip(range(8), llm.stream(prompt, params).steps(), strict=False):
        pass  # warm-up: the first calls allocate and choose kernels
    runs = [_time_one(llm, prompt, params) for _ in range(repetitions)]
    per_token = statistics.median(rest / (max_tokens - 1) for _, rest in runs)
    return {
        "prompt_tokens": prompt_tokens,
        "max_tokens": max_tokens,
        "repetitions": repetitions,
        "time_to_first_token_s": statistics.median(first for first, _ in runs),
        "time_per_token_s": per_token,
        "tokens_per_s": 1 / per_token,
    }


def _time_one(llm: LLM, prompt: dict[str, list[int]], params: SamplingParams) -> tuple[float, float]:
    """(seconds to the first token, seconds for the others). Each step ends on the CPU: no device is left running."""
    start = time.perf_counter()
    steps = llm.stream(prompt, params).steps()
    next(steps)
    first = time.perf_counter()
    for _ in steps:
        pass
    return first - start, time.perf_counter() - first


@torch.inference_mode()
def perplexity(llm: LLM, text: str) -> dict[str, Any]:
    """How well the model predicts `text`: nats and bits per character, over windows of the context that do not overlap.

    Each window predicts the tokens after its own; the text begins after the model's start token, so that every token is
    counted once (the first is left out if there is no such token). perplexity = exp(nats / tokens).
    """
    if llm.tokenizer is None:
        raise InferenceError("perplexity of a text needs the tokenizer")
    start = llm.tokenizer.bos_id if llm.tokenizer.bos_id is not None else llm.tokenizer.eos_id
    ids = [*([] if start is None else [start]), *llm.tokenizer.encode(text)]
    if len(ids) < 2:
        raise InferenceError("perplexity: wanted a text with at least one token to predict, got none")
    context = llm.model.config.context
    nats = 0.0
    for begin in range(0, len(ids) - 1, context):
        window = torch.tensor([ids[begin : begin + context + 1]], device=llm.device)
        nats += float(llm.model.loss(window[:, :-1], window[:, 1:], reduction="sum"))
    tokens = len(ids) - 1
    return {
        "nats": nats,
        "tokens": tokens,
        "characters": len(text),
        "perplexity": math.exp(nats / tokens),
        "bits_per_character": nats / math.log(2) / len(text),
    }
