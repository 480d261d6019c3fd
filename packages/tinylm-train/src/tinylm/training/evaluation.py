"""How good is a model? Bits per character on a held-out split, which can be compared across tokenizers.

Non-overlapping windows of the context's length cover every token of the split once; each window's first token is
predicted from the token before it, which the window is given as its first input.
Not here: questions with answers (tasks.py).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinylm.model import Transformer, pick_device, read_provenance
from tinylm.tokenizer import Tokenizer
from tinylm.training._errors import TrainingError
from tinylm.training.data import TokenDataset

_TOKENS_AT_ONCE = 16384


def bits_per_character(
    model: Transformer,
    dataset: TokenDataset,
    context: int | None = None,
    max_windows: int | None = None,
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> float:
    """Total nats / ln 2 / characters over the split `dataset`.

    max_windows: an estimate from at most that many windows spread evenly. The split's very first token has no token
    before it and is predicted from id 0.
    """
    context = context or model.config.context
    length = dataset.tokens
    starts = list(range(0, length, context))
    if max_windows is not None and len(starts) > max_windows:
        starts = starts[:: -(-len(starts) // max_windows)]
    device = next(model.parameters()).device
    nats, count = 0.0, 0
    full = [s for s in starts if s + context <= length]
    at_once = max(1, _TOKENS_AT_ONCE // context)
    groups = [full[i : i + at_once] for i in range(0, len(full), at_once)]
    groups += [[s] for s in starts if s + context > length]
    was_training = model.training
    model.eval()
    with torch.no_grad(), autocast():
        for group in groups:
            windows = torch.stack([_window(dataset, start, context) for start in group]).to(device)
            nats += float(model.loss(windows[:, :-1], windows[:, 1:], reduction="sum"))
            count += windows[:, 1:].numel()
    model.train(was_training)
    return nats / count * length / math.log(2) / dataset.characters


def _window(dataset: TokenDataset, start: int, context: int) -> Tensor:
    """The token before `start`, and `context` tokens from there (fewer at the end)."""
    ids = dataset.ids(max(0, start - 1), start + context)
    return torch.from_numpy(ids if start else np.concatenate([[0], ids]))


def evaluate(checkpoint: str | Path, data: str | Path, split: str = "validation", device: str = "auto") -> float:
    """Bits per character of the model in `checkpoint` on a split of the data set `data`.

    Raises TrainingError when the model and the data set were made with different tokenizers.
    """
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
    return bits_per_character(model, dataset)


def measures(
    checkpoint: str | Path, data: str | Path, split: str = "validation", device: str = "auto"
) -> dict[str, float]:
    """`evaluate`, and the same nats per byte of the text and per token: bits_per_character, bits_per_byte, perplexity.

    A token that stands for no text (the end of a document) has no bytes. perplexity = exp(nats / tokens) depends on the
    tokenizer; the other two do not.
    """
    bits = evaluate(checkpoint, data, split, device)
    dataset = TokenDataset(data, split)
    tokenizer = Tokenizer.load(dataset.tokenizer_file)
    special = set(tokenizer.special_tokens.values())
    sizes = np.array([0 if i in special else len(tokenizer.id_to_bytes(i)) for i in range(tokenizer.vocab_size)])
    text_bytes = sum(int(sizes[np.asarray(shard)].sum()) for shard in dataset.shards)
    nats = bits * math.log(2) * dataset.characters
    return {
        "bits_per_character": bits,
        "bits_per_byte": nats / math.log(2) / text_bytes,
        "perplexity": math.exp(nats / dataset.tokens),
    }
