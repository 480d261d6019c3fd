"""tinylm-obs · profile any part of a program: where the time and the memory go, as files that open offline.

    with obs.profile("runs/a/profile/step"):
        loss = model.loss(ids, targets); loss.backward()

Python functions are sampled, always; when the program uses torch, its profiler records every operation on CPU and GPU,
with spans for modules. At the end: trace.json (Chrome's format: chrome://tracing, Perfetto), profile.json (the
figures) and profile.html (one page, no other file, no network). It does NOT change what is computed, and does NOT find
out why. Next: `_trace.py` (what is read from the trace), `_page.py` (the page).
"""

import json
import os
import sys
import tempfile
import time
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

from . import _trace
from ._atomic import write_text
from ._errors import ObservabilityError
from ._facts import machine, now, versions
from ._modules import ModuleSpans
from ._readers import FORMAT
from ._sampler import Sampler
from .roofline import Roofline, measured

_FUNCTIONS = 60  # of them are listed


class Profile:
    """A profile being taken; made by `profile`. `results` is what profile.json holds, after the `with`."""

    def __init__(self, directory: Path, title: str, operations: bool, roofline: bool) -> None:
        self.directory, self.title = directory.absolute(), title  # a program may change where it stands
        self.results: dict[str, Any] = {}
        self._operations, self._roofline = operations, roofline
        self._torch: Any = None
        self._recording = False
        self._modules = ModuleSpans()
        self._sampler = Sampler()

    def __enter__(self) -> Self:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ObservabilityError(
                f"wanted a directory for the profile at {self.directory}, got {error.strerror}"
            ) from error
        if self._operations:
            self.start_operations()
        self._cpu, self._wall = time.process_time(), time.perf_counter()
        self._sampler.start(sys._getframe(1))
        return self

    def __exit__(self, *error: object) -> None:
        self._sampler.stop()
        seconds, cpu_seconds = time.perf_counter() - self._wall, time.process_time() - self._cpu
        self.stop_operations()
        trace = self._recorded()
        limit = self._limit() if self._roofline and self._torch is not None else None
        self.results = {
            "format": FORMAT,
            "title": self.title,
            "machine": machine(),
            "versions": versions(),
            "date": now(),
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            **_figures(trace["traceEvents"], self._sampler, limit),
        }
        from ._page import page  # only now: it reads its template

        write_text(self.directory / "trace.json", json.dumps(trace))
        write_text(self.directory / "profile.json", json.dumps(self.results, indent=1) + "\n")
        write_text(self.directory / "profile.html", page(self.results, trace["traceEvents"]))

    def _limit(self) -> Roofline | None:
        try:
            return measured(_device())
        except ObservabilityError as error:  # a cache that cannot be written or read: the profile is worth more
            warnings.warn(f"the profile is without a roofline: {error}", stacklevel=3)
            return None

    def start_operations(self) -> None:
        """Begin to record torch's operations (the command does it some time after the start); once only."""
        if self._torch is not None:
            return
        with self._sampler.paused():  # it takes seconds that are not the program's
            import torch.profiler as profiler
            from torch import cuda

            activities = [profiler.ProfilerActivity.CPU]
            if cuda.is_available():
                activities.append(profiler.ProfilerActivity.CUDA)
            recorder = profiler.profile(activities=activities, record_shapes=True, profile_memory=True)
            recorder.start()
            self._torch = recorder
            self._modules.start()
            self._recording = True

    def stop_operations(self) -> None:
        """Stop recording torch's operations; a second call does nothing."""
        if self._torch is not None and self._recording:
            with self._sampler.paused():
                self._recording = False
                self._modules.stop()
                self._torch.stop()

    def _recorded(self) -> dict[str, Any]:
        """torch's trace and the Python samples in one, without names of hosts and directories."""
        trace: dict[str, Any] = {"traceEvents": [], "displayTimeUnit": "ms", "baseTimeNanoseconds": 0}
        if self._torch is not None:
            descriptor, path = tempfile.mkstemp(suffix=".json", dir=self.directory)
            os.close(descriptor)
            try:
                self._torch.export_chrome_trace(path)
                trace |= json.loads(Path(path).read_text(encoding="utf-8", errors="replace"))
            finally:
                Path(path).unlink()
        for key in ("host_name", "traceName", "trace_id"):
            trace.pop(key, None)
        base = trace["baseTimeNanoseconds"] / 1e9
        if not base and self._sampler.timeline:
            base = self._sampler.timeline[0][0]
        trace["traceEvents"] += self._sampler.events(base)
        return trace


def profile(
    directory: str | os.PathLike[str],
    title: str = "profile",
    operations: bool | None = None,
    roofline: bool = True,
) -> Profile:
    """A context manager that profiles what runs within it and writes trace.json, profile.json and profile.html.

    operations: record torch's; by default when the program has imported torch. It costs some microseconds per
    operation; Python alone about a hundredth of the time. roofline: place the operations on this machine's measured
    limits (measured once, a few seconds; then from the cache). Raises ObservabilityError when the directory cannot be
    written.
    """
    wanted = "torch" in sys.modules if operations is None else operations
    return Profile(Path(directory), title, wanted, roofline)


def _device() -> str:
    """Where the program computes: "cuda" once it has used it."""
    return "cuda" if sys.modules["torch"].cuda.is_initialized() else "cpu"


def _figures(events: list[dict[str, Any]], sampler: Sampler, limit: Roofline | None) -> dict[str, Any]:
    spans, device = _trace.spans(events), _trace.device_seconds(events)
    memory = _trace.memory(events)
    if sampler.memory:
        memory["process (resident)"] = sampler.memory
    return {
        "operations": _trace.operations(spans, device, limit),
        "modules": _trace.modules(spans, device) if spans else [],
        "functions": [
            {"function": place, "own": own, "with callees": whole}
            for place, own, whole in sampler.functions()[:_FUNCTIONS]
        ],
        "memory": {name: _thinned(points) for name, points in memory.items()},
        "roofline": limit and {"bandwidth": limit.bandwidth, "peak": limit.peak, "threads": limit.threads},
    }


def _thinned(points: list[tuple[float, int]], count: int = 1000) -> list[tuple[float, int]]:
    """At most `count` points of a curve, the highest of each stretch, so that the peak stays."""
    if len(points) <= count:
        return points
    cuts = [len(points) * index // count for index in range(count + 1)]
    return [max(points[low:high], key=lambda point: point[1]) for low, high in pairwise(cuts)]
