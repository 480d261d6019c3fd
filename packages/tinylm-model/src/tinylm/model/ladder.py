"""The model's ladders as plain data, for `tinylm-obs ladder model`, `ladder attention` and `ladder decoding`.

No import of tinylm.observability, and torch and NumPy only once work is made. Not here: attention's rungs
(_attention_ladder.py), timing and tables. Next:
decoding.py.
"""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any, NamedTuple

from tinylm.model import _attention_ladder

if TYPE_CHECKING:
    from torch import Tensor

    from tinylm.model.arrays.transformer import Transformer as Arrays
    from tinylm.model.tensors.transformer import Transformer as Tensors
    from tinylm.model.transformer import Transformer

PROMPT = 16
COMPARED = 100  # steps that are compared with float64: Adam's steps multiply a rounding by about 1,000 every 100 steps


class Gradients(NamedTuple):
    """One model as each rung sees it, and a batch."""

    arrays: Arrays
    tensors: Tensors
    transformer: Transformer
    ids: Any
    targets: Any


class Decoding(NamedTuple):
    model: Transformer
    ids: Tensor
    max_tokens: int


def rungs() -> list[dict[str, Any]]:
    """Lowest rung first within each ladder; see tinylm.observability for the meaning of the keys."""
    return [*_training(), *_gradients(), *_attention_ladder.rungs(), *_decoding()]


def _training() -> list[dict[str, Any]]:
    common: dict[str, Any] = {
        "component": "model",
        "ladder": "training steps, GPT-2 shape, 4,192 parameters",
        "unit": "steps",
    }
    common |= {"make": _make_names, "amount": len, "compare": _difference}
    common |= {"cost": lambda names: (6.0 * 4192 * sum(len(name) + 1 for name in names), 0.0, "float64")}
    common |= {"exact": lambda names: _train_scalar("derived", names)[:COMPARED]}  # Python's floats are float64
    return [
        {
            **common,
            "rung": "scalar, autograd",
            "module": "tinylm.model.scalar.gpt",
            "change": "Python floats, one multiplication at a time, each remembered for the chain rule",
            "equals": None,
            "run": lambda names: _train_scalar("gpt", names),
            "size": 4,
        },
        {
            **common,
            "rung": "scalar, derived",
            "module": "tinylm.model.scalar.derived",
            "change": "making Values and walking them back took the time: each gradient by hand, on plain floats",
            "equals": "scalar, autograd",
            "run": lambda names: _train_scalar("derived", names),
            "size": 100,
        },
        {
            **common,
            "rung": "arrays",
            "module": "tinylm.model.arrays",
            "change": "sum(map(mul, a, b)) took the time: a whole product of matrices is one call of NumPy; float32",
            "equals": "scalar, derived",
            "run": _train_arrays,
            "size": 1000,
        },
    ]


def _gradients() -> list[dict[str, Any]]:
    common: dict[str, Any] = {"component": "model"}
    common |= {"ladder": "loss and gradients, Qwen3 shape, 2.6 million parameters"}
    common |= {"make": _make_gradients, "amount": lambda work: work.ids.size, "compare": _attention_ladder.relative}
    common |= {"unit": "tokens", "size": 1024, "cost": _gradients_cost, "exact": _exact_gradients}
    common |= {"tolerance": 1e-4}  # both are float32, and sum a thousand terms in another order
    return [
        {
            **common,
            "rung": "arrays",
            "module": "tinylm.model.arrays",
            "change": "NumPy, every backward by hand",
            "equals": None,
            "run": lambda work: work.arrays.loss_and_gradients(work.ids, work.targets)[1],
        },
        {
            **common,
            "rung": "tensors",
            "module": "tinylm.model.tensors",
            "change": "the (T, T) pattern took the time: blocks of queries with the keys they see, in place",
            "equals": "arrays",
            "run": lambda work: work.tensors.loss_and_gradients(work.ids, work.targets)[1],
        },
        {
            **common,
            "rung": "transformer",
            "module": "tinylm.model.transformer",
            "change": "products aside, passes over patterns and logits took the time: torch's fused kernels",
            "equals": "tensors",
            "run": _run_gradients,
        },
    ]


