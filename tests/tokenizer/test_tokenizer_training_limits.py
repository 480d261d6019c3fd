"""Training as a process: bounded memory, Ctrl-C, a full disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tinylm.tokenizer import Tokenizer, TokenizerError, kernels
from tinylm.tokenizer._trainers import counting
from tinylm.tokenizer._trainers.corpus import Chunk
from tinylm.tokenizer.ladder import made_text

linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measures with Linux's /proc")

# Trains on a stream of lines, `size` megabytes of them, and prints by how many MB the peak of its memory grew.
STREAM = """
import sys
from tinylm.tokenizer import Tokenizer
from tinylm.tokenizer.ladder import made_text

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024

text = made_text(1_000_000)
Tokenizer.train([text], vocab_size=2000, threads=2)
before = peak()
Tokenizer.train((text for _ in range(int(sys.argv[1]))), vocab_size=2000, threads=2)
print(peak() - before)
"""


@linux
def test_memory_does_not_grow_with_the_corpus() -> None:
    """60 MB of text in a process that has trained on 1 MB of it before: a few MB for texts on their way."""
    if not kernels.available():
        pytest.skip("60 MB take minutes without the compiled kernel")
    done = subprocess.run([sys.executable, "-c", STREAM, "60"], capture_output=True, text=True, check=True, timeout=120)
    assert float(done.stdout) < 20


@linux
def test_a_file_is_not_held_as_a_whole(tmp_path: Path) -> None:
    if not kernels.available():
        pytest.skip("60 MB take minutes without the compiled kernel")
    path = tmp_path / "big.txt"
    text = made_text(1_000_000).encode()
    with path.open("wb") as file:
        for _ in range(60):
            file.write(text)
    source = STREAM.replace("(text for _ in range(int(sys.argv[1])))", "[sys.argv[1]]")
    done = subprocess.run(
        [sys.executable, "-c", source, str(path)], capture_output=True, text=True, check=True, timeout=120
    )
    assert float(done.stdout) < 20


@pytest.mark.parametrize("same", [False, True])
def test_what_all_threads_hold_together_is_limited(same: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads with pieces of their own are stopped together; those that hold the same need it only once."""
    megabyte = 1 << 20
    made: list[Bytes] = []

    class Bytes:
        """Counts bytes; same: whatever it has seen takes 3 MB, once."""

        def __init__(self) -> None:
            self.seen = 0
            made.append(self)

        @property
        def distinct(self) -> int:
            return min(self.seen, 3 * megabyte) if same else self.seen

        memory = distinct

        def count(self, chunks: Sequence[Chunk]) -> None:
            self.seen += sum(chunk.stop for chunk in chunks)

        def absorb(self, other: Bytes) -> None:
            self.seen += other.seen
            other.seen = 0

    monkeypatch.setattr(counting, "_memory_limit", lambda: 5 * megabyte)
    corpus = ["x y "] * 2 + ["x y " * (8 * megabyte)]
    if same:
        assert counting.count(corpus, Bytes, 4, lambda *_: None).seen == sum(map(len, corpus))
    else:
        with pytest.raises(TokenizerError, match="different pieces"):
            counting.count(corpus, Bytes, 4, lambda *_: None)
        assert sum(one.seen for one in made) <= 14 * megabyte  # the limit, and the batches that were on their way


def train_command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "tinylm.tokenizer", "train", *map(str, arguments)]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for another process")
@pytest.mark.parametrize("after", [0.0, 0.15])
def test_ctrl_c_leaves_nothing_behind(after: float, tmp_path: Path) -> None:
    """The corpus is a pipe that never ends, so training is still counting when the signal comes."""
    pipe, out = tmp_path / "pipe", tmp_path / "out"
    os.mkfifo(pipe)
    process = subprocess.Popen(
        train_command(pipe, "--vocab-size", "1000", "--out", out), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with pipe.open("wb", buffering=0) as file:  # waits until the command reads
        text = made_text(300_000).encode()
        for _ in range(8):
            file.write(text)
        time.sleep(after)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in stderr
    assert stdout == b""
    assert not out.exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no named pipes like these")
def test_ctrl_c_just_before_a_read_that_blocks(tmp_path: Path) -> None:
    """A signal that another thread takes interrupts nothing in the main thread, as one that comes before the read."""
    path, over = tmp_path / "pipe", threading.Event()
    before_the_end: list[bool] = []
    os.mkfifo(path)

    def interrupt() -> None:
        with path.open("wb", buffering=0) as file:
            file.write(b"some text")
            time.sleep(0.3)  # until the main thread has read it and waits for more
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)
            before_the_end.append(over.wait(20))

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            Tokenizer.train([path], vocab_size=1000)
    finally:
        over.set()
        thread.join()
    assert before_the_end == [True]


def test_ctrl_c_while_merging(tmp_path: Path) -> None:
    """What `progress` raises (a signal handler runs there) comes out, and training again gives the same."""

    def stop(what: str, done: int, wanted: int) -> None:
        if what == "merges" and done > 100:
            raise KeyboardInterrupt

    text = made_text(50_000)
    with pytest.raises(KeyboardInterrupt):
        Tokenizer.train([text], vocab_size=1000, progress=stop)
    Tokenizer.train([text], vocab_size=1000).save(tmp_path)
    assert Tokenizer.load(tmp_path).vocab_size == 1000


def test_a_full_disk_leaves_no_half_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer.train(["some text " * 9], vocab_size=260, chat_template="{{ messages }}")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TokenizerError, match="No space left"):
        tokenizer.save(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_the_command_on_a_full_disk(tmp_path: Path) -> None:
    """Every file the command may write is limited to 100 bytes: a disk that is full, as far as it can tell."""
    import resource

    path = tmp_path / "book.txt"
    path.write_text(made_text(5000), encoding="utf-8")

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    done = subprocess.run(
        train_command(path, "--vocab-size", "300", "--out", tmp_path / "out"),
        capture_output=True,
        preexec_fn=limit,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        timeout=60,
    )
    assert done.returncode == 1
    assert b"cannot write the tokenizer" in done.stderr
    assert b"Traceback" not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_what_was_there_stays_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Tokenizer.train(["some text " * 9], vocab_size=260, chat_template="old").save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(TokenizerError, match="No space left"):
        Tokenizer.train(["other text " * 9], vocab_size=262, chat_template="new").save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert json.loads(before["tokenizer.json"])
