"""tinylm-obs · the error boundary of a command: one clear line and an exit code instead of a traceback.

`@bounded()` goes around every command of tinylm-obs and of the two roofs, tinylm-train and tinylm-infer. What a user
can put right ends here; a bug keeps its traceback. It does NOT import a command-line library: SystemExit passes through
all of them. The two other pillars have boundaries of their own: pillars do not import each other. Next: `cli.py`.
"""

import contextlib
import errno
import functools
import os
import sys
import warnings
from collections.abc import Callable
from typing import NoReturn, ParamSpec, TypeVar

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
            warnings.showwarning = lambda message, *rest, **more: print(f"warning: {message}", file=sys.stderr)
            for stream in (sys.stdin, sys.stdout, sys.stderr):  # a terminal that lacks a character shows "?"
                if hasattr(stream, "reconfigure"):
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


def is_ours(error: BaseException) -> bool:
    """Whether a package of TinyLM defines this error's class, or one that it derives from."""
    return any(kind.__module__.startswith("tinylm.") for kind in type(error).__mro__)


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
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
