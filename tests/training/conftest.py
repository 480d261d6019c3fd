"""Training tests: made text, one tokenizer and one data set for all, tiny runs, and runs in a process of their own.

A run in a process of its own comes from a server that has imported torch once (multiprocessing's "forkserver"), so that
a test can start and kill many of them.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import random
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pytest

torch = pytest.importorskip("torch")

from tinylm.tokenizer import Tokenizer  # noqa: E402  # after importorskip
from tinylm.training import TrainConfig, prepare  # noqa: E402

torch.set_num_threads(1)  # the models are tiny: threads would only wait for each other
os.environ["OMP_NUM_THREADS"] = "1"  # the same for the processes that tests start

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
TINY = {
    "depth": 1,
    "width": 64,
    "context": 16,
    "batch_size": 2,
    "steps": 12,
    "threads": 1,
    "dtype": "float32",
    "device": "cpu",
    "validate_every": 5,
    "checkpoint_every": 5,
    "keep_best": False,
    "compile": "never",
}


@dataclass(frozen=True)
class House:
    """Where the text, the tokenizer and the data set of these tests stand."""

    text: Path
    tokenizer: Path
    data: Path


def made_text(seed: int, words: int) -> str:
    """Lines of invented words, the same for the same seed; a model can learn how they go on."""
    draw = random.Random(seed)
    lexicon = ["".join(draw.choices(["ba", "ne", "ti", "lo", "mur", "ín", "the"], k=2)) for _ in range(40)]
    return "\n".join(" ".join(draw.choices(lexicon, k=8)).capitalize() + "." for _ in range(words // 8)) + "\n"


def make_house(folder: Path, seed: int = 0) -> House:
    house = House(folder / "play.txt", folder / "tokenizer", folder / "data")
    text = made_text(seed, 2000)
    house.text.write_bytes(text.encode())
    tokenizer = Tokenizer.train([text], vocab_size=320, special_tokens=["<|endoftext|>"], chat_template=TEMPLATE)
    tokenizer.save(house.tokenizer)
    prepare([house.text], house.tokenizer, house.data, "tail:0.1")
    return house


@pytest.fixture(scope="session")
def text() -> Callable[[int, int], str]:
    """text(seed, words) -> made text."""
    return made_text


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    """Made once and shared: tests that change a file change it in a copy."""
    return make_house(tmp_path_factory.mktemp("house"))


@pytest.fixture(scope="session")
def other_house(tmp_path_factory: pytest.TempPathFactory) -> House:
    """The same from another text: another tokenizer, another data set."""
    return make_house(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(scope="session")
def tiny(house: House) -> Callable[..., TrainConfig]:
    """tiny(out, **options) -> options of a run that takes about a second."""

    def make(out: Path, **options: object) -> TrainConfig:
        return TrainConfig(**{"data": str(house.data), **TINY, **options, "out": str(out)})

    return make


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """run("prepare", ...) -> (exit code, stdout, stderr), in this process: importing torch anew is slow."""
    from tinylm.training.cli import main

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tinylm-train", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setenv("NO_COLOR", "1")
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return call


_CHILD = """
import os, resource, sys
os.environ.update({environment!r})
log = os.open({log!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.dup2(log, 1), os.dup2(log, 2)
if {limit!r}:
    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit!r}, {limit!r}))
os.environ["COLUMNS"] = "200"
sys.argv = {argv!r}
from tinylm.training.cli import main
{before}
main()
"""


@pytest.fixture(scope="session")
def start() -> Callable[..., multiprocessing.Process]:
    """start(config, log=FILE, limit=None, before="", environment={}) -> a running `tinylm-train pretrain`.

    limit: bytes that a file may have; before: code that the process runs first.
    """
    context = multiprocessing.get_context("forkserver")
    # All that a run imports sooner or later: each process would do it again (two CPU-s).
    parallel = ["tinylm.training.parallel.divided", "tinylm.training.parallel.replicated"]
    context.set_forkserver_preload(["tinylm.training.trainer", "tinylm.training.cli", *parallel, "torch._inductor"])

    def begin(
        config: TrainConfig,
        log: Path,
        limit: int | None = None,
        before: str = "",
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> multiprocessing.Process:
        argv = ["tinylm-train", "pretrain"]
        for name, value in config.description().items():
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                argv.append(f"--{flag}" if value else f"--no-{flag}")
            elif value is not None:
                argv += [f"--{flag}", str(value)]
        code = _CHILD.format(log=str(log), limit=limit, argv=argv, before=before, environment=dict(environment))
        process = context.Process(target=exec, args=(code, {}))  # `exec` can be named in another process; a test cannot
        process.start()
        return process

    return begin


class Processes(list[multiprocessing.Process]):
    """A run's processes; `logs`: what each says."""

    logs: list[Path]

    def wait(self) -> list[int | None]:
        """Until all have ended; their exit codes. None: it did not end."""
        for process in self:
            process.join(240)
        return [process.exitcode for process in self]

    @property
    def said(self) -> str:
        return "\n".join(f"[{rank}] {log.read_text()}" for rank, log in enumerate(self.logs) if log.exists())


@pytest.fixture(scope="session")
def together(start: Callable[..., multiprocessing.Process]) -> Iterator[Callable[..., Processes]]:
    """together(config, logs=FOLDER, number=2, before="") -> a running `pretrain` of so many processes, as torchrun
    starts them."""
    begun: list[multiprocessing.Process] = []

    def begin(config: TrainConfig, logs: Path, number: int = 2, before: str = "") -> Processes:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        logs.mkdir(parents=True, exist_ok=True)
        run = Processes()
        run.logs = [logs / f"{rank}.txt" for rank in range(number)]
        for rank, log in enumerate(run.logs):
            environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(number)}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            if sys.platform == "linux":
                environment["GLOO_SOCKET_IFNAME"] = "lo"  # else gloo looks for the host by its name
            run.append(start(config, log, before=before, environment=environment))
        begun.extend(run)
        return run

    yield begin
    for process in begun:
        process.kill()
