"""Where the commands meet the system: expected errors as one line, a closed pipe, Ctrl-C, and --version.

Repeated in every package on purpose. Not here: the commands (cli.py). Next: cli.py.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from tinylm.model._errors import ModelError

_ADVICE = {
    errno.ENOSPC: "free some space, or choose another place",
    errno.EDQUOT: "free some space, or choose another place",
    errno.EROFS: "choose another place",
    errno.EACCES: "change its permissions, or choose another place",
    errno.EPERM: "change its permissions, or choose another place",
}
_NO_ROOM = ("can't allocate memory", "out of memory", "Storage size calculation overflowed")  # torch, in words only


def print_version() -> None:
    """The package's, torch's and Python's version, and the devices that torch sees."""
    import torch

    try:
        own = version("tinylm-model")
    except PackageNotFoundError:
        own = "(run from source)"
    cuda = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no CUDA device"
    print(f"tinylm-model {own}, torch {torch.__version__}, Python {platform.python_version()}")
    threads = torch.get_num_threads()
    said = "1 thread" if threads == 1 else f"{threads} threads"
    print(f"devices: {cuda}; CPU with {torch.backends.cpu.get_cpu_capability()}, {said}")


@contextlib.contextmanager
def boundary() -> Iterator[None]:
    """Expected errors become one line on stderr and exit code 1; Ctrl-C becomes 130. What stdout's encoding does not
    have, in a file's name for one, is written as \\u and its number."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_stdout()
        raise SystemExit(1) from None
    except (ModelError, OSError, MemoryError) as error:
        print(f"error: {_in_words(error)}", file=sys.stderr)
        _drop_stdout()
        raise SystemExit(1) from None
    except RuntimeError as error:
        if not any(words in str(error) for words in _NO_ROOM):
            raise
        print(f"error: wanted memory for this shape, got none: {str(error).splitlines()[0]}", file=sys.stderr)
        _drop_stdout()
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _in_words(error: Exception) -> str:
    """The message; of the system's refusals the file, the reason without its number, and what to do."""
    if not isinstance(error, OSError) or error.errno is None:
        return str(error) or "out of memory"
    place = "" if error.filename is None else f"{error.filename}: "
    return f"{place}wanted to read or write it, got: {error.strerror}; {_ADVICE.get(error.errno, 'check the path')}"


def _drop_stdout() -> None:
    """What stdout could not take must not be tried again when Python ends."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
