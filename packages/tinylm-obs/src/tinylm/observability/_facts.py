"""tinylm-obs · what a result needs to be believed: machine, versions, command, commit.

It collects only what says how fast or how repeatable something is. It does NOT record host or user names, directories
or environment variables, and does NOT import torch or wake a GPU: what is already loaded is asked. Next: `_run.py`.
"""

import os
import platform
import sys
import time
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """This machine: cpu (model), cores (that this process may use), memory_bytes, system, architecture, python, and
    gpus (name and memory_bytes each, those of a torch that has already started CUDA; otherwise the key is absent)."""
    facts: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": _cores(),
        "memory_bytes": _memory_bytes(),
        "system": platform.system(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        facts["gpus"] = [{"name": device.name, "memory_bytes": device.total_memory} for device in devices]
    return facts


def versions() -> dict[str, str]:
    """Versions of Python, and of numpy and torch when they are already imported."""
    found = {"python": platform.python_version()}
    for name in ("numpy", "torch"):
        version = getattr(sys.modules.get(name), "__version__", None)
        if version is not None:
            found[name] = str(version)
    return found


def counted(number: object, noun: str) -> str:
    """ "1 core", "2 cores"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def command() -> list[str]:
    """The command line, the program without its directory; `python -m PACKAGE` as that."""
    if not sys.argv or not sys.argv[0]:
        return []
    program, spec = Path(sys.argv[0]).name, getattr(sys.modules.get("__main__"), "__spec__", None)
    start = ["python", "-m", spec.parent] if program == "__main__.py" and spec is not None else [program]
    return [*start, *sys.argv[1:]]


def now() -> str:
    """The time, UTC, ISO 8601, whole seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())


def git_commit() -> str | None:
    """The commit checked out around the working directory, or None (no git, no repository)."""
    import subprocess  # costs milliseconds to import, needed once per run

    try:
        answer = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only; respects taskset and cpuset
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("model name", "Model", "Hardware")):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
