"""tinylm.inference: the next token of many sequences at once: the upper rung of the sampling ladder.

Each step is the one of the same name in `sampling.py`, over the rows of a matrix (B, V) that want it, and gives the
same bits: a request's draws are the same alone and in a batch. Read `sampling.py` first, for what the steps are and
where they come from.
"""

from collections import Counter
from collections.abc import Sequence as Items

import torch
from torch import Tensor

from tinylm.inference._errors import InferenceError, ParameterError
from tinylm.inference.outputs import Logprob
from tinylm.inference.sampling_params import SamplingParams
from tinylm.inference.sequence import Sequence


@torch.inference_mode()
def choose(logits: Tensor, sequences: Items[Sequence]) -> list[int | InferenceError]:
    """Draws a token for each row of `logits` (B, V), float32 on the CPU, each for the sequence of the same place.

    Instead of a token, what is wrong with its logits or parameters: the other rows are drawn all the same.
    """
    rows = list(range(len(sequences)))
    params = [sequence.params for sequence in sequences]
    steered = apply_logit_bias(logits, params)
    steered = apply_forbidden(steered, sequences)
    steered = apply_repetition_penalty(steered, sequences)
    steered = apply_presence_and_frequency(steered, sequences)
    steered = apply_grammars(steered, sequences)
    # max's index is argmax's, the first of equals, and comes three times as fast
    highest, likeliest = steered.max(dim=1) if any(p.greedy for p in params) else (steered.amax(dim=1), None)
    chosen: list[int | InferenceError] = [0] * len(rows)
    for row in (~highest.isfinite()).nonzero().flatten().tolist():
        chosen[row] = _what_is_wrong(logits[row], sequences[row])
        rows.remove(row)
    if likeliest is not None:
        ids = likeliest.tolist()
        for row in rows:
            chosen[row] = ids[row]  # what is drawn below replaces it
    drawn = [row for row in rows if not params[row].greedy]
    if drawn:
        wanted = [params[row] for row in drawn]
        left = apply_temperature(steered[drawn], wanted)
        left = apply_min_p(left, wanted)
        left = apply_top_k(left, wanted)
        left = apply_top_p(left, wanted)
        uniforms = torch.tensor([sequences[row].random.random() for row in drawn], dtype=torch.float64)
        for row, token_id in zip(drawn, draw(left, uniforms), strict=True):
            chosen[row] = token_id
    return chosen


def apply_logit_bias(logits: Tensor, params: Items[SamplingParams]) -> Tensor:
    """logits[row, id] + bias[id]; (B, V) -> (B, V)."""
    found = [(row, i, bias) for row, p in enumerate(params) for i, bias in (p.logit_bias or {}).items()]
    return _at(logits, found, lambda values, biases: values + biases)


def apply_forbidden(logits: Tensor, sequences: Items[Sequence]) -> Tensor:
    """-inf for what would end a text before `min_tokens`; (B, V) -> (B, V)."""
    size = logits.shape[1]
    found = [(row, i, 0.0) for row, sequence in enumerate(sequences) for i in sequence.forbidden if i < size]
    return _at(logits, found, lambda values, _: torch.full_like(values, -torch.inf))


def apply_repetition_penalty(logits: Tensor, sequences: Items[Sequence]) -> Tensor:
    """l / penalty where l > 0, else l * penalty, for tokens of prompt and output; (B, V) -> (B, V)."""
    found = [
        (row, i, sequence.params.repetition_penalty)
        for row, sequence in enumerate(sequences)
        if sequence.params.repetition_penalty != 1
        for i in set(sequence.tokens)
    ]
    return _at(logits, found, lambda values, p: torch.where(values > 0, values / p, values * p))


def apply_presence_and_frequency(logits: Tensor, sequences: Items[Sequence]) -> Tensor:
    """l - presence * [count > 0] - frequency * count, counts over the output; (B, V) -> (B, V)."""
    found = [
        (row, i, sequence.params.presence_penalty + sequence.params.frequency_penalty * count)
        for row, sequence in enumerate(sequences)
        if sequence.params.presence_penalty or sequence.params.frequency_penalty
        for i, count in Counter(sequence.output).items()
    ]
    return _at(logits, found, lambda values, penalties: values - penalties)


def apply_grammars(logits: Tensor, sequences: Items[Sequence]) -> Tensor:
    """-inf for what the grammar of a text does not admit now; (B, V) -> (B, V)."""
    rows = [row for row, sequence in enumerate(sequences) if sequence.matcher is not None]
    if not rows:
        return logits
    masks = [sequence.matcher.mask(logits.shape[1]) for sequence in sequences if sequence.matcher is not None]
    return _with_rows(logits, rows, logits[rows].masked_fill(~torch.stack(masks), -torch.inf))


