"""GPT-2, one multiplication at a time: lists of numbers, no torch, no NumPy.

This is the lowest rung of the model's ladder; every other gives the same logits, loss and gradients from the same
files. The functions take floats, or autograd's Values when gradients are wanted: each formula stands here once. What it
does not do: batches, other shapes than GPT-2's. Next: training.py, which trains it; derived.py, the same gradients
worked out by hand.

The words follow Radford et al. 2019 and Vaswani et al. 2017. A vector is a list of numbers, a matrix a list of its
rows; GPT-2's files keep a layer's matrix as (in, out), so that y = x W + b.
"""

from __future__ import annotations

import math
import os
from typing import Any, Self

from tinylm.model._errors import ModelError
from tinylm.model.config import TransformerConfig
from tinylm.model.scalar.autograd import N, Value, exp, log, tanh
from tinylm.model.scalar.files import Weights, read_checkpoint, write_checkpoint

IGNORED = -100  # a target that counts for nothing


def dot(a: list[N], b: list[N]) -> N:
    """Σ aᵢ bᵢ."""
    total = a[0] * b[0]
    for x, y in zip(a[1:], b[1:], strict=True):
        total = total + x * y
    return total


def add(a: list[N], b: list[N]) -> list[N]:
    return [x + y for x, y in zip(a, b, strict=True)]


def linear(x: list[N], weight: list[list[N]], bias: list[N]) -> list[N]:
    """y = x W + b: a sum of W's rows, each as much as x says. weight (in, out)."""
    y = list(bias)
    for amount, row in zip(x, weight, strict=True):
        for j, w in enumerate(row):
            y[j] = y[j] + amount * w
    return y


def layer_norm(x: list[N], weight: list[N], bias: list[N], eps: float) -> list[N]:
    """(x − mean) / sqrt(variance + eps) · weight + bias (Ba et al. 2016)."""
    mean = _sum(x) / len(x)
    centred = [v - mean for v in x]
    variance = dot(centred, centred) / len(x)
    scale = (variance + eps) ** -0.5
    return [v * scale * w + b for v, w, b in zip(centred, weight, bias, strict=True)]


