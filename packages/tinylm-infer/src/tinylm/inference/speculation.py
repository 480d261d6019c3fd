"""tinylm.inference: guesses of the tokens that follow, which the model then checks all at once (speculative decoding).

Reading five tokens costs a model hardly more time than reading one, since the weights are read once either way: so
guess four, read them with the last one, and keep those that would have been drawn (Leviathan et al. 2023). Here a guess
is kept where it equals the draw from the model's own distribution, made with the request's own next random number: the
texts are those without guessing, token by token, greedy and seeded. A draft model draws its guesses with the same
numbers, so that two models that agree draw alike. The check itself is in `engine.py`; nothing here changes what is
written.
"""

import random
from collections.abc import Callable, Mapping
from typing import Any

import torch

from tinylm.inference._errors import InferenceError
from tinylm.inference.checkpoint import open_model
from tinylm.inference.sampling import sample
from tinylm.inference.sequence import Sequence
from tinylm.model import KVCache, Transformer


class PromptLookup:
    """What followed the last time these tokens stood here (Saxena 2023, prompt lookup decoding): no second model.

    The longest of the last `longest` down to `shortest` tokens that occurred before decides, its latest occurrence
    first; `count` tokens are guessed.
    """

    def __init__(self, count: int = 4, longest: int = 3, shortest: int = 1) -> None:
        self.count, self.longest, self.shortest = count, longest, shortest

    def __call__(self, sequence: Sequence) -> list[int]:
        tokens = sequence.tokens
        for size in range(min(self.longest, len(tokens) - 1), self.shortest - 1, -1):
            ending = tokens[-size:]
            for start in range(len(tokens) - size - 1, -1, -1):
                if tokens[start : start + size] == ending:
                    return tokens[start + size : start + size + self.count]
        return []


class DraftModel:
    """A smaller model of the same vocabulary writes `count` tokens ahead.

    It keeps a KV cache for each text it has seen, as long as the text may become, and forgets those of texts that have
    ended.
    """

    def __init__(self, model: Transformer, count: int = 4) -> None:
        self.model, self.count = model, count
        self._caches: dict[Sequence, tuple[KVCache, list[int]]] = {}

    @torch.inference_mode()
    def __call__(self, sequence: Sequence) -> list[int]:
        context = self.model.config.context
        if len(sequence.tokens) + self.count > context:
            return []
        for ended in [known for known in self._caches if known.finish_reason is not None]:
            del self._caches[ended]
        weight = self.model.embed.weight
        if sequence not in self._caches:
            longest = min(context, len(sequence.prompt_token_ids) + sequence.limit + self.count)
            self._caches[sequence] = KVCache(self.model.config, 1, longest, weight.device, weight.dtype), []
        cache, read = self._caches[sequence]
        agreed = next((i for i, (a, b) in enumerate(zip(read, sequence.tokens, strict=False)) if a != b), len(read))
        agreed = min(agreed, len(sequence.tokens) - 1)
        cache.length = agreed
        del read[agreed:]
        rng = random.Random()
        rng.setstate(sequence.random.getstate())
        guessed: list[int] = []
        while len(guessed) < self.count:
            new = [*sequence.tokens, *guessed][len(read) :]
            read += new
            ids = torch.tensor([new], device=weight.device)
            logits = self.model(ids, cache=cache, logits_at=[-1])[0, 0].float().cpu()
            if not logits.max().isfinite():
                break
            output = sequence.output + guessed
            try:
                guessed.append(sample(logits, sequence.params, sequence.prompt_token_ids, output, rng))
            except InferenceError:  # penalties beyond all numbers for this model need not be for the one that decides
                break
        return guessed


def proposer(config: Mapping[str, Any], model: Transformer) -> Callable[[Sequence], list[int]]:
    """What guesses for `model`, by vLLM's `speculative_config`:

    {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3, "prompt_lookup_min": 1} is `PromptLookup`;
    {"model": DIRECTORY, "num_speculative_tokens": 4} is `DraftModel`, with `model`'s type and device, or quantised as
    its files are. All but the first key may be left out. InferenceError for any other key or value, and for a draft
    model of another vocabulary.
    """
    if not isinstance(config, Mapping):
        raise InferenceError(f'speculative_config: wanted a dictionary, as {{"model": DIRECTORY}}, got {config!r}')
    options = dict(config)
    lookup = options.pop("method", None) == "ngram" and "model" not in options
    names = ["num_speculative_tokens", *(["prompt_lookup_max", "prompt_lookup_min"] if lookup else [])]
    directory = "" if lookup else str(options.pop("model", ""))
    numbers = [options.pop(name, default) for name, default in zip(names, (4, 3, 1), strict=False)]
    if options or not (lookup or directory) or not all(type(n) is int and n >= 1 for n in numbers):
        raise InferenceError(
            'speculative_config: wanted {"method": "ngram"} or {"model": DIRECTORY}, with num_speculative_tokens and '
            f"for ngram prompt_lookup_max and prompt_lookup_min of at least 1, got {dict(config)!r}"
        )
    if lookup:
        return PromptLookup(*numbers)
    weight = model.embed.weight
    try:
        draft = open_model(directory, weight.dtype, weight.device)
    except ValueError as error:
        raise InferenceError(f"speculative_config: the draft model: {error}") from None
    if draft.config.vocab_size != model.config.vocab_size:
        raise InferenceError(
            f"speculative_config: wanted a draft model of the same vocabulary, {model.config.vocab_size} tokens, got "
            f"{draft.config.vocab_size} in {directory}"
        )
    return DraftModel(draft, *numbers)
