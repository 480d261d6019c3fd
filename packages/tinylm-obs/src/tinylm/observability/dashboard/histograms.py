"""tinylm-obs · histograms over time: what was logged, kept small, and laid on common edges for a heat map.

It does NOT read files (`tail.py`) and does NOT draw (`charts.py`).
"""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from .._values import utf8
from .reduce import thinned

_COLUMNS = 160
_BINS = 48
_LARGEST = 1e300  # differences of such numbers are numbers


class Histogram(NamedTuple):
    """counts[i] numbers lay from edges[i] to edges[i + 1]."""

    attempt: int
    counts: "array[float]"
    edges: "array[float]"


class Histograms:
    """The rows of one run's histograms.jsonl: `named`: name → step → histogram."""

    def __init__(self) -> None:
        self.named: dict[str, dict[int, Histogram]] = {}

    def add(self, row: Mapping[str, Any]) -> bool:
        """One row; False when it is no histogram. Of several attempts at a step the highest stays."""
        name, counts, edges = row.get("name"), row.get("counts"), row.get("edges")
        if not isinstance(name, str) or not isinstance(counts, list) or not isinstance(edges, list):
            return False
        try:
            made = Histogram(row["attempt"], array("d", counts), array("d", edges))
        except (TypeError, OverflowError):
            return False
        if len(edges) != len(counts) + 1 or any(low > high for low, high in pairwise(made.edges)):
            return False
        if not all(abs(value) < _LARGEST for value in (*made.counts, *made.edges)):  # nan is not below it, either
            return False
        steps = self.named.setdefault(utf8(name), {})
        if row["step"] not in steps or made.attempt >= steps[row["step"]].attempt:
            steps[row["step"]] = made
        return True


class Ridge(NamedTuple):
    """Histograms over time on common edges. shares[column][bin]: the share of the numbers that lie in the bin, in
    units of the fullest bin of that column (0 to 1)."""

    steps: list[int]
    edges: list[float]
    shares: list[list[float]]


def over_time(histograms: Mapping[int, Histogram], columns: int = _COLUMNS, bins: int = _BINS) -> Ridge:
    """All steps' histograms on the edges that hold them all; where there are more steps than `columns`, some are
    left out, evenly."""
    steps = sorted(histograms)
    steps = [steps[end - 1] for _, end in thinned(steps, columns)]
    chosen = [histograms[step] for step in steps]
    low = min((one.edges[0] for one in chosen), default=0.0)
    high = max((one.edges[-1] for one in chosen), default=0.0)
    if not high - low > 1e-12 * max(abs(low), abs(high), 1e-288):  # too near to each other to divide
        pad = max(0.5, abs(low) / 2)
        low, high = low - pad, high + pad
    edges = [low + (high - low) * place / bins for place in range(bins + 1)]
    return Ridge(steps, edges, [_scaled(rebinned(one.counts, one.edges, edges)) for one in chosen])


def rebinned(counts: Sequence[float], edges: Sequence[float], onto: Sequence[float]) -> list[float]:
    """The counts on other edges that rise evenly, each bin's numbers spread evenly over its width; the sum stays
    where `onto` covers `edges`."""
    width, bins = onto[1] - onto[0], len(onto) - 1
    new = [0.0] * bins
    for count, (low, high) in zip(counts, pairwise(edges), strict=True):
        if not count:
            continue
        first = min(bins - 1, max(0, int((low - onto[0]) / width)))
        last = min(bins - 1, max(0, int((high - onto[0]) / width)))
        if first == last:
            new[first] += count
            continue
        for place in range(first, last + 1):
            start = low if place == first else onto[place]
            end = high if place == last else onto[place + 1]
            new[place] += count * max(0.0, end - start) / (high - low)
    return new


def _scaled(values: Iterable[float]) -> list[float]:
    values = list(values)
    top = max(values) or 1.0
    return [value / top for value in values]
