"""tinylm-obs · the machine's limits, measured: bandwidth by footprint, FLOP/s by type.

The roofline model (Williams, Waterman and Patterson 2009): work of F operations over B bytes takes at least
max(F / peak, B / bandwidth) seconds; that over the time it took is the fraction of the roofline. Both limits are
measured here with torch, on as many threads as torch uses, and kept in a file of the user's cache
($XDG_CACHE_HOME/tinylm, by default ~/.cache/tinylm) together with the machine's facts: other facts, another file. It
does NOT know what an operation costs (`_cost.py`). Next: `_trace.py`, which places a profile's operations.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ._atomic import write_text
from ._errors import ObservabilityError
from ._facts import machine, now
from ._readers import FORMAT, check_format

_FOOTPRINTS = [2**power for power in (15, 17, 19, 21, 23, 25, 27, 29)]  # bytes read and written by one copy
_SIDE = {"float64": 768, "float32": 1024, "bfloat16": 2048, "float16": 2048, "int8": 2048}
_SECONDS = 0.4  # of measuring per figure; the fastest call counts


class Roofline(NamedTuple):
    """bandwidth: footprint in bytes → bytes/s (read and written). peak: type → FLOP/s (int8: operations/s)."""

    device: str
    threads: int
    bandwidth: dict[int, float]
    peak: dict[str, float]
    facts: dict[str, Any]

    def bandwidth_at(self, footprint: float) -> float:
        """Bytes/s at the smallest measured footprint that holds so many bytes; beyond them, the largest's."""
        fitting = [size for size in self.bandwidth if size >= footprint]
        return self.bandwidth[min(fitting) if fitting else max(self.bandwidth)]

    def seconds(self, flops: float, moved: float, kind: str = "float32") -> tuple[float, str]:
        """(least time for `flops` operations over `moved` bytes, which limit it is: "compute" or "memory"). A type
        without a measured peak takes float32's."""
        compute = flops / self.peak.get(kind, self.peak["float32"])
        memory = moved / self.bandwidth_at(moved)
        return (compute, "compute") if compute > memory else (memory, "memory")


def measured(device: str = "cpu", again: bool = False) -> Roofline:
    """The roofline of this machine: from the cache, or measured now (some seconds). Raises ObservabilityError without
    torch, or without the device."""
    torch = _torch()
    if device != "cpu" and not torch.cuda.is_available():
        raise ObservabilityError(f"wanted the device 'cpu' or a CUDA device, got {device!r}, and torch finds no GPU")
    facts = machine() | {"torch": str(torch.__version__), "device": device, "threads": torch.get_num_threads()}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    path = _cache() / f"roofline-{device.replace(':', '')}-{digest}.json"
    if path.is_file() and not again:
        return _read(path)
    record = {
        "format": FORMAT,
        "facts": facts,
        "date": now(),
        "bandwidth": {str(size): speed for size, speed in _bandwidths(torch, device).items()},
        "peak": _peaks(torch, device),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ObservabilityError(
            f"wanted a cache at {path.parent}, got {error.strerror}; set XDG_CACHE_HOME"
        ) from error
    write_text(path, json.dumps(record, indent=1) + "\n")
    return _read(path)


def peak(kind: str = "float32", device: str = "cpu") -> float:
    """The measured FLOP/s of a type ("float32", "bfloat16", ...) on a device: what MFU is a fraction of."""
    figures = measured(device).peak
    if kind not in figures:
        raise ObservabilityError(f"wanted a type of {', '.join(figures)} on {device}, got {kind!r}")
    return figures[kind]


def _read(path: Path) -> Roofline:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        check_format(record, path)
        bandwidth = {int(size): float(speed) for size, speed in record["bandwidth"].items()}
        peaks = {str(kind): float(speed) for kind, speed in record["peak"].items()}
        facts = record["facts"]
        return Roofline(facts["device"], facts["threads"], bandwidth, peaks, facts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ObservabilityError(
            f"wanted a roofline in {path}, got {error}; remove the file to measure anew"
        ) from error


def _bandwidths(torch: Any, device: str) -> dict[int, float]:
    """By footprint. What a larger footprint reached, a smaller one can: on a busy machine some are not left alone for
    one whole call."""
    found = {size: _bandwidth(torch, device, size) for size in _FOOTPRINTS}
    return {size: max(speed for other, speed in found.items() if other >= size) for size in found}


def _bandwidth(torch: Any, device: str, footprint: int) -> float:
    source = torch.ones(footprint // 8, device=device)  # float32, and as much again for the copy
    target = torch.empty_like(source)
    return float(2 * source.numel() * 4) / _fastest(lambda: target.copy_(source), device)


def _peaks(torch: Any, device: str) -> dict[str, float]:
    figures = {}
    for kind, side in _SIDE.items():
        if device != "cpu":
            side *= 4
        elif kind == "float16":
            continue  # few CPUs have it; torch emulates it slowly
        try:
            a = torch.ones(side, side, device=device).to(getattr(torch, kind))
            b = a.t().contiguous().t() if kind == "int8" else a  # the layout that GPUs want
            product = torch._int_mm if kind == "int8" else torch.mm
            figures[kind] = 2.0 * side**3 / _fastest(partial(product, a, b), device)
        except RuntimeError:
            continue  # this device does not multiply this type
    return figures


def _fastest(function: Callable[[], object], device: str) -> float:
    """Seconds of the fastest call; several calls at a time where one is too short for the clock."""
    wait = _torch().cuda.synchronize if device != "cpu" else lambda: None
    function()
    wait()
    calls, best, until = 1, float("inf"), time.perf_counter() + _SECONDS
    turns = 0
    while time.perf_counter() < until or turns < 5:
        turns += 1
        started = time.perf_counter()
        for _ in range(calls):
            function()
        wait()
        taken = time.perf_counter() - started
        best = min(best, taken / calls)
        if taken < 0.002:
            calls *= 2
    return best


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinylm"


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise ObservabilityError(
            "wanted torch to measure the roofline, got no such package: pip install torch"
        ) from None
    return torch
