"""The learning rate over a run, as a factor of its peak: warm up, then one of three ways down to zero.

    wsd      hold, then a straight line over the last `decay_fraction` of the steps (Hu et al. 2024, MiniCPM,
             https://arxiv.org/abs/2404.06395)
    cosine   half a cosine over all steps after the warm-up (Loshchilov and Hutter 2017)
    linear   a straight line over all steps after the warm-up

Until its decay begins, wsd's factor does not depend on the length of the run, so that the first steps can be timed and
the length decided from them (trainer.py); the other two need the length from the start. Not here: the rates themselves
(config.py).
"""

from __future__ import annotations

import math


def learning_rate_factor(
    step: int, total_steps: int | None, warmup_steps: int, decay_fraction: float, schedule: str = "wsd"
) -> float:
    """The factor for `step` (0 is the first). `total_steps` None: not decided yet, and before the decay.

    min(1, (step + 1) / warmup_steps), times with x = steps left / steps of decay, at most 1: x for wsd and linear,
    (1 − cos πx) / 2 for cosine.
    """
    factor = min(1.0, (step + 1) / max(1, warmup_steps))
    if total_steps is None:
        return factor
    decay = decay_fraction * total_steps if schedule == "wsd" else total_steps - min(warmup_steps, total_steps - 1)
    if decay > 0:
        left = min(1.0, max(0.0, (total_steps - step) / decay))
        factor *= (1 - math.cos(math.pi * left)) / 2 if schedule == "cosine" else left
    return factor
