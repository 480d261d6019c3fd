"""The model's ladders as plain data, for `tinylm-obs ladder model` and `tinylm-obs ladder decoding`.

No import of tinylm.observability, and torch only once work is made. Not here: timing and tables. Next: decoding.py.
"""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from tinylm.model.scalar.gpt import GPT
    from tinylm.model.transformer import Transformer

PROMPT = 16


class Forward(NamedTuple):
    """One tiny GPT-2-shaped model as both rungs see it, and the ids to run it on."""

    scalar: GPT
    transformer: Transformer
    ids: list[int]


class Decoding(NamedTuple):
    model: Transformer
    ids: Tensor
    max_tokens: int


def rungs() -> list[dict[str, Any]]:
    """Lowest rung first within each ladder; see tinylm.observability for the meaning of the keys."""
    forward = {"component": "model", "ladder": "GPT-2 forward pass", "unit": "tokens", "size": 16}
    forward |= {"make": _make_forward, "amount": lambda work: len(work.ids), "compare": _difference}
    decoding = {"component": "decoding", "ladder": "greedy decoding", "unit": "tokens", "size": 64}
    decoding |= {"make": _make_decoding, "amount": lambda work: work.max_tokens, "compare": _mismatch}
    return [
        {
            **forward,
            "rung": "scalar",
            "module": "tinylm.model.scalar.gpt",
            "change": "Python floats, one multiplication at a time",
            "equals": None,
            "run": _run_scalar,
        },
        {
            **forward,
            "rung": "transformer",
            "module": "tinylm.model.transformer",
            "change": "torch.nn: whole matrices in compiled kernels; the loop in linear() was nearly all the time",
            "equals": "scalar",
            "run": _run_transformer,
        },
        {
            **decoding,
            "rung": "recompute",
            "module": "tinylm.model.decoding",
            "change": "the whole text through the model for every new token",
            "equals": None,
            "run": _run_recompute,
        },
        {
            **decoding,
            "rung": "kv_cache",
            "module": "tinylm.model.decoding",
            "change": "keys and values are remembered, because the same matrix products were computed at every step",
            "equals": "recompute",
            "run": _run_kv_cache,
        },
    ]


def _make_forward(size: int) -> Forward:
    """`size` ids for a GPT-2 shape of 2 layers, width 32."""
    import torch

    from tinylm.model.config import TransformerConfig
    from tinylm.model.scalar.gpt import GPT
    from tinylm.model.transformer import Transformer

    torch.manual_seed(0)
    config = TransformerConfig.preset("gpt2", 65, 2, width=32, head_dim=8, context=max(size, 16))
    model = Transformer(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        work = Forward(GPT.load(folder), model, torch.randint(0, 65, (size,)).tolist())
    _run_transformer(work)  # torch's first call sets up its threads and kernels; that is no part of the step
    return work


def _run_scalar(work: Forward) -> list[list[float]]:
    return work.scalar.logits(work.ids)


def _run_transformer(work: Forward) -> list[list[float]]:
    import torch

    with torch.inference_mode():
        logits: list[list[float]] = work.transformer(torch.tensor([work.ids]))[0].tolist()
    return logits


def _difference(result: list[list[float]], reference: list[list[float]]) -> float:
    """Largest absolute difference of two matrices of logits."""
    pairs = zip(result, reference, strict=True)
    return max(abs(a - b) for row, other in pairs for a, b in zip(row, other, strict=True))


def _make_decoding(size: int) -> Decoding:
    """`size` new tokens after a prompt of 16, with the qwen3 preset of depth 4."""
    import torch

    from tinylm.model.config import TransformerConfig
    from tinylm.model.transformer import Transformer

    torch.manual_seed(0)
    config = TransformerConfig.preset("qwen3", 2048, 4, context=max(256, PROMPT + size))
    work = Decoding(Transformer(config).eval(), torch.randint(0, 2048, (1, PROMPT)), size)
    _run_kv_cache(work._replace(max_tokens=2))  # torch's first call sets up its threads and kernels
    return work


def _run_recompute(work: Decoding) -> list[list[int]]:
    from tinylm.model.decoding import recompute

    ids: list[list[int]] = recompute(work.model, work.ids, work.max_tokens).tolist()
    return ids


def _run_kv_cache(work: Decoding) -> list[list[int]]:
    from tinylm.model.decoding import kv_cache

    ids: list[list[int]] = kv_cache(work.model, work.ids, work.max_tokens).tolist()
    return ids


def _mismatch(result: list[list[int]], reference: list[list[int]]) -> float:
    """Part of the tokens that differ."""
    pairs = [(a, b) for row, other in zip(result, reference, strict=True) for a, b in zip(row, other, strict=True)]
    return sum(a != b for a, b in pairs) / len(pairs)
