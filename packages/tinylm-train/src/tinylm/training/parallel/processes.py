"""The processes of a run, joined: who they are, and how they agree.

Tensors go over NCCL between GPUs and over gloo between CPUs. A process that dies is noticed by the others at their next
exchange: gloo's connection breaks at once, torchrun ends what is left after 30 s, and nobody waits for an answer longer
than `process_timeout`. Not here: what is exchanged in training (replicated.py, divided.py).
"""

from __future__ import annotations

import contextlib
import datetime
import socket
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist

from tinylm.model import pick_device
from tinylm.training._errors import TrainingError
from tinylm.training.launched import from_environment
from tinylm.training.strategy import SingleProcess

if TYPE_CHECKING:
    from tinylm.training.config import TrainConfig

T = TypeVar("T")
# Kept to the end of the process. DDP's reducer, were it the last to let go of gloo's group, would wait for gloo's
# threads while it holds Python's lock, and one of them may be waiting for that (seen with torch 2.13).
_groups: list[Any] = []
_GONE = ("closed by peer", "reset by peer", "broken pipe", "timed out", "timeout", "nccl", "gloo", "socket")


class Processes(SingleProcess):
    """What the ways to share the work have in common. Raises TrainingError when not all processes come."""

    def __init__(self, config: TrainConfig) -> None:
        self.timeout = config.process_timeout
        self.local_rank = from_environment("LOCAL_RANK", 0)
        kind = self.device(pick_device(config.device))
        if kind.type not in ("cpu", "cuda"):
            raise TrainingError(f"wanted cpu or cuda for a run of many processes, got {kind.type}: give --device")
        if kind.type == "cuda":
            torch.cuda.set_device(kind)
        try:
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if kind.type == "cuda" else "gloo",
                timeout=datetime.timedelta(seconds=self.timeout),
            )
        except (ValueError, RuntimeError) as error:
            raise TrainingError(
                f"wanted {from_environment('WORLD_SIZE', 1)} processes to meet, got: {_line(error)}. Start every host "
                "with the same torchrun command, its own --node-rank and the same --master-addr and --master-port"
            ) from None
        _groups.append(dist.group.WORLD)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.data_rank, self.data_ranks = self.rank, self.world_size
        self.data: dist.ProcessGroup | None = None  # those that share a batch; None: all
        self.kind = kind

    def device(self, device: torch.device) -> torch.device:
        """cuda: the one whose number is this process's on its host."""
        if device.type != "cuda":
            return device
        if self.local_rank >= torch.cuda.device_count():
            raise TrainingError(
                f"wanted a GPU for each process of a host, got {torch.cuda.device_count()} for process "
                f"{self.local_rank}: start with --nproc-per-node {torch.cuda.device_count()}"
            )
        return torch.device("cuda", self.local_rank)

    def sum(self, number: float) -> float:
        """On the device, as the work is: over gloo a sum among a thousand hosts would take its time."""
        total = torch.tensor(number, dtype=torch.float64, device=self.kind)
        dist.all_reduce(total, group=self.data)
        return float(total)

    def any(self, flag: bool) -> bool:
        """As `sum`, over all."""
        found = torch.tensor(flag, dtype=torch.int32, device=self.kind)
        dist.all_reduce(found)
        return bool(found)

    def gather(self, value: T) -> list[T]:
        """Also what is not a number."""
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def first(self, work: Callable[[], T]) -> T:
        """The writer's result, or its error in words."""
        said: list[Any] = [None, None]
        if self.is_writer:
            try:
                said[0] = work()
            except (TrainingError, OSError) as error:
                said[1] = str(error)
                dist.broadcast_object_list(said, src=0)
                raise
        dist.broadcast_object_list(said, src=0)  # no more than the writer has
        if said[1] is not None and not self.is_writer:
            raise TrainingError(said[1])
        result: T = said[0]
        return result

    def in_words(self, error: BaseException) -> BaseException:
        """torch has no one class for it."""
        text = str(error).lower()
        if not isinstance(error, dist.DistError) and not any(word in text for word in _GONE):
            return error
        return TrainingError(
            f"process {self.rank} on {socket.gethostname()}: another process of this run has ended, or has not "
            f"answered for {self.timeout:g} s ({_line(error)}); if it said why, that stands with its own lines. The "
            "same command again goes on from the last checkpoint"
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave, also where the others are gone."""
        if dist.is_initialized():
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()


def _line(error: BaseException) -> str:
    """The first line of an error, without the place in torch's source that it begins with."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text.rsplit("] ", 1)[-1].strip()[:160]
