"""What the integration tests share: made text, the commands as a user runs them, and one small trained house.

`command` runs an installed command (or `python -m tinylm.<phase>` in a plain checkout) without a terminal and returns
what it printed. `house` is made once: a tokenizer, a data set and a checkpoint of a one-layer model, by the commands.
"""

import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

MODULES = {
    "tinylm-tokenizer": "tinylm.tokenizer",
    "tinylm-model": "tinylm.model",
    "tinylm-train": "tinylm.training",
    "tinylm-infer": "tinylm.inference",
    "tinylm-obs": "tinylm.observability",
}
Command = Callable[..., subprocess.CompletedProcess[str]]


def run_command(name: str, *arguments: object, file_size_limit: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run one of the five commands; `file_size_limit` bytes per file stands in for a disk that is full."""
    script = Path(sys.executable).with_name(name)
    start = [str(script)] if script.exists() else [sys.executable, "-m", MODULES[name]]

    def limit() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size_limit, file_size_limit))

    environment = os.environ | {"NO_COLOR": "1", "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    if file_size_limit is not None:
        environment["PYTHONDONTWRITEBYTECODE"] = "1"  # no halves of Python's own files
    return subprocess.run(
        [*start, *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        stdin=subprocess.DEVNULL,
        env=environment,
        timeout=240,
        check=False,
        preexec_fn=limit if file_size_limit is not None else None,
    )


@dataclass(frozen=True)
class House:
    """Where one small run of the five commands left its files."""

    text: Path
    tokenizer: Path
    tokens: Path
    model: Path
    options: str = "--depth 1 --steps 12 --context 128 --batch-size 2 --dtype float32 --device cpu"  # of pretrain


def made_text(seed: int, words: int) -> str:
    """A play of nobody's: speakers and lines of invented words, the same for the same seed."""
    draw = random.Random(seed)
    syllables = ["ba", "ne", "ti", "lo", "mur", "sha", "ven", "or", "kel", "ín", "the", "and"]
    lexicon = ["".join(draw.choices(syllables, k=draw.randint(1, 3))) for _ in range(300)]
    lines = []
    while words > 0:
        lines.append(f"\n{draw.choice(['ANNA', 'BORIS', 'THE KING'])}.")
        for _ in range(draw.randint(1, 5)):
            chosen = draw.choices(lexicon, k=draw.randint(4, 9))
            words -= len(chosen)
            lines.append(" ".join(chosen).capitalize() + draw.choice([",", ".", "!", "?"]))
    return "\n".join(lines) + "\n"


def make_house(folder: Path, seed: int = 0) -> House:
    """Text, tokenizer, data set and checkpoint in `folder`, by the commands, with one layer and a few steps."""
    house = House(folder / "play.txt", folder / "tokenizer", folder / "tokens", folder / "model")
    house.text.write_text(made_text(seed, 6000), encoding="utf-8")
    commands = (
        f"tinylm-tokenizer train {house.text} --vocab-size 400 --head 0.9 --out {house.tokenizer}",
        f"tinylm-train prepare {house.text} --tokenizer {house.tokenizer} --validation tail:0.1 --out {house.tokens}",
        f"tinylm-train pretrain --data {house.tokens} --out {house.model} {house.options}",
    )
    for command in commands:
        done = run_command(*command.split())
        assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return house


def fingerprints(folder: Path) -> dict[str, str]:
    """Every file below a folder and the sha256 of its bytes: equal before and after means nothing was touched."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="session")
def command() -> Command:
    return run_command


@pytest.fixture(scope="session")
def snapshot() -> Callable[[Path], dict[str, str]]:
    return fingerprints


@pytest.fixture(scope="session")
def text() -> Callable[[int, int], str]:
    return made_text


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    """Made once and shared: tests that change a file change it in a copy."""
    return make_house(tmp_path_factory.mktemp("house"))


@pytest.fixture(scope="session")
def other_house(tmp_path_factory: pytest.TempPathFactory) -> House:
    """The same from another text: its tokenizer, data set and checkpoint do not belong to those of `house`."""
    return make_house(tmp_path_factory.mktemp("other"), seed=1)
