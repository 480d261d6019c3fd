"""tinylm-obs · the machine while a run goes on: CPU, memory, disk and GPUs, sampled in a thread.

    with obs.init(directory="runs/a") as run, obs.sample_system(run, every=5):
        ...

One row of system.jsonl per sample. Needs the extra [system]: psutil, and nvidia-ml-py for NVIDIA GPUs. It does NOT
slow the training loop: the thread sleeps, and a sample takes well under a millisecond of CPU. It does NOT time
operations (`profiling.py`). Next: `_readers.read_system`.
"""

import contextlib
import importlib
import threading
import time
from collections.abc import Callable
from typing import Any, Self

from ._errors import ObservabilityError
from ._run import Run

_MEGA = 1e6


class SystemSampler:
    """Samples until closed; made by `sample_system`, best used in a `with`."""

    def __init__(self, run: Run, every: float) -> None:
        if every <= 0:
            raise ObservabilityError(f"wanted a number of seconds above 0 between samples, got {every}")
        self._run, self._every = run, every
        self._reader = _Reader()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tinylm-obs system", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take a last sample and end the thread; a second call does nothing."""
        self._stop.set()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _work(self) -> None:
        self._reader.start()
        while True:
            last = self._stop.wait(self._every)
            try:
                self._run.system(self._reader.read())
            except ObservabilityError:  # the run was finished first, or the disk is full: the loop's own log says so
                return
            if last:
                return


def sample_system(run: Run, every: float = 10.0) -> SystemSampler:
    """Start sampling the machine into `run` every so many seconds, in a thread of its own.

    Percentages are of all cores of the machine ("cpu (%)") and of one core ("process cpu (%)", above 100 with
    threads); memory in MB, disk in MB/s. Per NVIDIA GPU: "gpu 0 (%)", "gpu 0 memory (MB)", "gpu 0 power (W)",
    "gpu 0 temperature (°C)". Raises ObservabilityError without psutil.
    """
    return SystemSampler(run, every)


class _Reader:
    """Asks psutil and NVML; keeps the last counters for rates."""

    def __init__(self) -> None:
        try:
            self._psutil: Any = importlib.import_module("psutil")
        except ImportError:
            raise ObservabilityError(
                'wanted psutil to sample the machine, got no such package: pip install "tinylm-obs[system]"'
            ) from None
        self._process = self._psutil.Process()
        self._disk = self._counters()
        self._gpus = _Gpus()

    def start(self) -> None:
        """Start the clocks of the percentages: psutil keeps one per thread, so in the thread that samples."""
        self._process.cpu_percent()
        self._psutil.cpu_percent()

    def read(self) -> dict[str, float]:
        memory = self._psutil.virtual_memory()
        values = {
            "cpu (%)": self._psutil.cpu_percent(),
            "memory (MB)": (memory.total - memory.available) / _MEGA,
            "memory (%)": memory.percent,
            "process cpu (%)": self._process.cpu_percent(),
            "process memory (MB)": self._process.memory_info().rss / _MEGA,
            "threads": float(self._process.num_threads()),
        }
        before, self._disk = self._disk, self._counters()
        if before is not None and self._disk is not None:
            seconds = max(1e-3, self._disk[0] - before[0])
            values["disk read (MB/s)"] = (self._disk[1] - before[1]) / seconds / _MEGA
            values["disk written (MB/s)"] = (self._disk[2] - before[2]) / seconds / _MEGA
        return values | self._gpus.read()

    def _counters(self) -> tuple[float, int, int] | None:
        with contextlib.suppress(OSError, RuntimeError, NotImplementedError):  # some containers show no disks
            counters = self._psutil.disk_io_counters()
            if counters is not None:
                return time.monotonic(), counters.read_bytes, counters.write_bytes
        return None


class _Gpus:
    """NVIDIA GPUs through NVML; none where there is no driver or no nvidia-ml-py."""

    def __init__(self) -> None:
        self._handles: list[Any] = []
        try:
            self._nvml: Any = importlib.import_module("pynvml")
            self._nvml.nvmlInit()
            count = self._nvml.nvmlDeviceGetCount()
            self._handles = [self._nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
        except Exception:  # ImportError, or NVML's own errors where there is no driver
            self._handles = []

    def read(self) -> dict[str, float]:
        values: dict[str, float] = {}
        for index, handle in enumerate(self._handles):
            asks: dict[str, Callable[[Any], float]] = {
                "(%)": lambda h: self._nvml.nvmlDeviceGetUtilizationRates(h).gpu,
                "memory (MB)": lambda h: self._nvml.nvmlDeviceGetMemoryInfo(h).used / _MEGA,
                "power (W)": lambda h: self._nvml.nvmlDeviceGetPowerUsage(h) / 1000,
                "temperature (°C)": lambda h: self._nvml.nvmlDeviceGetTemperature(h, 0),
            }
            for name, ask in asks.items():
                with contextlib.suppress(self._nvml.NVMLError):  # not every card answers everything
                    values[f"gpu {index} {name}"] = float(ask(handle))
        return values