def gelu(x: N) -> N:
    """x · Φ(x) by tanh (Hendrycks and Gimpel 2016), the form GPT-2 was trained with."""
    return 0.5 * x * (1 + tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def softmax(scores: list[N]) -> list[N]:
    """exp(s) / Σ exp(s); the largest score is taken off first, which changes nothing but keeps exp from overflowing."""
    top = float(max(scores))
    exponentials = [exp(s - top) for s in scores]
    total = _sum(exponentials)
    return [e / total for e in exponentials]


def attention(queries: list[list[N]], keys: list[list[N]], values: list[list[N]]) -> list[list[N]]:
    """One head: each position takes a weighted mean of the values up to itself. All three (T, head_dim)."""
    out = []
    for t, query in enumerate(queries):
        scores = [dot(query, key) / math.sqrt(len(query)) for key in keys[: t + 1]]
        pattern = softmax(scores)
        out.append([dot(pattern, list(column)) for column in zip(*values[: t + 1], strict=True)])
    return out


def cross_entropy(logits: list[list[N]], targets: list[int]) -> N | float:
    """Mean of −ln softmax(z)[target] in nats over the targets that count; 0 if none does."""
    losses = []
    for row, target in zip(logits, targets, strict=True):
        if target != IGNORED:
            top = float(max(row))
            losses.append(log(_sum([exp(z - top) for z in row])) + top - row[target])
    return _sum(losses) / len(losses) if losses else 0.0


def _sum(numbers: list[N]) -> N:
    """sum() begins with 0 + the first, which would be one more Value."""
    total = numbers[0]
    for number in numbers[1:]:
        total = total + number
    return total


def forward(config: TransformerConfig, w: dict[str, Any], ids: list[int]) -> list[list[Any]]:
    """(T,) ids -> (T, V) logits, as floats or Values, whatever the weights are."""

    def linears(x: Any, name: str) -> Any:
        return [linear(row, w[f"{name}.weight"], w[f"{name}.bias"]) for row in x]

    def norms(x: Any, name: str) -> Any:
        return [layer_norm(row, w[f"{name}.weight"], w[f"{name}.bias"], config.norm_eps) for row in x]

    def attend(x: Any, name: str) -> Any:
        width, size = config.width, config.head_dim
        qkv = linears(x, f"{name}.c_attn")  # (T, 3 · width): queries, keys, values side by side
        heads = []
        for start in range(0, width, size):
            q, k, v = ([row[at + start : at + start + size] for row in qkv] for at in (0, width, 2 * width))
            heads.append(attention(q, k, v))
        joined = [[number for head in heads for number in head[t]] for t in range(len(x))]
        return linears(joined, f"{name}.c_proj")

    def mlp(x: Any, name: str) -> Any:
        return linears([[gelu(v) for v in row] for row in linears(x, f"{name}.c_fc")], f"{name}.c_proj")

    def residual(x: Any, change: Any) -> Any:
        return [add(a, b) for a, b in zip(x, change, strict=True)]

    table = w["transformer.wte.weight"]
    x = [add(table[i], w["transformer.wpe.weight"][position]) for position, i in enumerate(ids)]
    for block in (f"transformer.h.{layer}" for layer in range(config.depth)):
        x = residual(x, attend(norms(x, f"{block}.ln_1"), f"{block}.attn"))
        x = residual(x, mlp(norms(x, f"{block}.ln_2"), f"{block}.mlp"))
    x = norms(x, "transformer.ln_f")
    head = table if config.tie_embeddings else w["lm_head.weight"]
    return [[dot(row, token) for token in head] for row in x]


class GPT:
    """A GPT-2-shaped model whose weights are nested lists of floats, by their names in the file."""

    def __init__(self, config: TransformerConfig, weights: Weights) -> None:
        self.config, self.weights = config, weights

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Self:
        """Read config.json and model.safetensors (float32 or float64) of a GPT-2-shaped checkpoint."""
        return cls(*read_checkpoint(directory))

    def save(self, directory: str | os.PathLike[str]) -> None:
        write_checkpoint(directory, self.config, self.weights)

    def logits(self, ids: list[int]) -> list[list[float]]:
        """(T,) ids -> (T, V): at each position a score for every token that could come next."""
        self._check(ids)
        return forward(self.config, self.weights, ids)

    def loss(self, ids: list[int], targets: list[int]) -> float:
        """Cross-entropy in nats of targets (T,) after ids (T,); targets of -100 are ignored."""
        self._check(ids, targets)
        return cross_entropy(forward(self.config, self.weights, ids), targets)

    def loss_and_gradients(self, ids: list[int], targets: list[int]) -> tuple[float, Weights]:
        """The loss, and its derivative to every weight, nested like the weights."""
        self._check(ids, targets)
        values = {name: _map(Value, tensor) for name, tensor in self.weights.items()}
        loss = cross_entropy(forward(self.config, values, ids), targets)
        if isinstance(loss, Value):
            loss.backward()
        return float(loss), {name: _map(lambda value: value.grad, tensor) for name, tensor in values.items()}

    def _check(self, ids: list[int], targets: list[int] | None = None) -> None:
        config = self.config
        if not 1 <= len(ids) <= config.context or not all(0 <= i < config.vocab_size for i in ids):
            raise ModelError(
                f"ids: wanted 1 to {config.context} ids from 0 to {config.vocab_size - 1}, got {len(ids)}: {ids[:5]}"
            )
        if targets is None:
            return
        if len(targets) != len(ids) or not all(i == IGNORED or 0 <= i < config.vocab_size for i in targets):
            raise ModelError(
                f"targets: wanted {len(ids)} ids from 0 to {config.vocab_size - 1} or {IGNORED}, one for each of ids, "
                f"got {len(targets)}: {targets[:5]}"
            )


def _map(function: Any, tensor: Any) -> Any:
    """`function` of every number of a vector or matrix."""
    return [_map(function, item) if isinstance(item, list) else function(item) for item in tensor]
