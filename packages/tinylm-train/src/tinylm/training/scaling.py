"""Loss scaling for float16, whose smallest number is 6e-8: gradients below it would be zero (Micikevicius et al. 2018).

The loss is multiplied by a scale before the backward pass and the gradients divided by it after. An overflow halves the
scale and the update is not made; so many updates without one double it. Not here: the update (step.py).
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass
class LossScale:
    """A power of two, and how many updates it has lasted: all that a checkpoint keeps of it."""

    scale: float = 65536.0
    good: int = 0
    patience: int = 2000

    def grow(self) -> None:
        """After an update whose gradients were finite."""
        self.good += 1
        if self.good >= self.patience:
            self.scale, self.good = min(self.scale * 2, 2.0**24), 0

    def shrink(self) -> None:
        """After gradients that overflowed."""
        self.scale, self.good = self.scale / 2, 0

    @property
    def exhausted(self) -> bool:
        """Whether gradients overflow unscaled: it was no overflow then, the run has diverged."""
        return self.scale < 1.0
