"""tinylm.inference: many texts at once, the plain way: one batch, padded to the longest, that ends when all have ended.

A product with one row reads every weight for one token; with B rows it reads them once for B. What it wastes is why
there is an engine: padding is computed, a text that has ended keeps its row, and nobody joins before the end. Not here:
any of that mended. Next: `engine.py`.
"""

import random
from collections.abc import Callable, Collection
from collections.abc import Sequence as Items

import torch
from torch import Tensor

from tinylm.inference._errors import InferenceError
from tinylm.inference.sampling import sample
from tinylm.inference.sampling_params import SamplingParams
from tinylm.model import KVCache, Transformer, TransformerConfig

Texts = list[list[int]]


@torch.inference_mode()
def static_batch(
    model: Transformer, prompts: Items[Items[int]], params: Items[SamplingParams], ends: Collection[int] = ()
) -> Texts:
    """The new tokens of each prompt, as `LLM.generate` writes them: at most its `max_tokens`, up to a token of `ends`.

    Memory: a cache for as many full rows as there are prompts. InferenceError for an empty prompt, or one that leaves
    no room in the context.
    """
    limits = room_for_each(model.config, prompts, params)
    weight = model.embed.weight
    ids, mask = pad_left(prompts, weight.device)
    cache = KVCache(model.config, len(prompts), ids.shape[1] + max(limits), weight.device, weight.dtype)

    def step(new: Tensor) -> Tensor:
        nonlocal mask
        if cache.length:
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        logits: Tensor = model(new, mask=mask, cache=cache, logits_at=[-1])[:, 0]
        return logits

    return write(step, ids, prompts, params, limits, ends)


def write(
    step: Callable[[Tensor], Tensor],
    ids: Tensor,
    prompts: Items[Items[int]],
    params: Items[SamplingParams],
    limits: Items[int],
    ends: Collection[int],
) -> Texts:
    """`step`: the batch's newest ids (B, T) -> logits (B, V) after them. Draws until the last text has ended."""
    outputs: Texts = [[] for _ in prompts]
    generators = [random.Random(p.seed) for p in params]
    while True:
        logits = step(ids).float().cpu()
        for row, (prompt, p, output) in enumerate(zip(prompts, params, outputs, strict=True)):
            if not _ended(output, p, limits[row], ends):
                output.append(sample(logits[row], p, prompt, output, generators[row]))
        if all(_ended(*text, ends) for text in zip(outputs, params, limits, strict=True)):
            return outputs
        ids = torch.tensor([output[-1:] for output in outputs], device=ids.device)


def pad_left(prompts: Items[Items[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """(B, longest) ids with zeros before them, and where the real ones are: all rows end side by side."""
    longest = max(map(len, prompts))
    ids = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[False] * (longest - len(prompt)) + [True] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def room_for_each(config: TransformerConfig, prompts: Items[Items[int]], params: Items[SamplingParams]) -> list[int]:
    """How many tokens each text may get: `max_tokens`, or what the context leaves."""
    if not prompts or len(prompts) != len(params):
        raise InferenceError(f"wanted params for each of at least one prompt, got {len(prompts)} and {len(params)}")
    for prompt in prompts:
        if not 1 <= len(prompt) < config.context:
            raise InferenceError(f"wanted prompts of 1 to {config.context - 1} tokens, got {len(prompt)}")
    rooms = [config.context - len(prompt) for prompt in prompts]
    return [min(p.max_tokens or room, room) for p, room in zip(params, rooms, strict=True)]


def _ended(output: list[int], params: SamplingParams, limit: int, ends: Collection[int]) -> bool:
    return len(output) == limit or (bool(output) and output[-1] in ends and not params.ignore_eos)
