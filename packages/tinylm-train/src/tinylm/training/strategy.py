"""Where the work runs: one process, or one of many. The trainer asks this object and nothing else about processes.

`SingleProcess` is the whole interface, and its answers for a world of one; parallel/ answers the same questions with
torch.distributed. What every process must ask together, in the same order, says so. Not here: the loop (trainer.py),
one update (step.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

import torch
from torch import Tensor

from tinylm.model import Transformer, TransformerConfig
from tinylm.training.spread import local

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

LossFunction = Callable[[Tensor, Tensor, str], Tensor]  # ids (B, T), targets (B, T), reduction -> loss
T = TypeVar("T")


class SingleProcess:
    """One process, one device."""

    rank = 0
    world_size = 1  # processes
    data_rank = 0  # which share of each batch this process computes, of
    data_ranks = 1
    tensor_ranks = 1  # processes that share each product
    sharders: ProcessGroup | None = None  # who write a checkpoint's state together; None: the writer has all of it

    @property
    def is_writer(self) -> bool:
        """Whether this process writes checkpoints and the run: exactly one does."""
        return self.rank == 0

    @property
    def description(self) -> str:
        """In words, for the terminal; "" for one process."""
        return ""

    def device(self, device: torch.device) -> torch.device:
        """Which of the devices of this kind is this process's."""
        return device

    def check(self, shape: TransformerConfig) -> None:
        """Raises TrainingError for a model that cannot be divided so."""

    def divide(self, model: Transformer) -> None:
        """Leave in `model` this process's part of each parameter. All together; before there are optimisers."""

    def wrap(self, model: Transformer) -> LossFunction:
        """What computes the training loss: here the model's own. The model's parameters stay the ones to update."""
        return model.loss

    def accumulating(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Around the backward pass of a part of a batch: processes need to agree on gradients after the last only."""
        return contextlib.nullcontext()

    def sum(self, number: float) -> float:
        """The sum of the numbers of those that share a batch. All together."""
        return number

    def any(self, flag: bool) -> bool:
        """Whether it is so on any process. All together."""
        return flag

    def gather(self, value: T) -> list[T]:
        """The plain value of every process, in their order. All together."""
        return [value]

    def first(self, work: Callable[[], T]) -> T:
        """What `work` returns to the writer, which alone does it; its TrainingError is everyone's. All together."""
        return work()

    def gradient_norm(self, parameters: Sequence[Tensor]) -> Tensor:
        """√Σ g² over all numbers of all gradients, wherever they are. All together."""
        gradients = [local(p.grad) for p in parameters if p.grad is not None]
        if all(gradient.dtype.itemsize > 2 for gradient in gradients):
            return torch.nn.utils.get_total_norm(gradients)
        # In 16 bits torch rounds each norm once, at its end; over thousands of rows those roundings cancel. One norm of
        # the whole in float32 would copy it first.
        norms = [torch.linalg.vector_norm(gradient, dim=-1).flatten().float() for gradient in gradients]
        norm: Tensor = torch.linalg.vector_norm(torch.cat(norms))
        return norm

    def in_words(self, error: BaseException) -> BaseException:
        """Of an error that says that another process has gone, one that says what to do; any other as it is."""
        return error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """The work is over."""
