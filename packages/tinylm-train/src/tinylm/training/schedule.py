"""The learning rate over a run, as a factor of its peak: warm up, hold, then go down in a straight line to zero.

"Warm-up, stable, decay" (Hu et al. 2024, MiniCPM, https://arxiv.org/abs/2404.06395). Until the decay begins the factor
does not depend on the length of the run, so that the first steps can be timed and the length decided from them
(calibration in trainer.py). Not here: the learning rates themselves (config.py).
"""

from __future__ import annotations


def learning_rate_factor(step: int, total_steps: int | None, warmup_steps: int, decay_fraction: float) -> float:
    """The factor for `step` (0 is the first). `total_steps` None: not decided yet, and before the decay.

    min(1, (step + 1) / warmup_steps), times min(1, steps left / steps of decay).
    """
    factor = min(1.0, (step + 1) / max(1, warmup_steps))
    if total_steps is not None and decay_fraction > 0:
        factor *= min(1.0, (total_steps - step) / (decay_fraction * total_steps))
    return max(factor, 0.0)