def apply_temperature(logits: Tensor, params: Items[SamplingParams]) -> Tensor:
    """(l - the row's largest) / temperature; (B, V) -> (B, V)."""
    temperatures = torch.tensor([[p.temperature] for p in params])
    return (logits - logits.amax(dim=1, keepdim=True)) / temperatures


def apply_min_p(logits: Tensor, params: Items[SamplingParams]) -> Tensor:
    """Keeps what is at least min_p times as likely as the row's likeliest; (B, V) -> (B, V)."""
    rows = [row for row, p in enumerate(params) if p.min_p > 0]
    if not rows:
        return logits
    some = logits[rows]
    probabilities = some.softmax(dim=1)
    floor = torch.tensor([[params[row].min_p] for row in rows]) * probabilities.amax(dim=1, keepdim=True)
    return _with_rows(logits, rows, some.masked_fill(probabilities < floor, -torch.inf))


def apply_top_k(logits: Tensor, params: Items[SamplingParams]) -> Tensor:
    """Keeps each row's k largest and all that equal the k-th; (B, V) -> (B, V)."""
    size = logits.shape[1]
    rows = [row for row, p in enumerate(params) if 0 < p.top_k < size]
    if not rows:
        return logits
    ks = torch.tensor([[params[row].top_k] for row in rows])
    some = logits[rows]
    smallest_kept = some.topk(int(ks.max())).values.gather(1, ks - 1)
    return _with_rows(logits, rows, some.masked_fill(some < smallest_kept, -torch.inf))


def apply_top_p(logits: Tensor, params: Items[SamplingParams]) -> Tensor:
    """Keeps each row's fewest likeliest tokens whose probabilities reach p; (B, V) -> (B, V)."""
    rows = [row for row, p in enumerate(params) if p.top_p < 1]
    if not rows:
        return logits
    some = logits[rows]
    descending, order = some.sort(dim=1, descending=True, stable=True)
    probabilities = descending.softmax(dim=1)
    mass_before = probabilities.cumsum(dim=1) - probabilities
    removed = mass_before >= torch.tensor([[params[row].top_p] for row in rows])
    removed[:, 0] = False
    return _with_rows(logits, rows, some.masked_fill(removed.scatter(1, order, removed), -torch.inf))


def draw(logits: Tensor, uniforms: Tensor) -> list[int]:
    """For each row the token in whose interval of the cumulative distribution its uniform number (B,) falls."""
    cumulative = logits.double().softmax(dim=1).cumsum(dim=1)
    found = torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True)[:, 0]
    last = logits.shape[1] - 1 - logits.isfinite().flip(1).int().argmax(dim=1)
    ids: list[int] = torch.minimum(found, last).tolist()
    return ids


def describe(logits: Tensor, token_id: int, count: int, sequence: Sequence) -> dict[int, Logprob]:
    """The token's log-probability in the model's own distribution, logits (V,), and the `count` likeliest (-1: all).

    The token first, then the likeliest in order.
    """
    logprobs = logits.log_softmax(dim=0)
    wanted = len(logprobs) if count == -1 else min(count, len(logprobs))
    rank = int((logprobs >= logprobs[token_id]).sum())
    described = {token_id: Logprob(float(logprobs[token_id]), rank, sequence.token_text(token_id))}
    values, ids = logprobs.topk(wanted)
    for position, (value, i) in enumerate(zip(values.tolist(), ids.tolist(), strict=True)):
        described.setdefault(i, Logprob(value, position + 1, sequence.token_text(i)))
    return described


def _at(logits: Tensor, found: list[tuple[int, int, float]], change: object) -> Tensor:
    """`logits` with change(values, numbers) at the places (row, column, number) found; itself where there are none."""
    if not found:
        return logits
    assert callable(change)
    rows, columns, numbers = zip(*found, strict=True)
    places = torch.tensor(rows), torch.tensor(columns)
    return logits.index_put(places, change(logits[places], torch.tensor(numbers, dtype=logits.dtype)))


def _with_rows(logits: Tensor, rows: list[int], some: Tensor) -> Tensor:
    return some if len(rows) == len(logits) else logits.index_copy(0, torch.tensor(rows), some)


def _what_is_wrong(logits: Tensor, sequence: Sequence) -> InferenceError:
    if sequence.matcher is not None and sequence.matcher.error:
        return ParameterError(f"structured output: {sequence.matcher.error}")
    if logits.max().isfinite():  # max() passes a NaN on
        return ParameterError(
            "the parameters rule out every token, or a penalty goes beyond all numbers: min_tokens, logit_bias, "
            "penalties and the grammar leave nothing to draw"
        )
    return InferenceError(
        f"the model's logits after {len(sequence.tokens)} tokens are not numbers (NaN or infinite): the weights are "
        "damaged, or their type is too narrow for them; try dtype='float32'"
    )
