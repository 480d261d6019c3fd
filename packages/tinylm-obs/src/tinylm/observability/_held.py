"""tinylm-obs · CUDA scalars without an extra synchronisation.

`.item()` on a CUDA tensor makes the CPU wait for everything queued on the GPU. Instead the value is copied to pinned
host memory behind the work that computes it, and the row is held until an event says that the copy is done; the next
call to log, or finish, writes it. It does NOT import torch: a CUDA tensor at hand means that torch is loaded. Rows
without CUDA tensors never come here.
"""

import sys
from typing import Any

from ._errors import ObservabilityError


class HeldRow:
    """One row whose CUDA scalars are still on their way to the host."""

    def __init__(self, row: dict[str, Any]) -> None:
        """Queue the copies on the current stream of each tensor's device. Raises for tensors of more than one
        element.
        """
        torch = sys.modules["torch"]
        self._row = row
        self._events = []
        for name, value in row.items():
            if not is_cuda(value):
                continue
            if value.numel() != 1:
                raise ObservabilityError(
                    f"wanted one number for {name!r}, got a tensor of shape {tuple(value.shape)}; log its mean"
                )
            host = torch.empty((), dtype=value.dtype, pin_memory=True)
            event = torch.cuda.Event()
            with torch.cuda.device(value.device):
                host.copy_(value.detach().reshape(()), non_blocking=True)
                event.record()
            row[name] = host
            self._events.append(event)

    def ready(self) -> bool:
        """Whether every copy has arrived; never waits."""
        return all(event.query() for event in self._events)

    def take(self) -> dict[str, Any]:
        """The row with its values on the host; waits for the copies that are still on their way."""
        for event in self._events:
            event.synchronize()
        return self._row


def is_cuda(value: object) -> bool:
    """Whether this is a tensor on a CUDA device, asked without importing torch."""
    return getattr(value, "is_cuda", False) is True
