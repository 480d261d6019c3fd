"""tinylm-obs · the error boundary of a command: one clear line and an exit code instead of a traceback.

`@bounded()` goes around every command of tinylm-obs and of the two roofs, tinylm-train and tinylm-infer. What a user
can put right ends here; a bug keeps its traceback. It does NOT import a command-line library: SystemExit passes through
all of them. The two other pillars have boundaries of their own: pillars do not import each other. Next: `cli.py`.
"""

import contextlib
import errno
import functools
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn, ParamSpec, TypeVar

from ._values import visible

P = ParamSpec("P")
R = TypeVar("R")

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "unable to allocate")


def bounded(out_of_memory: str = "try something smaller") -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a command. `out_of_memory`: what to do when the device has too little.

    Exit codes: 1 for an error of TinyLM's own classes, an OSError, or too little memory, with `error: ...` on stderr;
    130 for Ctrl-C, with what the interrupt says, if anything; 1 in silence when the reader of a pipe (`head` for one)
    has left. Warnings become one line.
    """

    def around(command: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(command)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            warnings.showwarning = lambda message, *rest, **more: _say(f"warning: {message}")
            for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
                if getattr(sys, name) is None:  # closed by whoever started the command
                    setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115  # until the process ends
                stream = getattr(sys, name)
                if hasattr(stream, "reconfigure"):  # a terminal that lacks a character shows "?"
                    stream.reconfigure(errors="replace")
            try:
                result = command(*args, **kwargs)
                sys.stdout.flush()  # a full disk shows here, not in a traceback at exit
                return result
            except KeyboardInterrupt as stopped:
                print("", *stopped.args, sep="\n", file=sys.stderr)
                raise SystemExit(130) from None
            except BrokenPipeError:
                _discard_stdout()
                raise SystemExit(1) from None
            except OSError as error:
                _discard_stdout()
                _fail(_in_words(error))
            except MemoryError:
                _fail(f"the machine is out of memory: {out_of_memory}")
            except RuntimeError as error:
                if not any(words in str(error).lower() for words in _OUT_OF_MEMORY):
                    raise
                _fail(f"the device is out of memory: {out_of_memory}")
            except ValueError as error:
                if not is_ours(error):
                    raise
                _fail(str(error))

        return wrapper

    return around


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C waits for the end of the block: it may be lost in an import of torch, or end the process there in C++."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # ignored, or somebody else's
        yield
        return
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if came:
        raise KeyboardInterrupt


def is_ours(error: BaseException) -> bool:
    """Whether a package of TinyLM defines this error's class, or one that it derives from."""
    return any(kind.__module__.startswith("tinylm.") for kind in type(error).__mro__)


def _say(message: str) -> None:
    sys.stderr.write(visible(message, keep="\n") + "\n")  # it may name a file or a run; processes share a terminal


def _fail(message: str) -> NoReturn:
    _say(f"error: {message}")
    raise SystemExit(1) from None


def _in_words(error: OSError) -> str:
    if error.strerror is None:  # it was raised with a message of its own
        return str(error)
    what, got = error.filename or "the output", error.strerror
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"wanted to write {what}, got {got}; free some space and run the same command again"
    return f"wanted to use {what}, got {got}"


def _discard_stdout() -> None:
    """What is still buffered cannot be written: keep Python from trying again at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
