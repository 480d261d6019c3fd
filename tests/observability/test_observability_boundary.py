"""The error boundary of the commands: what ends in one line, with which exit code, and what keeps its traceback."""

import errno
import os
import signal
import subprocess
import sys
import warnings

import pytest

from tinylm.observability import ObservabilityError
from tinylm.observability.boundary import bounded, is_ours, uninterrupted


class Derived(ObservabilityError):
    """An error of somebody else's that is one of ours."""


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ObservabilityError("wanted a, got b"), 1, "error: wanted a, got b\n"),
        (Derived("wanted c, got d"), 1, "error: wanted c, got d\n"),
        (KeyboardInterrupt(), 130, "\n"),
        (KeyboardInterrupt("stopped, and more"), 130, "\nstopped, and more\n"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x.txt"), 1, "error: wanted to use x.txt, got No such file\n"),
        (OSError("could not write y"), 1, "error: could not write y\n"),
        (MemoryError(), 1, "error: the machine is out of memory: take less\n"),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
            1,
            "error: the device is out of memory: take less\n",
        ),
    ],
)
def test_expected_errors_are_one_line_and_an_exit_code(error, code, said, capfd, monkeypatch) -> None:
    monkeypatch.setattr("tinylm.observability.boundary._discard_stdout", lambda: None)  # it is pytest's own here

    @bounded("take less")
    def command() -> None:
        raise error

    with pytest.raises(SystemExit) as stopped:
        command()
    assert stopped.value.code == code
    assert capfd.readouterr().err == said


@pytest.mark.parametrize("error", [ValueError("a bug"), RuntimeError("a bug"), KeyError("a bug")])
def test_a_bug_keeps_its_traceback(error) -> None:
    @bounded()
    def command() -> None:
        raise error

    assert not is_ours(error)
    with pytest.raises(type(error), match="a bug"):
        command()


def test_what_the_command_returns_comes_back_and_a_warning_is_one_line(capsys) -> None:
    @bounded()
    def command(number: int) -> int:
        warnings.warn("mind the step", stacklevel=1)
        return number + 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert command(1) == 2
    assert capsys.readouterr().err == "warning: mind the step\n"


def test_a_full_disk_says_what_to_do() -> None:
    code = "from tinylm.observability.boundary import bounded\n@bounded()\ndef f(): raise OSError({}, 'full', 'x')\nf()"
    line = [sys.executable, "-c", code.format(errno.ENOSPC)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: wanted to write x, got full; free some space and run the same command again\n"


def test_a_reader_that_has_left_is_no_traceback() -> None:
    code = "from tinylm.observability.boundary import bounded\n@bounded()\ndef f(): print('x' * 10**6)\nf()"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell that closes streams")
@pytest.mark.parametrize("body", ["print('x')", "open('nowhere')"])
def test_closed_streams_are_no_traceback(body: str) -> None:
    code = f"from tinylm.observability.boundary import bounded\n@bounded()\ndef f(): {body}\nf()"
    closed = ["sh", "-c", 'exec "$0" -c "$1" <&- >&-', sys.executable, code]
    done = subprocess.run(closed, stderr=subprocess.PIPE, text=True, check=False)
    told = "" if body.startswith("print") else "error: wanted to use nowhere, got No such file or directory\n"
    assert (done.returncode, done.stderr) == (bool(told), told)


def test_an_interrupt_waits_for_the_end_of_the_block() -> None:
    done = []

    def block() -> None:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append("all of it")

    with pytest.raises(KeyboardInterrupt):
        block()
    assert done == ["all of it"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
