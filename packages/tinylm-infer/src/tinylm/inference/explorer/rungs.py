"""tinylm.inference: panel 7 of the explorer: the same forward pass in the model's other rungs, and what it costs there.

A rung that is estimated at more than NOW seconds is not run while the reader waits: the page offers it, and
`background.py` runs it on the text's first tokens, as many as fit LATER. Not here: the rungs (tinylm.model).
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinylm.inference._errors import InferenceError
from tinylm.inference.explorer.background import Progress
from tinylm.inference.explorer.reading import Seen
from tinylm.inference.explorer.writing import operations
from tinylm.model import Transformer
from tinylm.model.arrays.transformer import Transformer as Arrays
from tinylm.model.scalar.gpt import GPT, linear
from tinylm.model.tensors.transformer import Transformer as Tensors

NOW, LATER = 1.0, 10.0  # seconds
WARM = 0.1  # a pass that takes less is timed again, and the fastest told
MOST = 5_000_000  # parameters of the scalar rung: each is a Python float
SAYS = {
    "scalar": "Python floats, one multiplication at a time",
    "arrays": "NumPy: a product of matrices is one call",
    "tensors": "torch's tensors, every step by hand",
    "transformer": "torch.nn, the model that the other panels look at",
    "kernels": "Triton, on a GPU",
}


@dataclass(frozen=True)
class Result:
    """Of one forward pass over the text's first `tokens`: the seconds, its multiplications and additions, the furthest
    that a logit is from the other panels', and after how many tokens both hold the same next one likeliest."""

    tokens: int
    seconds: float
    operations: int
    difference: float
    same: int


@dataclass(frozen=True)
class Rung:
    """`why_not`: why this model has no such rung here, else None. `estimate`: seconds for the whole text.

    `result`: None where that is more than NOW; `tokens` are then as many as are run in the background.
    """

    name: str
    says: str
    why_not: str | None
    estimate: float | None
    tokens: int
    result: Result | None


def rungs(seen: Seen) -> list[Rung]:
    """Every rung, low to high; those that take no more than NOW are run."""
    out = []
    for name, says in SAYS.items():
        why_not = _why_not(name, seen)
        if why_not is not None:
            out.append(Rung(name, says, why_not, None, 0, None))
            continue
        count, seconds = len(seen.read.ids), estimate(name, seen)
        quick = seconds <= NOW
        tokens = count if quick else max(1, min(count, int(count * LATER / seconds)))
        out.append(Rung(name, says, None, seconds, tokens, run(name, seen, tokens, Progress()) if quick else None))
    return out


def _why_not(name: str, seen: Seen) -> str | None:
    config = seen.checkpoint.model.config
    if name == "scalar":
        if config.position != "learned":
            return (
                "it is written for GPT-2's shape alone: learned positions, LayerNorm and GELU, which this model lacks"
            )
        if config.parameter_count() >= MOST:
            return f"it is run for models below {MOST:,} parameters; this one has {config.parameter_count():,}"
    if name in ("arrays", "tensors"):
        try:
            config.plain_or_refuse(f"the {name} rung")
        except ValueError as error:
            return str(error)
    return "the explorer computes on the CPU" if name == "kernels" else None


def estimate(name: str, seen: Seen) -> float:
    """Seconds, from the multiplications and additions of the whole text at the speed of one small product, and from
    the numbers that have to be copied into the rung first."""
    model, count = seen.checkpoint.model, len(seen.read.ids)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if name == "scalar":
        matrix = torch.rand(256, 512).tolist()  # more floats than the fastest caches hold, as a model's are
        taken = _seconds(lambda: linear(matrix[0][:256], matrix, matrix[0]))
        return _all(model, count) * taken / (2 * 256 * 512) + 3e-7 * parameters
    weight = model.get_parameter("blocks.0.attention.output.weight").detach()
    rows, size = torch.ones(count, weight.shape[1]), 2 * count * weight.numel()
    if name == "arrays":
        x, w = rows.numpy(), weight.numpy()
        return 2 * _all(model, count) * _seconds(lambda: x @ w.T) / size + 2e-9 * parameters
    copied = 2e-9 * parameters if name == "tensors" else 0.0
    return 2 * _all(model, count) * _seconds(lambda: rows @ weight.T) / size + copied


