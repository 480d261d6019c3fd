"""Shared fixtures: made text, one tokenizer a rung, real vocabularies and texts, and a way to hide the kernel."""

import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import settings

from tinylm.tokenizer import Tokenizer, kernels
from tinylm.tokenizer._engines.byte_level import ByteLevelEngine
from tinylm.tokenizer._engines.vocabulary import from_training
from tinylm.tokenizer.ladder import made_text
from tinylm.tokenizer.patterns import TRAINABLE

settings.register_profile("any machine", deadline=None)  # no example has to be done by a certain time
settings.load_profile("any machine")

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

MIXED = (
    "The quick brown fox doesn't jump; it's 12345 degrees.\r\n\r\n  def f(x):\n\treturn x ** 2  # comment\n"
    "Überraschung über Größe — naïve café, ¿qué tal?  Привет, мир! Γειά σου Κόσμε 日本語のテキスト 你好，世界。 한국어 "
    "नमस्ते दुनिया مرحبا بالعالم שלום 👩‍👩‍👧 🎉🎉 e\u0301 ﬁ Ⅷ ½ \u00a0\u2003 \u200b\x00\x1c\x85"
    " 'S 'ſ DON'T we'Ve     \n\n \t end   "
)


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    return [made_text(30_000), MIXED * 5]


@pytest.fixture(scope="session")
def mixed() -> str:
    return MIXED


@pytest.fixture(scope="session")
def trained(corpus: list[str]) -> dict[str, Tokenizer]:
    """A tokenizer of 700 ids for each pattern that is used most."""
    return {
        pattern: Tokenizer.train(corpus, vocab_size=700, pattern=pattern, special_tokens=SPECIALS)
        for pattern in ("gpt2", "cl100k", "o200k", "llama3", "qwen2")
    }


@pytest.fixture(scope="session")
def crossing() -> dict[str, Tokenizer]:
    """A tokenizer for each pattern whose merges were learned from text that was not cut into pieces.

    Its merges cross every kind of boundary, so its ids tell whether text is cut in exactly the right places.
    """
    parts = [
        " ",
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "\u00a0",
        "'",
        "'s",
        "'LL",
        "x",
        "Ab",
        "é",
        "12",
        "3",
        "!",
        "/",
        "日",
        "<|im_",
    ]
    chance = Random(0)
    whole = {"".join(chance.choices(parts, k=6)): 1 for _ in range(4000)}
    merges = kernels.train_merges(whole, 500)
    return {name: Tokenizer(ByteLevelEngine(from_training(merges, SPECIALS, name))) for name in TRAINABLE}


@pytest.fixture(scope="session")
def tok(trained: dict[str, Tokenizer]) -> Tokenizer:
    return trained["cl100k"]


@pytest.fixture(scope="session")
def python_tok(tok: Tokenizer) -> Tokenizer:
    """The same tokenizer on the Python rung."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_compiled", lambda: None)
        return Tokenizer(ByteLevelEngine(tok.engine.vocabulary))


DATA = Path(os.environ.get("TINYLM_DATA") or Path(__file__).parents[2] / "data" / "raw")
MAIN_FILES = ("tokenizer.json", "vocab.json", "*.tiktoken", "*.model", "*.gguf")


def _fetched(name: str, paths: list[Path]) -> Path:
    """The first of these files that is there; otherwise the test is skipped, and its line says how to have it run."""
    for path in paths:
        if path.is_file():
            return path
    pytest.skip(f"{name} is not in {DATA}: python packages/tinylm-tokenizer/benchmarks/fetch_data.py {name}")


@pytest.fixture(scope="session")
def vocabulary() -> Callable[[str], Path]:
    """vocabulary("cl100k") → the file that `Tokenizer.load` takes; benchmarks/sources.py has the names."""

    def find(name: str) -> Path:
        folder = DATA / "vocabularies" / name
        return _fetched(name, [path for pattern in MAIN_FILES for path in sorted(folder.glob(pattern))])

    return find


@pytest.fixture(scope="session")
def fetched_text() -> Callable[[str], Path]:
    """fetched_text("shakespeare") → the file of a text; benchmarks/corpora.py has the names."""
    return lambda name: _fetched(name, [DATA / folder / f"{name}.txt" for folder in ("text", name)])


@pytest.fixture
def without_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_compiled", lambda: None)


@pytest.fixture
def write_json(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(data: bytes) -> Path:
        path = tmp_path / "tokenizer.json"
        path.write_bytes(data)
        return path

    return write
