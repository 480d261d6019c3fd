"""tinylm.inference: the ladders of decoding (_decoding_ladder.py) and of sampling, for `tinylm-obs ladder`.

Temperature, min-p, top-k, top-p and the draw, for each row of a batch on its own (sampling.py) and over the whole batch
(sampler.py): the same ids, bit for bit. No import of tinylm.observability, and torch only once work is made. Not here:
timing and tables.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, NamedTuple

from tinylm.inference import _decoding_ladder

if TYPE_CHECKING:
    from torch import Tensor

    from tinylm.inference.sampling_params import SamplingParams

_VOCABULARY = 8192


class Work(NamedTuple):
    logits: Tensor  # (B, V) float32
    params: list[SamplingParams]


def rungs() -> list[dict[str, Any]]:
    """Lowest rung first; see tinylm.observability for the meaning of the keys."""
    common: dict[str, Any] = {"component": "sampling", "ladder": f"sampling from {_VOCABULARY:,} logits", "size": 64}
    common |= {"make": _make, "amount": lambda work: len(work.params), "unit": "tokens", "compare": _differing}
    common |= {"cost": lambda work: (5.0 * work.logits.numel(), 4.0 * work.logits.numel(), "float32")}  # read once
    return [
        *_decoding_ladder.rungs(),
        common
        | {
            "rung": "one function per step",
            "module": "tinylm.inference.sampling",
            "change": "each row through temperature, min-p, top-k, top-p and the draw",
            "equals": None,
            "run": _run_rows,
        },
        common
        | {
            "rung": "vectorised over the batch",
            "module": "tinylm.inference.sampler",
            "change": "each step is one call for all rows: no faster on a CPU core, few launches on a GPU",
            "equals": "one function per step",
            "run": _run_batch,
        },
    ]


def _make(size: int) -> Work:
    """`size` rows of logits whose probabilities fall like words', three ways of sampling in turn."""
    import torch

    from tinylm.inference.sampling_params import SamplingParams

    generator = torch.Generator().manual_seed(0)
    falling = -torch.arange(1, _VOCABULARY + 1).log()
    noise = torch.randn(size, _VOCABULARY, generator=generator)
    ways = [
        SamplingParams(temperature=0.8, top_k=50),
        SamplingParams(top_p=0.9),
        SamplingParams(min_p=0.05, top_p=0.95),
    ]
    work = Work(falling + noise, [ways[row % 3] for row in range(size)])
    _run_batch(Work(work.logits[:3], work.params[:3]))  # torch's first call sets up its kernels
    return work


def _run_rows(work: Work) -> list[int]:
    from tinylm.inference.sampling import sample

    rows = zip(work.logits, work.params, strict=True)
    return [sample(logits, params, [], [], random.Random(row)) for row, (logits, params) in enumerate(rows)]


def _run_batch(work: Work) -> list[int]:
    import torch

    from tinylm.inference import sampler

    left = work.logits
    for step in (sampler.apply_temperature, sampler.apply_min_p, sampler.apply_top_k, sampler.apply_top_p):
        left = step(left, work.params)
    uniforms = [random.Random(row).random() for row in range(len(work.params))]
    return sampler.draw(left, torch.tensor(uniforms, dtype=torch.float64))


def _differing(result: list[int], reference: list[int]) -> float:
    """How many ids differ."""
    return float(sum(a != b for a, b in zip(result, reference, strict=True)))
