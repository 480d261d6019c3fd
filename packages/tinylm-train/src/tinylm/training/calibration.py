"""How many steps are so many minutes: measured on the run itself.

Until wsd's decay begins, the learning rate does not depend on the length of the run; so the length is decided when most
of the time before the decay is used up, from the recent pace. Not here: who stores it (trainer.py).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

_MEASURED_SHARE = 0.75  # of the time before the decay; the rest is room for a machine that becomes slower


def steps_of(
    minutes: float, seconds: float, step: int, decay_fraction: float, timings: Sequence[float]
) -> tuple[int, float] | None:
    """The run's length in steps and the seconds of a step it was decided from, or None while it is too early.

    seconds, step: what the run has used and done; timings: of this attempt's steps, of which the first are slower.
    """
    before_decay = 1 - decay_fraction
    left = minutes * 60 - seconds
    if left > (1 - _MEASURED_SHARE * before_decay) * minutes * 60:
        return None
    recent = statistics.mean(timings[len(timings) // 2 :])
    # however slow the machine has become, the decay has not begun: --steps gives the same run
    return max(math.ceil(step / before_decay), step + round(left / recent)), recent
