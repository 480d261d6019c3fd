"""The lowest rung of decoding, whose texts `exactness.py` compares all others with, and what counts as a tie.

`step_by_step` is the rung: alone, the whole text through the model again for every token, one function per sampling
step. `lowest` gives the same text sooner. A text that is guessed goes through the model once; its position `at` then
has the logits after the tokens before it (a position sees no later one: the model's tests) but for rounding, since a
product of many rows may add in another order. Where a guessed token wins by CLOSE or more, rounding cannot matter;
every other position the rung computes itself, and from the first token that it writes differently it goes on alone. How
far rounding goes is measured at each text's last position: half of CLOSE is an error. Which texts are compared, and
with what: `exactness.py`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from tinylm.inference import SamplingParams
from tinylm.inference.sampling import apply_temperature, sample
from tinylm.model import Transformer

CLOSE = 1e-4  # of logits (greedy), of probability (seeded)


def logits_after(model: Transformer, prompt: list[int], output: list[int]) -> Tensor:
    return model(torch.tensor([[*prompt, *output]]), logits_at=[-1])[0, 0]


@torch.inference_mode()
def step_by_step(
    model: Transformer, prompt: list[int], params: SamplingParams, count: int, begun: Sequence[int] = ()
) -> list[int]:
    """`count` tokens, of which the first were `begun`."""
    rng, output = random.Random(params.seed), list(begun)
    for _ in begun:
        rng.random()
    while len(output) < count:
        output.append(sample(logits_after(model, prompt, output), params, prompt, output, rng))
    return output


@torch.inference_mode()
def lowest(model: Transformer, prompt: list[int], params: SamplingParams, guess: list[int]) -> list[int]:
    """What `step_by_step` writes; `guess` is a whole text, whoever wrote it."""
    logits = model(torch.tensor([[*prompt, *guess[:-1]]]))[0, len(prompt) - 1 :]
    rounding = float((logits[-1] - logits_after(model, prompt, guess[:-1])).abs().max())
    if rounding > CLOSE / 2:
        raise RuntimeError(f"one pass and the lowest rung: wanted logits at most {CLOSE / 2} apart, got {rounding}")
    drawn = uniforms(params, len(guess))
    for at, token in enumerate(guess):
        if not wins(logits[at], params, drawn[at], token):
            begun = step_by_step(model, prompt, params, at + 1, guess[:at])
            if begun[at] != token:
                return step_by_step(model, prompt, params, len(guess), begun)
    return guess


def uniforms(params: SamplingParams, count: int) -> list[float]:
    """The numbers that a text's tokens are drawn with (greedy: not used)."""
    rng = random.Random(params.seed)
    return [rng.random() for _ in range(count)]


def interval(logits: Tensor, params: SamplingParams, token: int) -> tuple[float, float]:
    """Which drawn numbers give `token`; temperature alone, no cut."""
    ends = apply_temperature(logits, params.temperature).double().softmax(0).cumsum(0)
    return float(ends[token - 1]) if token else 0.0, float(ends[token])


def wins(logits: Tensor, params: SamplingParams, uniform: float, token: int) -> bool:
    """Whether `token` is chosen, and still is where the logits (V,) or the interval moves by CLOSE."""
    if params.greedy:
        first, second = logits.topk(2).values
        return bool(logits[token] == first and first - second >= CLOSE)
    begin, end = interval(logits, params, token)
    return begin + CLOSE <= uniform <= end - CLOSE


@torch.inference_mode()
def is_tie(
    model: Transformer, prompt: list[int], output: list[int], at: int, other: int, params: SamplingParams
) -> bool:
    """Whether the lowest rung's token number `at` is less than CLOSE away from being `other`."""
    logits = logits_after(model, prompt, output[:at])
    if params.greedy:
        return bool(logits.max() - logits[other] < CLOSE)
    begin, end = interval(logits, params, other)
    return begin - CLOSE < uniforms(params, at + 1)[at] < end + CLOSE
