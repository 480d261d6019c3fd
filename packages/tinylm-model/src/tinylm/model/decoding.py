"""Writing with a model, two rungs that give the same tokens: recompute everything each step, or remember keys and
values.

Not here: top-k, top-p, stop strings, batching of requests (tinylm.inference). Next: cache.py for how the memory works.
"""

from __future__ import annotations

from numbers import Integral, Real

import torch
from torch import Tensor

from tinylm.model._errors import ModelError
from tinylm.model._inputs import check_whole
from tinylm.model.cache import KVCache
from tinylm.model.transformer import Transformer

COLDEST = 1e-30  # below it logits divided by the temperature leave float32, and long before the likeliest is all


def recompute(
    model: Transformer,
    ids: Tensor,
    max_tokens: int,
    temperature: float = 0,
    generator: torch.Generator | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """The lowest rung: run the whole text through the model for every new token. O(T²) tokens of work.

    ids (B, T) int64; mask (B, T) bool for left-padded batches, True = real token. Returns the new ids only, (B,
    max_tokens). temperature 0 takes the likeliest token; otherwise one is drawn from softmax(logits / temperature).
    """
    _check(model, ids, max_tokens, temperature)
    start = ids.shape[1]
    with torch.inference_mode():
        for _ in range(max_tokens):
            logits = model(ids, mask=mask, logits_at=[-1])[:, 0]
            ids = torch.cat([ids, _choose(logits, temperature, generator)], dim=1)
            mask = _extend(mask)
    return ids[:, start:].clone()  # what is made in inference mode could not be trained on


def kv_cache(
    model: Transformer,
    ids: Tensor,
    max_tokens: int,
    temperature: float = 0,
    generator: torch.Generator | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """The second rung, same result as `recompute`: each token goes through the model once, O(T) tokens of work."""
    _check(model, ids, max_tokens, temperature)
    weight = model.embed.weight
    cache = KVCache(model.config, ids.shape[0], ids.shape[1] + max_tokens, weight.device, weight.dtype)
    new: list[Tensor] = []
    with torch.inference_mode():
        for _ in range(max_tokens):
            logits = model(ids, mask=mask, cache=cache, logits_at=[-1])[:, 0]
            ids = _choose(logits, temperature, generator)
            new.append(ids)
            mask = _extend(mask)
    return torch.cat(new, dim=1)  # here, since what is made in inference mode could not be trained on


generate = kv_cache
"""The faster rung, `kv_cache`: what training's samples, GRPO and the notebooks call."""


def _choose(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """(B, V) -> (B, 1)."""
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    warmth = max(temperature, COLDEST)
    return torch.multinomial(torch.softmax(logits.float() / warmth, dim=-1), 1, generator=generator)


def _extend(mask: Tensor | None) -> Tensor | None:
    """One more real token at the end of every row."""
    return None if mask is None else torch.cat([mask, mask.new_ones(mask.shape[0], 1)], dim=1)


def _check(model: Transformer, ids: Tensor, max_tokens: int, temperature: float) -> None:
    check_whole("ids", ids)
    if isinstance(max_tokens, bool) or not isinstance(max_tokens, Integral):
        raise ModelError(f"generate: wanted max_tokens to be a whole number, got {max_tokens!r:.80}")
    if isinstance(temperature, bool) or not isinstance(temperature, Real):
        raise ModelError(f"generate: wanted temperature to be a number, got {temperature!r:.80}")
    if max_tokens < 1 or not 0 <= temperature < float("inf"):
        raise ModelError(f"generate: wanted max_tokens >= 1 and temperature >= 0, got {max_tokens} and {temperature}")
    if ids.ndim != 2 or 0 in ids.shape:
        raise ModelError(f"generate: wanted ids of shape (batch, time) with at least one token, got {tuple(ids.shape)}")
    if ids.shape[1] + max_tokens > model.config.context:
        raise ModelError(
            f"generate: wanted at most {model.config.context} tokens (the context), got a prompt of {ids.shape[1]} "
            f"and {max_tokens} new ones; shorten one of them"
        )
