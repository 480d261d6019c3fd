"""Which device a model computes on: training and inference ask here, so that "auto" means the same in both.

Not here: the precision (tinylm.training.device), moving a model (`Transformer.to`, `Transformer.load`).
"""

from __future__ import annotations

import torch

from tinylm.model._errors import ModelError


def pick_device(name: str) -> torch.device:
    """ "auto": cuda, else mps, else cpu; otherwise torch's name of a device that is here, such as "cuda:1".

    Raises ModelError for one that is not.
    """
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    present = [kind for kind, there in here.items() if there]
    if name == "auto":
        return torch.device(present[0])
    if name.partition(":")[0] not in present:
        raise ModelError(
            f"wanted device {name!r}, got a machine with {', '.join(present)}: choose one of these, or auto"
        )
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # cuda:9 where there are fewer, cuda:first
        reason = str(error).partition("\n")[0]
        raise ModelError(f"wanted a device such as {present[0]} or {present[0]}:0, got {name!r}: {reason}") from None
    return torch.device(name)
