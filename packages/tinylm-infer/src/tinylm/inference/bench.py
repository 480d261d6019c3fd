"""tinylm.inference: how fast a checkpoint writes and how well it predicts a text: what `tinylm-infer bench` measures.

A token of one text reads every weight once: what decoding can reach is the memory's bandwidth, so bench says how many
bytes a token reads, and how fast the same machine reads so many bytes in a plain product, in turn with the decoding. It
does not compare (that is `tinylm-obs`), and prints nothing (that is `cli.py`).
"""

import math
import random
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tinylm.inference._errors import InferenceError
from tinylm.inference.llm import LLM
from tinylm.inference.quantization.linear import QuantizedLinear
from tinylm.inference.quantization.model import QuantizedTransformer
from tinylm.inference.sampling_params import SamplingParams
from tinylm.model import Transformer


def speed(llm: LLM, prompt_tokens: int, max_tokens: int, repetitions: int = 3) -> dict[str, Any]:
    """Seconds to the first token, seconds per later token, tokens per second, bytes per token and per second, and the
    fraction of `read_bandwidth`: medians of `repetitions` after a warm-up.

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
    moved = bytes_per_token(llm.model, prompt_tokens + max_tokens // 2)
    runs = [
        (*_time_one(llm, prompt, params), read_bandwidth(moved, llm.device)) for _ in range(repetitions)
    ]  # in turn, so that both meet the same machine
    per_token = statistics.median(rest / (max_tokens - 1) for _, rest, _ in runs)
    return {
        "prompt_tokens": prompt_tokens,
        "max_tokens": max_tokens,
        "repetitions": repetitions,
        "time_to_first_token_s": statistics.median(first for first, *_ in runs),
        "time_per_token_s": per_token,
        "tokens_per_s": 1 / per_token,
        "bytes_per_token": moved,
        "gb_per_s": moved / per_token / 1e9,
        "roofline_gb_per_s": statistics.median(limit for *_, limit in runs) / 1e9,
        "roofline_fraction": statistics.median(moved * (max_tokens - 1) / rest / limit for _, rest, limit in runs),
    }


def bytes_per_token(model: Transformer, length: int) -> int:
    """What one new token has to read: each matrix as it is stored (of the experts those it is sent to), the embedding
    where it is the head, and the keys and values of `length` tokens."""
    config = model.config
    quantized = isinstance(model, QuantizedTransformer)
    read = 2 * config.depth * config.kv_heads * config.head_dim * length * model.embed.weight.itemsize
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            read += module.nbytes
        elif isinstance(module, nn.Embedding) and (module is not model.embed or model.head is not None or quantized):
            continue  # one row of it
        else:
            for parameter in module.parameters(recurse=False):
                of_experts = parameter.ndim == 3  # (experts, out, in)
                read += (
                    parameter.nbytes * config.experts_per_token // config.experts if of_experts else parameter.nbytes
                )
    return read


def read_bandwidth(footprint: int, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> float:
    """Bytes/s at which `device` reads a float32 matrix of about `footprint` bytes: the fastest of some products with a
    vector, or of its sum. A program may be faster, with larger pages for one. `clock`: seconds, the processor's for one
    thread of a machine that others use too."""
    rows = max(1, footprint // 4096)
    matrix, vector = torch.ones(rows, 1024, device=device), torch.ones(1024, device=device)
    ways: list[Callable[[], Tensor]] = [lambda: torch.mv(matrix, vector), matrix.sum]
    calls = max(1, 20_000_000 // footprint)  # one alone may be too short for the clock
    fastest = math.inf
    for read in ways * 8:
        _wait(device)
        start = clock()
        for _ in range(calls):
            read()
        _wait(device)
        fastest = min(fastest, (clock() - start) / calls)
    return matrix.nbytes / fastest


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


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
    counted once (the first is left out if there is no such token). perplexity = exp(nats / tokens); None, and named in
    "nonfinite", where that is no number.
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
    finite = nats / tokens < math.log(sys.float_info.max)
    return {
        "nats": nats,
        "tokens": tokens,
        "characters": len(text),
        "perplexity": math.exp(nats / tokens) if finite else None,
        "bits_per_character": nats / math.log(2) / len(text),
        **({} if finite else {"nonfinite": {"perplexity": "inf"}}),
    }
