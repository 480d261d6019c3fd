"""tinylm-obs · measure one call: time, CPU time, peak memory, device time.

What the ladder measures with, and what a benchmark script should use so that figures are comparable: functions take
turns (interleaved), each figure is a median. It does NOT profile (`climb.py` does, for hotspots) and does NOT import
torch: CUDA is timed with events when the process has already started it.
"""

import contextlib
import gc
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


class Sample(NamedTuple):
    """One call, or the median of several.

    seconds: wall time. cpu_seconds: CPU time of the whole process, all threads. peak_bytes: how far resident memory
    (RSS) rose above where it stood before the call (Linux; None elsewhere); memory that the process holds from
    earlier and uses again is not seen. device_seconds: time between two CUDA events around the call (None without
    CUDA).
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int | None
    device_seconds: float | None


def sample(function: Callable[[], T], trim: bool = False) -> tuple[Sample, T]:
    """Call `function` once; returns the figures and its result. Waits for the GPU before and after when CUDA is in
    use. trim: give memory that was freed before back to the system first (glibc), so that the peak is seen in full; the
    call is a little slower for it.
    """
    gc.collect()
    if trim:
        _trim()
    cuda = _cuda()
    if cuda is not None:
        first, last = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
        cuda.synchronize()
        first.record()
    before = _reset_peak()
    cpu, wall = time.process_time(), time.perf_counter()
    result = function()
    device_seconds = None
    if cuda is not None:
        last.record()
        cuda.synchronize()
        device_seconds = first.elapsed_time(last) / 1000  # milliseconds → seconds
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    peak = None if before is None else max(0, _memory("VmHWM") - before)
    return Sample(seconds, cpu_seconds, peak, device_seconds), result


def interleaved(functions: Mapping[str, Callable[[], object]], repeats: int = 5) -> dict[str, Sample]:
    """Call every function `repeats` times, taking turns, so that a busy moment of the machine hits all alike."""
    samples: dict[str, list[Sample]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            samples[name].append(sample(function)[0])
    return {name: middle(taken) for name, taken in samples.items()}


def middle(samples: list[Sample]) -> Sample:
    """The median of each figure; of peak_bytes the maximum (later calls use again what the first one took)."""
    peaks = [one.peak_bytes for one in samples if one.peak_bytes is not None]
    device = [one.device_seconds for one in samples if one.device_seconds is not None]
    return Sample(
        median(one.seconds for one in samples),
        median(one.cpu_seconds for one in samples),
        max(peaks, default=None),
        median(device) if device else None,
    )


def device_memory() -> dict[str, int] | None:
    """Bytes on the current CUDA device: allocated, peak (both by torch in this process), free and total (the device's).

    None when the process has not started CUDA.
    """
    cuda = _cuda()
    if cuda is None:
        return None
    free, total = cuda.mem_get_info()
    return {"allocated": cuda.memory_allocated(), "peak": cuda.max_memory_allocated(), "free": free, "total": total}


def _cuda() -> Any:
    """torch.cuda when this process uses it, else None."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def _trim() -> None:
    import ctypes

    with contextlib.suppress(OSError, AttributeError, TypeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def _reset_peak() -> int | None:
    """Put the kernel's high-water mark of this process back to its resident memory; returns that, None if not Linux."""
    try:
        _CLEAR_REFS.write_text("5")  # proc(5): 5 resets VmHWM
        return _memory("VmRSS")
    except OSError:
        return None


def _memory(field: str) -> int:
    for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 0
