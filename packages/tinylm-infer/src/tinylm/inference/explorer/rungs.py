"""tinylm.inference: panel 7 of the explorer: the same forward pass in the model's other rungs, and what it costs there.

arrays (NumPy) and tensors (torch by hand) of models below 5 M parameters; the scalar rung is not run here yet.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tinylm.inference._errors import InferenceError
from tinylm.inference.explorer.reading import Seen
from tinylm.model.arrays.transformer import Transformer as Arrays
from tinylm.model.tensors.transformer import Transformer as Tensors

MOST = 5_000_000  # parameters


@dataclass(frozen=True)
class Rung:
    """`seconds` of one forward pass; `difference`: the furthest that a logit is from the transformer rung's."""

    name: str
    seconds: float
    difference: float


@torch.inference_mode()
def rungs(seen: Seen) -> list[Rung]:
    """One forward pass in each rung, low to high. InferenceError for a large model, ModelError for a shape that the
    lower rungs do not have."""
    model = seen.checkpoint.model
    count = model.config.parameter_count()
    if count >= MOST:
        raise InferenceError(f"the lower rungs are run for models below {MOST:,} parameters; this one has {count:,}")
    weights = {name: parameter.numpy() for name, parameter in model.named_parameters()}
    ids = torch.tensor([seen.read.ids])
    arrays, tensors = Arrays(model.config, weights), Tensors(model.config, weights)
    ways: dict[str, Callable[[], Any]] = {
        "arrays": lambda: arrays.logits(ids.numpy()),
        "tensors": lambda: tensors.logits(ids),
        "transformer": lambda: model(ids),
    }
    return [_timed(name, run, seen.taps["logits"]) for name, run in ways.items()]


def _timed(name: str, run: Callable[[], Any], wanted: torch.Tensor) -> Rung:
    start = time.perf_counter()
    logits = run()
    seconds = time.perf_counter() - start
    return Rung(name, seconds, float((torch.as_tensor(logits) - wanted).abs().max()))
