"""How good is a model? Bits per character on a held-out split, which can be compared across tokenizers.

Non-overlapping windows of the context's length cover every token of the split once; each window's first token is
predicted from the token before it, which the window is given as its first input.
Not here: questions with answers (tasks.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tinylm.model import Transformer, pick_device, read_provenance
from tinylm.tokenizer import Tokenizer
from tinylm.training._errors import TrainingError
from tinylm.training.data import TokenDataset
from tinylm.training.strategy import SingleProcess

_TOKENS_AT_ONCE = 16384
_RESAMPLES = 1000
_COUNTED = 1 << 22  # tokens that say how many bytes one has

Vector = npt.NDArray[np.float64]


def bits_per_character(
    model: Transformer,
    dataset: TokenDataset,
    context: int | None = None,
    max_windows: int | None = None,
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    strategy: SingleProcess | None = None,
) -> float:
    """Total nats / ln 2 / characters over the split `dataset`. Over many processes each computes its share.

    max_windows: an estimate from at most that many windows spread evenly. The split's very first token has no token
    before it and is predicted from id 0.
    """
    context = context or model.config.context
    starts, nats = _window_nats(model, dataset, context, max_windows, autocast, strategy)
    count = sum(min(context, dataset.tokens - start) for start in starts)
    return float(nats.sum()) / count * dataset.tokens / math.log(2) / dataset.characters


def _window_nats(
    model: Transformer,
    dataset: TokenDataset,
    context: int,
    max_windows: int | None = None,
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    strategy: SingleProcess | None = None,
) -> tuple[list[int], Vector]:
    """Where the windows begin, in order, and what each of them costs."""
    length = dataset.tokens
    starts = list(range(0, length, context))
    if max_windows is not None and len(starts) > max_windows:
        starts = starts[:: -(-len(starts) // max_windows)]
    device = next(model.parameters()).device
    full = [s for s in starts if s + context <= length]
    at_once = max(1, _TOKENS_AT_ONCE // context)
    groups = [full[i : i + at_once] for i in range(0, len(full), at_once)]
    groups += [[s] for s in starts if s + context > length]
    strategy = strategy or SingleProcess()
    found: dict[int, list[float]] = {}
    was_training = model.training
    model.eval()
    with torch.no_grad(), autocast():
        for turn in range(0, len(groups), strategy.data_ranks):
            number = min(
                turn + strategy.data_rank, len(groups) - 1
            )  # all compute together, so some the same at the end
            windows = torch.stack([_window(dataset, start, context) for start in groups[number]]).to(device)
            losses = model.loss(windows[:, :-1], windows[:, 1:], reduction="none")
            found[number] = losses.float().sum(1).tolist()
    model.train(was_training)
    for share in strategy.gather(found):
        found |= share
    return starts, np.array([nats for number in range(len(groups)) for nats in found[number]])


def _window(dataset: TokenDataset, start: int, context: int) -> Tensor:
    """The token before `start`, and `context` tokens from there (fewer at the end)."""
    ids = dataset.ids(max(0, start - 1), start + context)
    return torch.from_numpy(ids if start else np.concatenate([[0], ids]))


def evaluate(checkpoint: str | Path, data: str | Path, split: str = "validation", device: str = "auto") -> float:
    """Bits per character of the model in `checkpoint` on a split of the data set `data`.

    Raises TrainingError when the model and the data set were made with different tokenizers.
    """
    return bits_per_character(*_opened(checkpoint, data, split, device))


def _opened(checkpoint: str | Path, data: str | Path, split: str, device: str) -> tuple[Transformer, TokenDataset]:
    """A model and a split that belong together."""
    if split not in ("train", "validation"):
        raise TrainingError(f"wanted split train or validation, got {split!r}")
    dataset = TokenDataset(data, split)
    model = Transformer.load(checkpoint, device=pick_device(device))
    made_with = read_provenance(checkpoint).get("tokenizer_sha256")
    if made_with is not None and made_with != dataset.tokenizer_sha256:
        raise TrainingError(
            f"{checkpoint} was trained with another tokenizer than the data set {data} "
            f"(sha256 {made_with[:12]}… and {dataset.tokenizer_sha256[:12]}…): prepare the text with the model's own"
        )
    if model.config.vocab_size < dataset.vocab_size:
        raise TrainingError(
            f"wanted a data set of at most {model.config.vocab_size} token ids, as {checkpoint} has, got "
            f"{dataset.vocab_size} in {data}"
        )
    return model, dataset


@dataclasses.dataclass(frozen=True)
class Measure:
    """A figure and the 95 % interval around it; none around a single window."""

    value: float
    low: float | None
    high: float | None


def measures(
    checkpoint: str | Path, data: str | Path, split: str = "validation", device: str = "auto"
) -> tuple[dict[str, Measure], str]:
    """`evaluate` as bits_per_character, and the same nats as bits_per_byte and perplexity; and what the intervals are.

    A token that stands for no text (the end of a document) has no bytes. perplexity = exp(nats / tokens) depends on the
    tokenizer; the other two do not. Intervals: Efron's percentile bootstrap (1979). Windows of the context's length are
    drawn with replacement, as many as there are, and each draw gives its figure; whole windows, because the tokens of
    one are not independent. Neighbouring windows are not quite either, so an interval is somewhat too narrow.
    """
    model, dataset = _opened(checkpoint, data, split, device)
    context = model.config.context
    starts, nats = _window_nats(model, dataset, context)
    columns = np.column_stack([nats, _texts(dataset, starts, context)])  # nats, tokens, bytes, characters
    draws, whole = _bootstrap(columns), columns.sum(0)
    bits = float(whole[0]) / math.log(2)

    def measure(value: float, figures: Vector) -> Measure:
        if len(starts) < 2:
            return Measure(value, None, None)
        low, high = np.quantile(figures, [0.025, 0.975])
        return Measure(value, float(low), float(high))

    # A tokenizer that changes text has other characters than the text that was split: hence a ratio to the whole.
    per_character = draws[:, 0] / draws[:, 3] * (whole[3] / dataset.characters / math.log(2))
    found = {
        "bits_per_character": measure(bits / dataset.characters, per_character),
        "bits_per_byte": measure(bits / float(whole[2]), draws[:, 0] / draws[:, 2] / math.log(2)),
        "perplexity": measure(math.exp(whole[0] / whole[1]), np.exp(draws[:, 0] / draws[:, 1])),
    }
    return found, f"bootstrap over {len(starts)} windows of {context} tokens, {_RESAMPLES} draws, 95 %"


def bytes_per_token(dataset: TokenDataset, tokenizer: Tokenizer) -> float:
    """The mean over the split, or over the first millions of its tokens."""
    return float(_sizes(tokenizer)[dataset.ids(0, min(dataset.tokens, _COUNTED)), 1].mean())


def _texts(dataset: TokenDataset, starts: Sequence[int], context: int) -> Vector:
    """(windows, 3): tokens, bytes and characters of each."""
    sizes = _sizes(Tokenizer.load(dataset.tokenizer_file))
    return np.array([sizes[dataset.ids(start, start + context)].sum(0) for start in starts])


def _sizes(tokenizer: Tokenizer) -> Vector:
    """(vocabulary, 3): each id is one token, so many bytes, and so many characters: bytes that continue no other."""
    special = set(tokenizer.special_tokens.values())
    texts = [b"" if i in special else tokenizer.id_to_bytes(i) for i in range(tokenizer.vocab_size)]
    return np.array([[1, len(text), sum(byte & 0xC0 != 0x80 for byte in text)] for text in texts], np.float64)


def _bootstrap(columns: Vector) -> Vector:
    """(windows, n) -> (draws, n): sums over windows drawn with replacement, always the same draws."""
    random = np.random.Generator(np.random.Philox(0))
    count = len(columns)
    return np.stack(
        [np.bincount(random.integers(count, size=count), minlength=count) @ columns for _ in range(_RESAMPLES)]
    )
