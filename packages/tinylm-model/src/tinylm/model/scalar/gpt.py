"""GPT-2's forward pass, one multiplication at a time: lists of Python floats, no torch, no NumPy.

This is the lowest rung of the model's ladder; `transformer` gives the same logits from the same files. What it does not
do: gradients, batches, other shapes than GPT-2's. Next: ../transformer.py.

The words follow Radford et al. 2019 and Vaswani et al. 2017. A vector is a list of floats, a matrix a list of its rows;
GPT-2's files keep a layer's matrix as (in, out), so that y = x W + b.
"""

from __future__ import annotations

import json
import math
import os
import sys
from array import array
from pathlib import Path
from typing import Any

from tinylm.model._errors import ModelError
from tinylm.model._huggingface import from_json
from tinylm.model._layout import check_shapes
from tinylm.model.config import TransformerConfig

Vector = list[float]
Matrix = list[Vector]


def dot(a: Vector, b: Vector) -> float:
    """Σ aᵢ bᵢ."""
    return sum(x * y for x, y in zip(a, b, strict=True))


def add(a: Vector, b: Vector) -> Vector:
    return [x + y for x, y in zip(a, b, strict=True)]


def linear(x: Vector, weight: Matrix, bias: Vector) -> Vector:
    """y = x W + b: a sum of W's rows, each as much as x says. weight (in, out)."""
    y = list(bias)
    for amount, row in zip(x, weight, strict=True):
        for j, w in enumerate(row):
            y[j] += amount * w
    return y


def layer_norm(x: Vector, weight: Vector, bias: Vector, eps: float) -> Vector:
    """(x − mean) / sqrt(variance + eps) · weight + bias (Ba et al. 2016)."""
    mean = sum(x) / len(x)
    variance = sum((v - mean) ** 2 for v in x) / len(x)
    scale = 1 / math.sqrt(variance + eps)
    return [(v - mean) * scale * w + b for v, w, b in zip(x, weight, bias, strict=True)]


def gelu(x: float) -> float:
    """x · Φ(x) by tanh (Hendrycks and Gimpel 2016), the form GPT-2 was trained with."""
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def softmax(scores: Vector) -> Vector:
    """exp(s) / Σ exp(s); the largest score is taken off first, which changes nothing but keeps exp from overflowing."""
    top = max(scores)
    exponentials = [math.exp(s - top) for s in scores]
    total = sum(exponentials)
    return [e / total for e in exponentials]


def attention(queries: Matrix, keys: Matrix, values: Matrix) -> Matrix:
    """One head: each position takes a weighted mean of the values up to itself. All three (T, head_dim)."""
    out = []
    for t, query in enumerate(queries):
        scores = [dot(query, key) / math.sqrt(len(query)) for key in keys[: t + 1]]
        pattern = softmax(scores)
        out.append([dot(pattern, list(column)) for column in zip(*values[: t + 1], strict=True)])
    return out


class GPT:
    """A GPT-2-shaped model whose weights are nested lists, by their names in the file."""

    def __init__(self, config: TransformerConfig, weights: dict[str, Any]) -> None:
        self.config, self.weights = config, weights

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> GPT:
        """Read config.json and model.safetensors (float32 or float64) of a GPT-2-shaped checkpoint."""
        folder = Path(directory)
        try:
            fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            config = from_json(fields, str(folder / "config.json"))
            shapes, weights = read_safetensors(folder / "model.safetensors")
        except FileNotFoundError as error:
            raise ModelError(f"{folder}: wanted config.json and model.safetensors, got no {error.filename}") from None
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ModelError(f"{folder}/config.json: wanted JSON, got {error}") from None
        if config.position != "learned":
            raise ModelError(f"{folder}: the scalar rung wants a gpt2 checkpoint, got {fields['model_type']}")
        check_shapes(config, shapes, str(folder))
        return cls(config, weights)

    def logits(self, ids: list[int]) -> Matrix:
        """(T,) ids -> (T, V): at each position a score for every token that could come next."""
        config, w = self.config, self.weights
        if not 1 <= len(ids) <= config.context or not all(0 <= i < config.vocab_size for i in ids):
            raise ModelError(
                f"ids: wanted 1 to {config.context} ids from 0 to {config.vocab_size - 1}, got {len(ids)}: {ids[:5]}"
            )
        table = w["transformer.wte.weight"]
        x = [add(table[i], w["transformer.wpe.weight"][position]) for position, i in enumerate(ids)]
        for layer in range(config.depth):
            x = self._block(x, f"transformer.h.{layer}")
        head = table if config.tie_embeddings else w["lm_head.weight"]
        x = self._norm(x, "transformer.ln_f")
        return [[dot(row, token) for token in head] for row in x]

    def _block(self, x: Matrix, name: str) -> Matrix:
        """x + attention(norm(x)), then x + mlp(norm(x))."""
        x = [add(a, b) for a, b in zip(x, self._attention(self._norm(x, f"{name}.ln_1"), name), strict=True)]
        return [add(a, b) for a, b in zip(x, self._mlp(self._norm(x, f"{name}.ln_2"), name), strict=True)]

    def _attention(self, x: Matrix, name: str) -> Matrix:
        width, size = self.config.width, self.config.head_dim
        qkv = self._linear(x, f"{name}.attn.c_attn")  # (T, 3 · width): queries, keys, values side by side
        heads = []
        for start in range(0, width, size):
            parts = ([row[at + start : at + start + size] for row in qkv] for at in (0, width, 2 * width))
            heads.append(attention(*parts))
        joined = [[v for head in heads for v in head[t]] for t in range(len(x))]
        return self._linear(joined, f"{name}.attn.c_proj")

    def _mlp(self, x: Matrix, name: str) -> Matrix:
        inner = [[gelu(v) for v in row] for row in self._linear(x, f"{name}.mlp.c_fc")]
        return self._linear(inner, f"{name}.mlp.c_proj")

    def _linear(self, x: Matrix, name: str) -> Matrix:
        return [linear(row, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]) for row in x]

    def _norm(self, x: Matrix, name: str) -> Matrix:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return [layer_norm(row, weight, bias, self.config.norm_eps) for row in x]


def read_safetensors(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    """Shapes and nested lists of floats by name. The format: 8 bytes with the header's length (little-endian), a JSON
    header with each tensor's type, shape and place, then the numbers."""
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    try:
        header = json.loads(raw[8:end])
        header.pop("__metadata__", None)
        shapes, weights = {}, {}
        for name, entry in header.items():
            start, stop = entry["data_offsets"]
            numbers = array({"F32": "f", "F64": "d"}[entry["dtype"]])
            numbers.frombytes(raw[end + start : end + stop])
            if sys.byteorder == "big":
                numbers.byteswap()
            shapes[name] = tuple(entry["shape"])
            weights[name] = _nest(list(numbers), shapes[name])
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelError(
            f"{path}: wanted a whole safetensors file with float32 or float64 numbers, got {error!r:.80}"
        ) from None
    return shapes, weights


def _nest(numbers: Vector, shape: tuple[int, ...]) -> Any:
    if math.prod(shape) != len(numbers) or not 1 <= len(shape) <= 2:
        raise ValueError(f"shape {shape} for {len(numbers)} numbers")
    return numbers if len(shape) == 1 else [numbers[i : i + shape[1]] for i in range(0, len(numbers), shape[1])]