def _decoding() -> list[dict[str, Any]]:
    common: dict[str, Any] = {"component": "decoding", "ladder": "greedy decoding", "unit": "tokens", "size": 64}
    common |= {
        "cost": _decoding_cost,
        "make": _make_decoding,
        "amount": lambda work: work.max_tokens,
        "compare": _mismatch,
    }
    return [
        {
            **common,
            "rung": "recompute",
            "module": "tinylm.model.decoding",
            "change": "the whole text through the model for every new token",
            "equals": None,
            "run": _run_recompute,
        },
        {
            **common,
            "rung": "kv_cache",
            "module": "tinylm.model.decoding",
            "change": "keys and values are remembered, because the same matrix products were computed at every step",
            "equals": "recompute",
            "run": _run_kv_cache,
        },
    ]


def _make_names(size: int) -> list[str]:
    from tinylm.model.scalar.training import made_names

    return made_names(size)


def _train_scalar(module: str, names: list[str]) -> list[float]:
    """The loss of each step."""
    from tinylm.model.scalar import derived, gpt, training

    kind = gpt.GPT if module == "gpt" else derived.GPT
    return training.train(kind(training.CONFIG, training.start(training.CONFIG)), names, len(names))


def _train_arrays(names: list[str]) -> list[float]:
    from tinylm.model.arrays.training import train
    from tinylm.model.arrays.transformer import Transformer
    from tinylm.model.scalar import derived, training

    with tempfile.TemporaryDirectory() as folder:
        derived.GPT(training.CONFIG, training.start(training.CONFIG)).save(folder)
        model = Transformer.load(folder, "float32")
    return train(model, names, len(names))


def _difference(result: list[float], reference: list[float]) -> float:
    """Largest absolute difference of two lists of losses, as far as the reference goes."""
    return max(abs(a - b) for a, b in zip(result[: len(reference)], reference, strict=True))


def _make_gradients(size: int) -> Gradients:
    """`size` tokens in one sequence, for 4 layers of width 192."""
    import numpy as np
    import torch

    from tinylm.model.arrays.transformer import Transformer as Arrays
    from tinylm.model.config import TransformerConfig
    from tinylm.model.tensors.transformer import Transformer as Tensors
    from tinylm.model.transformer import Transformer

    torch.manual_seed(0)
    model = Transformer(TransformerConfig.preset("qwen3", 4096, 4, width=192, context=1024))
    weights = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    ids, targets = np.random.default_rng(0).integers(0, 4096, (2, 1, size))
    work = Gradients(Arrays(model.config, weights), Tensors(model.config, weights), model, ids, targets)
    _run_gradients(work._replace(ids=ids[:1, :8], targets=targets[:1, :8]))  # torch's first call sets up its kernels
    return work


def _run_gradients(work: Gradients) -> dict[str, Any]:
    import torch

    loss = work.transformer.loss(torch.from_numpy(work.ids), torch.from_numpy(work.targets))
    parameters = dict(work.transformer.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    return {name: gradient.numpy() for name, gradient in zip(parameters, gradients, strict=True)}


def _gradients_cost(work: Gradients) -> tuple[float, float, str]:
    """The least: 6 FLOPs a weight and token, attention below the diagonal; weights read twice, gradients written."""
    model, tokens = work.transformer, work.ids.size
    weights = sum(parameter.numel() for parameter in model.parameters())
    attention = 6.0 * model.config.depth * model.config.heads * model.config.head_dim * tokens * tokens
    return 6.0 * weights * tokens + attention, 12.0 * weights, "float32"


def _exact_gradients(work: Gradients) -> dict[str, Any]:
    from tinylm.model.arrays.transformer import Transformer as Arrays

    weights = {name: parameter.detach().double().numpy() for name, parameter in work.transformer.named_parameters()}
    return Arrays(work.transformer.config, weights).loss_and_gradients(work.ids, work.targets)[1]


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


def _decoding_cost(work: Decoding) -> tuple[float, float, str]:
    """The least: every weight read once and used once for every new token."""
    weights = sum(parameter.numel() for parameter in work.model.parameters())
    return 2.0 * weights * work.max_tokens, 4.0 * weights * work.max_tokens, "float32"


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
