"""tinylm-obs · many points → the few that a chart can show, and smoothing.

Plain Python over arrays: `min` and `max` of a slice run in C. It does NOT know runs or charts. Next: `store.py`.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate, islice, pairwise

from .._values import is_finite


def extremes(values: "array[float]", low: int, high: int, buckets: int, finite: bool = False) -> list[int]:
    """Places of values[low:high] that draw the same picture: each bucket's least and greatest, the first and the last.

    At most 2 · buckets + 2 places, rising; no peak and no trough is lost; values that are not finite are left out.
    finite: there are none such, which need not be looked for.
    """
    count = high - low
    if count <= 2 * buckets:
        return [place for place in range(low, high) if is_finite(values[place])]
    kept: set[int] = set()
    for start, end in pairwise(low + count * part // buckets for part in range(buckets + 1)):
        kept.update(_least_and_greatest(values, start, end, finite))
    kept.update(place for place in (low, high - 1) if is_finite(values[place]))
    return sorted(kept)


def _least_and_greatest(values: "array[float]", start: int, end: int, finite: bool) -> tuple[int, ...]:
    part = values[start:end]
    if finite or is_finite(sum(part)):  # nan or inf in a sum stay
        return start + part.index(min(part)), start + part.index(max(part))
    places = [place for place in range(start, end) if is_finite(values[place])]
    if not places:
        return ()
    return min(places, key=values.__getitem__), max(places, key=values.__getitem__)


class Smoothing:
    """An exponential moving average of weight 1/window that goes on as its values grow; started at the first value's
    own mean (as Adam corrects its moments: Kingma and Ba 2015, §3). nan and inf stay where they are."""

    def __init__(self, window: int) -> None:
        self._rest = 1.0 / window
        self._average, self._weight = 0.0, 0.0
        self._out = array("d")

    def of(self, values: "array[float]") -> "array[float]":
        """The averages of `values`, which begin as they did at the last call."""
        fresh = values[len(self._out) :]
        finite = is_finite(sum(fresh))
        for place, value in enumerate(fresh):
            if finite and self._weight == 1.0:
                self._go_on(fresh[place:])
                break
            self._out.append(self._corrected(value))
        return self._out

    def _corrected(self, value: float) -> float:
        if not is_finite(value):
            return value
        self._average += self._rest * (value - self._average)
        self._weight += self._rest * (1.0 - self._weight)
        if self._weight > 1.0 - 1e-15:
            self._weight = 1.0
        return self._average / self._weight

    def _go_on(self, values: "array[float]") -> None:
        """Far from the start nothing is left to correct, and the loop can run in C."""
        rest = self._rest
        averages = accumulate(values, lambda average, value: average + rest * (value - average), initial=self._average)
        self._out.extend(islice(averages, 1, None))
        self._average = self._out[-1]


def within(axis: Sequence[float], low: float | None, high: float | None) -> tuple[int, int]:
    """The places of a rising axis from `low` to `high`, and one more on each side, so that lines leave the picture."""
    first = 0 if low is None else max(0, bisect_left(axis, low) - 1)
    last = len(axis) if high is None else min(len(axis), bisect_right(axis, high) + 1)
    return first, max(first, last)


def thinned(places: Sequence[int], count: int) -> list[tuple[int, int]]:
    """So many or fewer stretches [start, end) of equal length that cover all places."""
    count = min(count, len(places))
    cuts = [len(places) * part // count for part in range(count + 1)] if count else [0]
    return list(pairwise(cuts))
