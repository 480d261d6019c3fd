"""tinylm-obs · run a Python command within this process, so that it can be profiled.

A file, `python file`, `python -m module`, or a command that an installed package brings (tinylm-train). It does NOT
start other programs: their inside cannot be seen from here. Next: `profiling.py`.
"""

import importlib.metadata
import runpy
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from ._errors import ObservabilityError
from .profiling import Profile

_EVERY = 0.05  # seconds between two looks at the clock


def profile_command(command: Sequence[str], directory: Path, after: float, seconds: float, roofline: bool) -> int:
    """Run `command` in a profile and return its exit code. Python functions are sampled all the time; torch's
    operations are recorded for `seconds`, from `after` seconds on and once torch has been imported."""
    run = _resolved(command)
    profile = Profile(directory, " ".join([Path(command[0]).name, *command[1:]]), operations=False, roofline=roofline)
    with profile:
        before = _window(profile, after, seconds)
        try:
            return _exit_code(run)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def _window(profile: Profile, after: float, seconds: float) -> Callable[..., object] | int | None:
    """Switch the recording on and off by a timer: its handler runs in the main thread, as torch's profiler wants."""
    began = time.perf_counter()
    recording: list[float] = []

    def look(number: int, frame: FrameType | None) -> None:
        now = time.perf_counter()
        done = False
        if not recording and now - began >= after and "torch" in sys.modules and not _importing(frame):
            profile.start_operations()
            recording.append(time.perf_counter())
        elif recording and now - recording[0] >= seconds:
            profile.stop_operations()
            done = True
        if not done:  # one alarm at a time: starting takes longer than the time between two
            signal.setitimer(signal.ITIMER_REAL, _EVERY)

    before = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, _EVERY)
    return before


def _importing(frame: FrameType | None) -> bool:
    """Whether the program is within an import: another one from here could find modules that are half there."""
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


def _exit_code(run: Callable[[], object]) -> int:
    try:
        run()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _resolved(command: Sequence[str]) -> Callable[[], object]:
    """A function that runs the command. Raises ObservabilityError for what is no Python program."""
    words = list(command[1:] if Path(command[0]).name in ("python", "python3") and len(command) > 1 else command)
    if words[0] == "-m" and len(words) > 1:
        sys.argv = words[1:]
        return lambda: runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    sys.argv = words
    if Path(words[0]).is_file() and Path(words[0]).suffix == ".py":
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        return lambda: runpy.run_path(words[0], run_name="__main__")
    for entry in importlib.metadata.entry_points(group="console_scripts", name=Path(words[0]).name):
        function: Callable[[], object] = entry.load()
        return function
    raise ObservabilityError(
        f"wanted a Python program (a .py file, `python -m MODULE`, or an installed command such as tinylm-train), "
        f"got {' '.join(command)!r}"
    )
