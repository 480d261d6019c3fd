"""tinylm-obs · rows of metrics → curves, row by row as they arrive, equal to what `read_metrics` gives.

Columns of machine numbers: a run of 100,000 rows with ten scalars is 16 MB. Of a step that several attempts logged the
highest attempt's rows stay. It does NOT read files (`tail.py`). Next: `reduce.py` makes curves small.
"""

from array import array
from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

from .._values import number, utf8
from .reduce import Smoothing

_OWN = ("step", "time", "attempt")


class Curve:
    """One scalar over steps: `steps` rises, `values` may hold nan and inf."""

    def __init__(self) -> None:
        self.steps = array("q")
        self.values = array("d")
        self.changed = 0  # how often something else than the end was changed
        self._smoothed: tuple[int, int, Smoothing] | None = None  # window, changes, values

    def put(self, step: int, value: float) -> None:
        """Append, or replace what stood at this step."""
        if not self.steps or step > self.steps[-1]:
            self.steps.append(step)
            self.values.append(value)
            return
        place = bisect_left(self.steps, step)
        self.changed += 1
        if self.steps[place] == step:
            self.values[place] = value
        else:
            self.steps.insert(place, step)
            self.values.insert(place, value)

    def drop(self, step: int) -> None:
        """Forget what stood at this step, if anything did."""
        place = bisect_left(self.steps, step)
        if place < len(self.steps) and self.steps[place] == step:
            self.changed += 1
            del self.steps[place], self.values[place]

    def smoothed(self, window: int) -> "array[float]":
        """The values, smoothed exponentially over about `window` of them; kept, and continued as the curve grows."""
        if window <= 1:
            return self.values
        if self._smoothed is None or self._smoothed[:2] != (window, self.changed):
            self._smoothed = (window, self.changed, Smoothing(window))
        return self._smoothed[2].of(self.values)


class Metrics:
    """The rows of one run's metrics.jsonl. `texts`: name → step → text. `curves`: name → scalar over steps."""

    def __init__(self) -> None:
        self.steps = array("q")
        self.times = array("d")
        self.attempts = array("q")
        self.curves: dict[str, Curve] = {}
        self.texts: dict[str, dict[int, str]] = {}
        self.changed = 0  # how often something else than the end was changed
        self._axes: dict[str, tuple[int, array[float]]] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        """One row as `_readers.parse_row` gives it."""
        step, attempt, time = row["step"], row["attempt"], row.get("time")
        time = float(time) if isinstance(time, int | float) else 0.0
        if self._is_old(step, attempt, time):
            return
        curves = self.curves
        for name, value in row.items():
            kind = type(value)
            if kind is float or ((kind is int or kind is bool) and name not in _OWN):
                if name == "time":
                    continue
                curve = curves.get(name)
                if curve is None:
                    curve = curves.setdefault(utf8(name), Curve())
                curve.put(step, value if kind is float else number(value))
            elif kind is str:
                self.texts.setdefault(utf8(name), {})[step] = utf8(value)

    def _is_old(self, step: int, attempt: int, time: float) -> bool:
        """Take note of the row's step; whether a higher attempt has already logged it."""
        if not self.steps or step > self.steps[-1]:
            place = len(self.steps)
        else:
            self.changed += 1
            place = bisect_left(self.steps, step)
            if self.steps[place] == step:
                if attempt < self.attempts[place]:
                    return True
                if attempt > self.attempts[place]:
                    self._forget(step)
                    self.attempts[place] = attempt
                self.times[place] = time
                return False
        self.steps.insert(place, step)
        self.times.insert(place, time)
        self.attempts.insert(place, attempt)
        return False

    def _forget(self, step: int) -> None:
        for curve in self.curves.values():
            curve.drop(step)
        for texts in self.texts.values():
            texts.pop(step, None)

    def axis(self, kind: str) -> "array[float] | array[int]":
        """What stands for every step of `steps` on the axis "step", "time" (seconds of training: the time between
        attempts does not count) or "tokens" (the sum of "tokens"); never falling."""
        if kind == "step":
            return self.steps
        known = self._axes.get(kind)
        if known is None or known[0] != self.changed:
            known = self._axes[kind] = (self.changed, array("d"))
        line = known[1]
        (self._continue_time if kind == "time" else self._continue_tokens)(line)
        return line

    def axis_of(self, curve: Curve, kind: str) -> "array[float] | array[int]":
        """The x of one scalar's values, which not every step may have."""
        axis = self.axis(kind)
        if len(curve.steps) == len(self.steps):
            return axis
        if kind == "step":
            return curve.steps
        place = dict(zip(self.steps, range(len(self.steps)), strict=True))
        return array("d", [axis[place[step]] for step in curve.steps])

    def _continue_time(self, line: "array[float]") -> None:
        for index in range(len(line), len(self.steps)):
            same = index > 0 and self.attempts[index] == self.attempts[index - 1]
            passed = max(0.0, self.times[index] - self.times[index - 1]) if same else 0.0
            line.append((line[-1] if line else 0.0) + passed)

    def _continue_tokens(self, line: "array[float]") -> None:
        tokens = self.curves.get("tokens") or Curve()
        place = bisect_left(tokens.steps, self.steps[len(line)]) if len(line) < len(self.steps) else 0
        for index in range(len(line), len(self.steps)):
            more = 0.0
            if place < len(tokens.steps) and tokens.steps[place] == self.steps[index]:
                more, place = tokens.values[place], place + 1
            line.append((line[-1] if line else 0.0) + (more if more > 0 else 0.0))
