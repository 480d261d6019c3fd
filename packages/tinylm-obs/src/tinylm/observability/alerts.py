"""tinylm-obs · what deserves a look: NaN, spikes, plateaus, dead units, saturated attention.

`Alerts` is told numbers step by step and reports each finding once, with the layer and the step, until it has gone and
comes again. Plain Python: it does NOT measure (`watching.py` does) and does NOT import torch. Next: `watching.py`.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean, median

from ._facts import counted
from ._values import is_finite

Report = Callable[[str, str, str, int], None]  # kind, layer, message, step
_MAD = 1.4826  # makes the median absolute deviation of a normal distribution its standard deviation


@dataclass(frozen=True)
class Thresholds:
    """When something is an alert.

    window: losses that a new one is held against. spike: it stands so many robust standard deviations (1.4826 · the
    median absolute deviation, at least 2 % of the median) above their median. gradient: a layer's gradient norm is so
    many times the median of its own last ones. plateau: over so many steps the newer half's mean loss is not
    `plateau_gain` (a share) below the older half's. dead: this share of a layer's units is dead. saturated: a head
    gives so much of its attention to one key, in the mean over queries.
    """

    window: int = 50
    spike: float = 8.0
    gradient: float = 10.0
    plateau: int = 1000
    plateau_gain: float = 0.001
    dead: float = 0.5
    saturated: float = 0.99


class Alerts:
    """Watches losses and per-layer figures; calls `report` with each finding."""

    def __init__(self, report: Report, thresholds: Thresholds | None = None) -> None:
        self.thresholds = thresholds or Thresholds()
        self._report = report
        self._losses: deque[float] = deque(maxlen=max(self.thresholds.window, self.thresholds.plateau))
        self._gradients: dict[str, deque[float]] = {}
        self._rising: dict[str, float] = {}  # layer → its gradient norm over its median, at the last look
        self._updates: Mapping[str, float] = {}
        self._standing: set[tuple[str, str, str]] = set()  # kind, layer, what was looked at

    def loss(self, step: int, value: float, layer: str | None = None) -> None:
        """One training loss. `layer`: where it was found to come from, if that is known."""
        limits = self.thresholds
        if not is_finite(value):
            if not any(kind == "nan" for kind, *_ in self._standing):  # a layer that is named already says more
                self._state("nan", layer or self._suspect(), True, f"the loss is {value}", step)
            return
        self._standing = {one for one in self._standing if (one[0], one[2]) != ("nan", "")}
        recent = list(self._losses)[-limits.window :]
        if len(recent) >= min(20, limits.window):
            middle = median(recent)
            spread = max(_MAD * median(abs(one - middle) for one in recent), 0.02 * abs(middle))
            message = f"the loss is {value:.4g}, after {middle:.4g} in the median of the {len(recent)} steps before"
            self._state("spike", layer or self._suspect(), value > middle + limits.spike * spread, message, step)
        self._losses.append(value)
        self._plateau(step)

    def gradients(self, step: int, norms: Mapping[str, float]) -> None:
        """The gradient norm of every layer, in the order of the forward pass. One alert for all that are not finite:
        it names the last, which the backward pass came to first, and counts the others."""
        spoilt = [layer for layer, norm in norms.items() if not is_finite(norm)]
        named = {layer for kind, layer, _ in self._standing if kind == "nan"}
        fresh = [layer for layer in spoilt if layer not in named]
        if fresh:
            others = f", as in {counted(len(fresh) - 1, 'other layer')}" if len(fresh) > 1 else ""
            self._state("nan", fresh[-1], True, f"its gradient norm is {norms[fresh[-1]]}{others}", step, "gradient")
        self._standing |= {("nan", layer, "gradient") for layer in spoilt}
        for layer, norm in norms.items():
            if not is_finite(norm):
                continue
            self._standing.discard(("nan", layer, "gradient"))
            before = self._gradients.setdefault(layer, deque(maxlen=20))
            if len(before) >= 5:
                middle = median(before)
                self._rising[layer] = norm / middle if middle > 0 else 1.0
                message = f"its gradient norm is {norm:.4g}, after {middle:.4g} in the median"
                self._state("spike", layer, middle > 0 and norm > self.thresholds.gradient * middle, message, step)
            before.append(norm)

    def updates(self, ratios: Mapping[str, float]) -> None:
        """The size of every layer's update over that of its weights; a plateau names the layer that moves least."""
        self._updates = ratios

    def activations(self, step: int, largest: Mapping[str, float]) -> None:
        """The largest absolute output of every layer, in the order in which they computed: the first that is not
        finite is where it began."""
        first = next((layer for layer, value in largest.items() if not is_finite(value)), None)
        gone = {("nan", layer, "output") for layer in largest if layer != first}
        self._standing -= gone
        if first is not None:
            self._state("nan", first, True, "its output is not finite", step, "output")

    def dead_units(self, step: int, shares: Mapping[str, float]) -> None:
        """The share of dead units of every layer that has units."""
        for layer, share in shares.items():
            message = f"{share:.0%} of its units are dead: no token of the batch moves them"
            self._state("dead units", layer, share >= self.thresholds.dead, message, step)

    def attention(self, step: int, peaks: Mapping[str, list[float]]) -> None:
        """Per layer the mean largest attention probability of each head."""
        for layer, heads in peaks.items():
            stuck = [head for head, peak in enumerate(heads) if peak >= self.thresholds.saturated]
            named = ", ".join(map(str, stuck[:8])) + (" ..." if len(stuck) > 8 else "")
            message = f"{len(stuck)} of {len(heads)} heads ({named}) give nearly all attention to one key each"
            self._state("saturated attention", layer, bool(stuck), message, step)

    def found(self, kind: str, layer: str, message: str, step: int) -> None:
        """Report what somebody else found, once."""
        self._state(kind, layer, True, message, step)

    def _plateau(self, step: int) -> None:
        length, losses = self.thresholds.plateau, self._losses
        if len(losses) < length or step % max(1, length // 20):  # a look at every twentieth of the stretch will do
            return
        values = list(losses)[-length:]
        older, newer = fmean(values[: length // 2]), fmean(values[length // 2 :])
        slowest = min(self._updates, key=lambda name: self._updates[name], default="loss")
        message = f"the mean loss went from {older:.4g} to {newer:.4g} in {length} steps"
        if self._updates:
            message += f"; this layer moves least, by {self._updates[slowest]:.1e} of its weights a step"
        standing = any(kind == "plateau" for kind, *_ in self._standing)
        flat = newer > older - self.thresholds.plateau_gain * abs(older)
        if flat and not standing:
            self._state("plateau", slowest, True, message, step)
        elif not flat:
            self._standing = {one for one in self._standing if one[0] != "plateau"}

    def _suspect(self) -> str:
        """The layer whose gradient rose most at the last look; "loss" before there were two."""
        return max(self._rising, key=lambda name: self._rising[name], default="loss")

    def _state(self, kind: str, layer: str, present: bool, message: str, step: int, looked_at: str = "") -> None:
        key = (kind, layer, looked_at)
        if not present:
            self._standing.discard(key)
            return
        if not any(one[:2] == key[:2] for one in self._standing):
            self._report(kind, layer, message, step)
        self._standing.add(key)
