"""tinylm-obs · which Python function a thread is in, a few hundred times a second, and how much memory there is.

A sampling profiler: the program runs at nearly its own speed, C++ inside a function counts for that function. A sample
weighs the time since the one before, so that a call which keeps the interpreter to itself is not missed. It does NOT
see single calls (`_trace.py` has torch's operations one by one). Next: `profiling.py`.
"""

import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType

_EVERY = 0.005  # seconds
_DEEPEST = 500
_IMPORT = "<frozen importlib"  # a dozen frames for each import that leads to another: one of them is enough
Stack = tuple[str, ...]


class Sampler:
    """Samples the thread that makes it, between start and stop."""

    def __init__(self) -> None:
        self._paused = False
        self.timeline: list[tuple[float, float, Stack]] = []  # (time.time() of its begin, seconds, outermost first)
        self.memory: list[tuple[float, int]] = []  # (seconds since the start, resident bytes); Linux only
        self._thread_id = threading.get_ident()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tinylm-obs profile", daemon=True)
        self._places: dict[int, tuple[CodeType, str]] = {}  # the code is kept, so that its id stays its own
        self._outside = 0  # frames around the one that is profiled

    def start(self, inside: FrameType | None = None) -> None:
        """Begin. inside: the outermost frame that is shown; what called it is left out, with None nothing is."""
        self._outside = len(_frames(inside)[1:])
        self._began = self._last = time.perf_counter()
        self._thread.start()

    def stop(self) -> None:
        """End sampling; what was going on since the last sample is counted."""
        self._stop.set()
        self._thread.join()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within it, what goes on is not the program's own, and is not counted."""
        self._paused = True
        try:
            yield
        finally:
            self._last, self._paused = time.perf_counter(), False

    def functions(self) -> list[tuple[str, float, float]]:
        """(place, seconds in it itself, seconds in it and what it calls), the most first."""
        own: dict[str, float] = defaultdict(float)
        whole: dict[str, float] = defaultdict(float)
        for _, seconds, stack in self.timeline:
            own[stack[-1]] += seconds
            for place in set(stack):
                whole[place] += seconds
        return sorted(((place, own[place], whole[place]) for place in whole), key=lambda row: (-row[1], -row[2]))

    def events(self, base: float) -> list[dict[str, object]]:
        """The samples as events of a Chrome trace, microseconds since `base`: frames that stay are one event."""
        events: list[dict[str, object]] = []
        begun: list[tuple[str, float]] = []
        end = 0.0

        def close(depth: int) -> None:
            while len(begun) > depth:
                name, start = begun.pop()
                span = {"ts": (start - base) * 1e6, "dur": (end - start) * 1e6, "args": {"depth": len(begun)}}
                events.append({"ph": "X", "cat": "python", "name": name, "pid": "Python", "tid": "samples", **span})

        for start, seconds, stack in self.timeline:
            same = 0
            while same < min(len(begun), len(stack)) and begun[same][0] == stack[same]:
                same += 1
            end = min(end, start)  # two clocks: the samples' seconds may reach into the next one
            close(same)
            begun += [(place, start) for place in stack[same:]]
            end = start + seconds
        close(0)
        return events

    def _work(self) -> None:
        while not self._stop.wait(_EVERY):
            self._take()
        self._take()

    def _take(self) -> None:
        now = time.perf_counter()
        frame = sys._current_frames().get(self._thread_id)
        stack = () if self._paused else self._stack(frame)
        if stack:
            seconds, began = now - self._last, time.time() - (now - self._last)
            if self.timeline and self.timeline[-1][2] == stack:
                began, seconds = self.timeline[-1][0], self.timeline.pop()[1] + seconds
            self.timeline.append((began, seconds, stack))
        self._last = now
        if not self.memory or now - self._began - self.memory[-1][0] >= 0.02:
            resident = _resident()
            if resident is not None:
                self.memory.append((now - self._began, resident))

    def _stack(self, frame: FrameType | None) -> Stack:
        frames = _frames(frame)
        inside = frames[: len(frames) - self._outside]
        places = [self._place(one) for one in reversed(inside[-_DEEPEST:])]
        return tuple(place for place, before in zip(places, ["", *places], strict=False) if place != before)

    def _place(self, frame: FrameType) -> str:
        code = frame.f_code
        if id(code) not in self._places:
            file = code.co_filename
            place = f"{Path(file).name}:{code.co_firstlineno} {code.co_qualname}"
            self._places[id(code)] = (code, "import" if file.startswith(_IMPORT) else place)
        return self._places[id(code)][1]


def _frames(frame: FrameType | None) -> list[FrameType]:
    """The frame and those that called it, the outermost last."""
    found = []
    while frame is not None:
        found.append(frame)
        frame = frame.f_back
    return found


def _resident() -> int | None:
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123  (a Path would cost as much as the reading)
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return None
