"""tinylm-obs · many points → the few that a chart can show, and smoothing.

Arrays of machine numbers, which NumPy reads where they lie: ten runs of 100,000 rows are drawn anew at each turn of a
knob. It does NOT know runs or charts. Next: `store.py`.
"""

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

_BLOCK = 32  # values that are smoothed by one row of a matrix product


def extremes(values: "array[float]", low: int, high: int, buckets: int) -> list[int]:
    """Places of values[low:high] that draw the same picture: each bucket's least and greatest, the first and the last.

    At most 2 · buckets + 2 places, rising; no peak and no trough is lost; values that are not finite are left out. Who
    calls sees to it that the array does not grow meanwhile.
    """
    found = np.frombuffer(values)[low:high] if high > low else np.empty(0)
    finite, count = np.isfinite(found), len(found)
    if count <= 2 * buckets:
        return [low + int(place) for place in np.flatnonzero(finite)]
    least, greatest = np.where(finite, found, np.inf), np.where(finite, found, -np.inf)
    kept = {0, count - 1}
    for start, end in pairwise(count * part // buckets for part in range(buckets + 1)):
        kept.add(start + int(least[start:end].argmin()))
        kept.add(start + int(greatest[start:end].argmax()))
    return [low + place for place in sorted(kept) if finite[place]]


class Smoothing:
    """An exponential moving average of weight 1/window that goes on as its values grow; started at the first value's
    own mean (as Adam corrects its moments: Kingma and Ba 2015, §3). nan and inf stay where they are."""

    def __init__(self, window: int) -> None:
        self._rest = 1.0 / window
        self._average, self._missing = 0.0, 1.0  # the sum so far, and what its weights still lack to 1
        self._out = array("d")

    def of(self, values: "array[float]") -> "array[float]":
        """The averages of `values`, which begin as they did at the last call."""
        fresh = np.frombuffer(values)[len(self._out) :].copy() if values else np.empty(0)
        finite = np.isfinite(fresh)
        numbers = fresh if finite.all() else fresh[finite]
        whole = len(numbers) // _BLOCK * _BLOCK
        numbers[:whole] = self._blocks(numbers[:whole])
        numbers[whole:] = [self._one(value) for value in numbers[whole:].tolist()]
        if numbers is not fresh:
            fresh[finite] = numbers
        self._out.frombytes(fresh.tobytes())
        return self._out

    def _one(self, value: float) -> float:
        self._average += self._rest * (value - self._average)
        self._missing *= 1.0 - self._rest
        return self._average / (1.0 - self._missing)

    def _blocks(self, numbers: "np.ndarray[Any, np.dtype[np.float64]]") -> "np.ndarray[Any, np.dtype[np.float64]]":
        """The same for many at a time: within a block by a triangular matrix of weights that fall by 1 - 1/window a
        step; only what a block leaves to the next is computed one after the other."""
        keep, steps = 1.0 - self._rest, np.arange(_BLOCK)
        weights = self._rest * np.tril(keep ** np.maximum(steps[:, None] - steps, 0))
        within = np.einsum("ij,kj->ik", numbers.reshape(-1, _BLOCK), weights)  # not @: its threads turn in circles
        fade = keep ** (steps + 1)
        last = float(fade[-1])
        before = list(accumulate(within[:, -1].tolist(), lambda mean, own: mean * last + own, initial=self._average))
        within += np.outer(before[:-1], fade)
        means: np.ndarray[Any, np.dtype[np.float64]] = within.ravel()
        start = min(len(means), math.ceil(-40 / math.log(keep)))  # beyond, e^-40 of the weight is missing: nothing
        means[:start] /= 1.0 - self._missing * keep ** np.arange(1.0, start + 1)
        self._average, self._missing = before[-1], self._missing * keep ** len(numbers)
        return means


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
