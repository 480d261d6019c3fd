"""tinylm-obs · do two groups of runs differ, or is it the seeds? Welch's t-test.

Means of two groups with variances of their own (Welch 1947), two-sided; the tail of Student's distribution from the
incomplete beta function by its continued fraction (Lentz 1976). It does NOT choose groups (`_summary.py` does).
"""

import math
from collections.abc import Sequence
from statistics import fmean, variance


def welch(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float] | None:
    """(t, degrees of freedom, p) of the difference of two means; None with fewer than two numbers in a group.

    Groups without any spread: p is 1 when their means are equal, else 0.
    """
    if len(first) < 2 or len(second) < 2:
        return None
    a, b = variance(first) / len(first), variance(second) / len(second)
    difference = fmean(first) - fmean(second)
    if a + b == 0:
        return (0.0, math.inf, 1.0) if difference == 0 else (math.copysign(math.inf, difference), math.inf, 0.0)
    t = difference / math.sqrt(a + b)
    freedom = (a + b) ** 2 / (a**2 / (len(first) - 1) + b**2 / (len(second) - 1))
    return t, freedom, _beta(freedom / 2, 0.5, freedom / (freedom + t * t))


def _beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b)."""
    if x in (0.0, 1.0):
        return x
    if x > (a + 1) / (a + b + 2):
        return 1.0 - _beta(b, a, 1.0 - x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    tiny = 1e-300
    c, d = 1.0, 1.0 / ((1.0 - (a + b) * x / (a + 1)) or tiny)
    fraction = d
    for m in range(1, 300):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 / ((1.0 + term * d) or tiny)
            c = (1.0 + term / c) or tiny
            fraction *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return front * fraction
