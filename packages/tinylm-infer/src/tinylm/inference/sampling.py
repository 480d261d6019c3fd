"""tinylm.inference: from logits to one token, one function per step. The lowest rung of the sampling ladder.

    logit bias -> penalties -> temperature -> min-p -> top-k -> top-p -> draw

Every step takes the logits of one position, shape (V,), float32 on the CPU, and returns new ones of the same shape;
a token that is ruled out has -inf. `sample` is all steps in order (vLLM's order; transformers has min-p last).
It knows nothing of models, text or batches: `generation.py` is the loop around it.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tinylm.inference._errors import InferenceError
from tinylm.inference.sampling_params import SamplingParams


def apply_logit_bias(logits: Tensor, bias: Mapping[int, float]) -> Tensor:
    """logits[id] + bias[id]; (V,) -> (V,)."""
    biased = logits.clone()
    for token_id, value in bias.items():
        if token_id >= len(logits):
            raise InferenceError(f"logit_bias: token id {token_id} is outside the model's vocabulary of {len(logits)}")
        biased[token_id] += value
    return biased


def apply_repetition_penalty(logits: Tensor, seen: Sequence[int], penalty: float) -> Tensor:
    """Makes tokens that occurred (prompt and output) less likely: l / penalty where l > 0, else l * penalty.

    Keskar et al. 2019 (CTRL), section 4.1, in the form that transformers and vLLM use; (V,) -> (V,).
    """
    penalised = logits.clone()
    ids = torch.tensor(sorted(set(seen)), dtype=torch.long)
    values = logits[ids]
    penalised[ids] = torch.where(values > 0, values / penalty, values * penalty)
    return penalised


def apply_presence_and_frequency(logits: Tensor, output: Sequence[int], presence: float, frequency: float) -> Tensor:
    """l - presence * [count > 0] - frequency * count, counts over the output alone (OpenAI's formula); (V,) -> (V,)."""
    penalised = logits.clone()
    for token_id, count in Counter(output).items():
        penalised[token_id] -= presence + frequency * count
    return penalised


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """l / temperature, shifted so that the largest is 0: nothing overflows however cold it is; (V,) -> (V,)."""
    return (logits - logits.max()) / temperature


def apply_min_p(logits: Tensor, min_p: float) -> Tensor:
    """Keeps tokens at least `min_p` times as likely as the likeliest one (Nguyen et al. 2024); (V,) -> (V,)."""
    if min_p <= 0:
        return logits
    probabilities = logits.softmax(dim=0)
    return logits.masked_fill(probabilities < min_p * probabilities.max(), -torch.inf)


def apply_top_k(logits: Tensor, k: int) -> Tensor:
    """Keeps the k largest, and all that equal the k-th; k <= 0 keeps every token; (V,) -> (V,)."""
    if k <= 0 or k >= len(logits):
        return logits
    smallest_kept = logits.topk(k).values[-1]
    return logits.masked_fill(logits < smallest_kept, -torch.inf)


def apply_top_p(logits: Tensor, p: float) -> Tensor:
    """Nucleus sampling: keeps the fewest most likely tokens whose probabilities sum to at least p; (V,) -> (V,).

    Holtzman et al. 2020, equation 2. A token stays if those before it have not reached p; so the first always does.
    """
    if p >= 1:
        return logits
    descending, order = logits.sort(descending=True, stable=True)
    probabilities = descending.softmax(dim=0)
    mass_before = probabilities.cumsum(dim=0) - probabilities
    removed = order[mass_before >= p]
    return logits.index_fill(0, removed[removed != order[0]], -torch.inf)


def draw(logits: Tensor, uniform: float) -> int:
    """The token in whose interval of the cumulative distribution `uniform` (in [0, 1)) falls.

    One uniform number per token, in float64: the same seed gives the same draw on every device and torch version.
    """
    cumulative = logits.double().softmax(dim=0).cumsum(dim=0)
    # Scaled by the total, which rounding leaves a little off 1: otherwise a draw near 1 could fall past the last token.
    # right=True: a token of probability 0 has an empty interval and is never hit.
    token_id = int(torch.searchsorted(cumulative, uniform * cumulative[-1], right=True))
    return min(token_id, int(logits.isfinite().nonzero()[-1]))


def sample(
    logits: Tensor, params: SamplingParams, prompt: Sequence[int], output: Sequence[int], rng: random.Random
) -> int:
    """Draws the next token id from `logits` (V,), after `prompt` and the `output` so far. All steps in order.

    `rng` belongs to one request and advances by one number per drawn token (none when greedy).
    """
    if params.logit_bias:
        logits = apply_logit_bias(logits, params.logit_bias)
    if params.repetition_penalty != 1:
        logits = apply_repetition_penalty(logits, [*prompt, *output], params.repetition_penalty)
    if params.presence_penalty or params.frequency_penalty:
        logits = apply_presence_and_frequency(logits, output, params.presence_penalty, params.frequency_penalty)
    if not logits.max().isfinite():
        raise InferenceError(
            "the parameters rule out every token, or a penalty goes beyond all numbers: min_tokens, logit_bias and "
            "penalties leave nothing to draw"
        )
    if params.greedy:
        return int(logits.argmax())
    logits = apply_temperature(logits, params.temperature)
    logits = apply_min_p(logits, params.min_p)
    logits = apply_top_k(logits, params.top_k)
    logits = apply_top_p(logits, params.top_p)
    return draw(logits, rng.random())
