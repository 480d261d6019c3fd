"""tinylm.inference: text that grows piece by piece and ends at a stop string, wherever the pieces are cut.

`StopBuffer` gives out text only when no later piece can make it part of a stop string, so that nothing shown has to be
taken back. It knows nothing of tokens; `generation.py` feeds it.
"""

from bisect import bisect_left
from collections.abc import Sequence


class StopBuffer:
    """Collects text and cuts it at the first stop string that is complete.

    "First" is the one that ends first, and of those that end together the one that `stop` names first (as in vLLM); so
    the result does not depend on how the text was cut into pieces. `stopped_by` is the stop string that was met, None
    until then.
    """

    def __init__(self, stop: Sequence[str], include_stop: bool = False) -> None:
        self._stop = tuple(dict.fromkeys(stop))
        self._sorted = sorted(self._stop)
        self._longest = max(map(len, self._stop), default=0)
        self._include_stop = include_stop
        self._held = ""  # not given out yet: it may turn out to begin a stop string
        self.stopped_by: str | None = None

    def push(self, piece: str, check: bool = True) -> str:
        """Adds `piece`; returns the text that is now certain. `check=False`: a stop string that ends in it is text."""
        already_checked = len(self._held)
        self._held += piece
        if check and piece:
            match = self._first_match(already_checked)
            if match is not None:
                start, self.stopped_by = match
                text = self._held[: start + len(self.stopped_by) if self._include_stop else start]
                self._held = ""
                return text
        keep = self._possible_stop_length()
        certain, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return certain

    def flush(self) -> str:
        """The text that was held back: call it when no more will come."""
        rest, self._held = self._held, ""
        return rest

    def _first_match(self, already_checked: int) -> tuple[int, str] | None:
        """(start, stop string) of the match that ends first in the new part of the held text."""
        best: tuple[int, str] | None = None
        for stop in self._stop:
            start = self._held.find(stop, max(0, already_checked + 1 - len(stop)))
            if start >= 0 and (best is None or start + len(stop) < best[0]):
                best = (start + len(stop), stop)
        return None if best is None else (best[0] - len(best[1]), best[1])

    def _possible_stop_length(self) -> int:
        """Length of the longest ending of the held text that begins a stop string without completing it."""
        for length in range(min(self._longest - 1, len(self._held)), 0, -1):
            ending = self._held[-length:]
            # In sorted order the strings that begin with `ending` follow directly where `ending` itself would stand.
            at = bisect_left(self._sorted, ending)
            if any(stop.startswith(ending) and len(stop) > length for stop in self._sorted[at : at + 2]):
                return length
        return 0