@torch.inference_mode()
def run(name: str, seen: Seen, tokens: int, progress: Progress) -> Result:
    """One forward pass over the first `tokens`. Raises Cancelled where `progress` was, InferenceError for a rung that
    this model has not."""
    why_not = _why_not(name, seen) if name in SAYS else f"there are {', '.join(SAYS)}"
    if why_not is not None:
        raise InferenceError(f"the rung {name[:40]!r} is not run: {why_not}")
    model, ids = seen.checkpoint.model, seen.read.ids[:tokens]
    forward = {"scalar": _scalar, "arrays": _arrays, "tensors": _tensors, "transformer": _transformer}[name]
    passing = forward(model, ids, progress)
    taken: list[float] = []
    while not taken or (sum(taken) < WARM and len(taken) < 5):  # the first time, memory is new
        start = time.perf_counter()
        logits = torch.as_tensor(passing()).reshape(len(ids), -1)
        taken.append(time.perf_counter() - start)
    wanted: Tensor = seen.taps["logits"][0, : len(ids)]
    same = int((logits.argmax(dim=1) == wanted.argmax(dim=1)).sum())
    return Result(len(ids), min(taken), _all(model, len(ids)), float((logits - wanted).abs().max()), same)


def _all(model: Transformer, count: int) -> int:
    """Multiplications and additions up to the logits of every token."""
    return operations(model, count, count) + 2 * (count - 1) * model.config.vocab_size * model.config.width


def _scalar(model: Transformer, ids: list[int], progress: Progress) -> Callable[[], Any]:
    with tempfile.TemporaryDirectory() as folder:  # GPT-2's own names and places of the weights: those of its file
        model.save(folder)
        gpt = GPT.load(folder)
    size = model.config.vocab_size * model.config.width
    weights = _Watched(gpt.weights, progress)
    head = "transformer.wte.weight" if model.config.tie_embeddings else "lm_head.weight"
    weights[head] = _Counted(gpt.weights[head], progress, 0, size)
    progress.total = len(ids) * (sum(weights.sizes.values()) + size)
    return lambda: GPT(gpt.config, weights).logits(ids)


def _arrays(model: Transformer, ids: list[int], progress: Progress) -> Callable[[], Any]:
    arrays = Arrays(model.config, {name: value.detach().numpy() for name, value in model.named_parameters()})
    arrays.blocks = _counted_blocks(arrays.blocks, model, progress)
    return lambda: arrays.logits(np.array([ids]))


def _tensors(model: Transformer, ids: list[int], progress: Progress) -> Callable[[], Any]:
    tensors = Tensors(model.config, dict(model.named_parameters()))
    tensors.blocks = _counted_blocks(tensors.blocks, model, progress)
    return lambda: tensors.logits(torch.tensor([ids]))


def _transformer(model: Transformer, ids: list[int], progress: Progress) -> Callable[[], Any]:
    progress.total = 1  # one call: cancelled before, or not at all
    return lambda: model(torch.tensor([ids]))


def _counted_blocks(blocks: list[Any], model: Transformer, progress: Progress) -> list[Any]:
    each = sum(parameter.numel() for parameter in model.blocks[0].parameters())
    progress.total = len(blocks) * each + model.config.vocab_size * model.config.width
    return _Counted(blocks, progress, each, 0)


class _Counted(list[Any]):
    """A list that tells how far a loop over it has come: `each` for every item, `whole` at the end."""

    def __init__(self, items: list[Any], progress: Progress, each: int, whole: int) -> None:
        super().__init__(items)
        self._progress, self._each, self._whole = progress, each, whole

    def __iter__(self) -> Iterator[Any]:
        for item in super().__iter__():
            yield item
            self._progress.add(self._each)
        self._progress.add(self._whole)


class _Watched(dict[str, Any]):
    """The scalar rung's weights; it looks a block's matrix up once for each token, and that is counted."""

    def __init__(self, weights: dict[str, Any], progress: Progress) -> None:
        super().__init__(weights)
        self._progress = progress
        matrices = {name: value for name, value in weights.items() if isinstance(value[0], list)}
        self.sizes = {name: len(m) * len(m[0]) for name, m in matrices.items() if name.startswith("transformer.h.")}

    def __getitem__(self, name: str) -> Any:
        self._progress.add(self.sizes.get(name, 0))
        return super().__getitem__(name)


def _seconds(call: Callable[[], object]) -> float:
    """Of one call: the median over a fiftieth of a second, after one that warms it up. Turns that other jobs take fall
    on few of them."""
    call()
    taken: list[float] = []
    while sum(taken) < 0.02 or len(taken) < 3:
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)
