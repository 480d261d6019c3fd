"""Examples laid out in few rows, each of them alone in its row as far as the model can tell; and their probabilities.

    row 0:  a a a a b b b b b c c .        positions  0 1 2 3 0 1 2 3 4 0 1 .        document  0 0 0 0 1 1 1 1 1 2 2 -1

A token attends to the earlier ones of its own document only, and positions start anew with each, so that packing
changes how long a step takes and nothing else. The mask goes in through the model's cache interface, which is asked for
each layer's attention. Not here: which tokens are learned (chat_data.py), what is made of the probabilities (sft.py,
dpo.py, grpo.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tinylm.model import Transformer
from tinylm.training._errors import TrainingError
from tinylm.training.finetuning.chat_data import Example

_ROWS_AT_ONCE = 8192  # logits (rows × vocabulary) are made for so many learned tokens at a time


@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows of packed examples, (R, T) each: ids, positions within the example, number of the example (-1: padding).

    learned (N, 2): row and column of every learned token, example by example; owner (N,): the example's number.
    """

    ids: Tensor
    positions: Tensor
    documents: Tensor
    learned: Tensor
    owner: Tensor
    size: int  # examples

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        moved = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "size"}
        return Batch(**{name: tensor.to(device) for name, tensor in moved.items()}, size=self.size)


def pack(examples: Sequence[Example], context: int, packing: bool = True) -> Batch:
    """First fit, longest first (Johnson 1973: at most 11/9 of the fewest rows); without packing a row each.

    A row is as long as the longest example and no longer: attention's time grows with the square of it.

    TrainingError for an example longer than the context, and when no token of any is learned.
    """
    longest = max((len(example.ids) for example in examples), default=0)
    if longest > context:
        raise TrainingError(f"wanted examples of at most {context} tokens, got {longest}")
    if not any(any(example.learned) for example in examples):
        raise TrainingError("wanted at least one token to learn in a batch, got none: every one is masked")
    rows: list[list[int]] = []
    room: list[int] = []
    for number in sorted(range(len(examples)), key=lambda n: -len(examples[n].ids)):
        length = len(examples[number].ids)
        row = next((r for r, left in enumerate(room) if left >= length), None) if packing else None
        if row is None:
            row = len(rows)
            rows.append([])
            room.append(longest)
        rows[row].append(number)
        room[row] -= length
    return _lay_out(examples, rows)


def _lay_out(examples: Sequence[Example], rows: Sequence[Sequence[int]]) -> Batch:
    time = max(sum(len(examples[number].ids) for number in row) for row in rows)
    ids = torch.zeros(len(rows), time, dtype=torch.int64)
    positions, documents = torch.zeros_like(ids), torch.full_like(ids, -1)
    learned: dict[int, list[tuple[int, int]]] = {}
    for r, row in enumerate(rows):
        start = 0
        for number in row:
            example = examples[number]
            end = start + len(example.ids)
            ids[r, start:end] = torch.tensor(example.ids)
            positions[r, start:end] = torch.arange(len(example.ids))
            documents[r, start:end] = number
            # A first token has no prediction: the one before it in the row is another example's.
            learned[number] = [(r, start + i) for i, wanted in enumerate(example.learned) if wanted and i]
            start = end
    places = [place for number in sorted(learned) for place in learned[number]]
    owner = [number for number in sorted(learned) for _ in learned[number]]
    return Batch(
        ids, positions, documents, torch.tensor(places).view(-1, 2), torch.tensor(owner).view(-1), len(examples)
    )


class DocumentAttention:
    """tinylm.model's Cache that keeps nothing: causal attention within each document of a row."""

    def __init__(self, documents: Tensor) -> None:
        """documents (R, T): equal numbers attend to each other."""
        same = documents[:, :, None] == documents[:, None, :]
        self.allowed = same.tril()[:, None]  # (R, 1, T, T)

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, window: int | None = None
    ) -> Tensor:
        """q (R, heads, T, head_dim); k, v (R, kv_heads, T, head_dim) -> as q. There is never a `mask`."""
        allowed = self.allowed if window is None else self.allowed.triu(1 - window)
        grouped = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, enable_gqa=grouped)


def log_probabilities(model: Transformer, batch: Batch, temperature: float = 1.0) -> Tensor:
    """(N,): log p of every learned token, given all before it in its example, at a temperature. Only their logits are
    ever made."""
    attention = DocumentAttention(batch.documents)
    hidden = model.hidden(batch.ids, positions=batch.positions, cache=attention)
    row, column = batch.learned.unbind(1)
    before = hidden[row, column - 1]  # (N, D)
    targets = batch.ids[row, column]
    pieces = []
    for at in range(0, len(targets), _ROWS_AT_ONCE):
        part = slice(at, at + _ROWS_AT_ONCE)
        logits = F.linear(before[part], model.head_weight).float() / temperature
        pieces.append(-F.cross_entropy(logits, targets[part], reduction="none"))
    return torch.cat(pieces)


def per_example(values: Tensor, batch: Batch) -> Tensor:
    """(N,) -> (examples,): sums over each example's learned tokens."""
    return values.new_zeros(batch.size).index_add(0, batch.owner, values)
