"""SwiGLU's inner part, for the MLP and the experts. Not here: the products around it. Next: kernels/swiglu.py."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from tinylm.model import kernels


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """SiLU(gate) ⊙ up (Shazeer 2020, eq. 5), both of one shape."""
    if kernels.chosen("swiglu", gate):
        from tinylm.model.kernels.swiglu import swiglu

        return swiglu(gate, up)
    return F.silu(gate) * up
