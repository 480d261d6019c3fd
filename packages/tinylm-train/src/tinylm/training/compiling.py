"""torch.compile for the training loss, where it pays: the time it saves over the run against the time it takes.

Compiling takes from half a minute to minutes the first time and some seconds from the cache, which lies in the user's
cache folder (TORCHINDUCTOR_CACHE_DIR, when set). A note beside the cache keeps what was measured, so that a later run
of the same shape knows. Whatever goes wrong, the run goes on without, and says so in one line.
Not here: what is compiled (model.loss, step.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tinylm.training.strategy import LossFunction

_EXPECTED_SAVING = 0.25  # of a step, before it was ever measured; docs/log.md
_EXPECTED_SECONDS = 60.0
_WORTH = 0.05  # of a step; less is within what a measurement is worth


def cache_folder() -> Path:
    """Where compiled code is kept from run to run."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or Path(home) / "tinylm" / "inductor")


def compiled(
    loss: LossFunction,
    key: dict[str, Any],
    device: torch.device,
    choice: str,
    run_seconds: float,
    seconds: Callable[[LossFunction], float],
    say: Callable[[str], None],
) -> LossFunction | None:
    """`loss` compiled, or None to go without.

    key: what the code depends on (shape, batch, precision, ...); choice: "auto", "always" or "never"; run_seconds: what
    the run is expected to take without; seconds: what a batch's gradient takes with a loss function.
    """
    if choice == "never":
        return None
    note = cache_folder() / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]}.json"
    if choice == "auto" and not _may_pay(note, run_seconds):
        return None
    if device.type == "cpu" and not any(
        shutil.which(name) for name in (os.environ.get("CXX", "g++"), "c++", "clang++")
    ):
        say("torch.compile needs a C++ compiler (g++) on a CPU, and none was found: going on without")
        return None
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(note.parent))
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        candidate: LossFunction = torch.compile(loss, dynamic=False)
        started = time.perf_counter()
        seconds(candidate)
        took = time.perf_counter() - started
        before, after = seconds(loss), seconds(candidate)
        note.write_text(json.dumps({"warm_seconds": took, "saving": 1 - after / before}) + "\n", "utf-8")
    except Exception as error:  # torch.compile fails in many ways, none of which is the run's
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].strip()[:120]
        say(f"torch.compile failed ({reason}): going on without")
        return None
    if choice == "auto" and after > (1 - _WORTH) * before:
        say(f"torch.compile does not pay here ({after:.3f} s a gradient, {before:.3f} s without): going on without")
        return None
    say(f"compiled in {took:.0f} s: {after:.3f} s a gradient, {before:.3f} s without")
    return candidate


def _may_pay(note: Path, run_seconds: float) -> bool:
    """Whether what compiling saves is more than what it takes, by what was measured before or else is usual."""
    saving, takes = _EXPECTED_SAVING, _EXPECTED_SECONDS
    try:
        measured = json.loads(note.read_text("utf-8"))
        saving, takes = float(measured["saving"]), float(measured["warm_seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return saving > _WORTH and saving * run_seconds > 2 * takes
