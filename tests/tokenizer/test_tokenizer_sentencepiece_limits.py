"""Training SentencePiece vocabularies in bounded memory: files in parts, and a refusal where the words are too many."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tinylm.tokenizer import Tokenizer, TokenizerError, kernels
from tinylm.tokenizer._trainers import corpus, counting
from tinylm.tokenizer._trainers.sentencepiece_corpus import Options, count
from tinylm.tokenizer.ladder import made_text

PEAK = """
import resource, sys
from tinylm.tokenizer import Tokenizer
from tinylm.tokenizer.ladder import made_text
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
Tokenizer.train([made_text(1_000_000)], vocab_size=500, algorithm=sys.argv[2])
before = peak()
Tokenizer.train([sys.argv[1]], vocab_size=500, algorithm=sys.argv[2])
print((peak() - before) / 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in KB on Linux only")
@pytest.mark.parametrize("algorithm", ["sentencepiece-bpe", "unigram"])
def test_a_file_is_not_held_as_a_whole(algorithm: str, tmp_path: Path) -> None:
    if not kernels.available():
        pytest.skip("20 MB take minutes without the compiled kernel")
    path = tmp_path / "big.txt"
    path.write_bytes((made_text(1_000_000) + "\n").encode() * 20)
    command = [sys.executable, "-c", PEAK, str(path), algorithm]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env=os.environ)
    assert float(done.stdout) < 15, "MB more for 20 MB of text than for 1 MB"


@pytest.mark.parametrize("algorithm", ["sentencepiece-bpe", "unigram"])
@pytest.mark.parametrize("rung", ["kernels", "python"])
def test_too_many_words_are_refused(algorithm: str, rung: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if rung == "python":
        monkeypatch.setattr(kernels, "_compiled", lambda: None)
        monkeypatch.setattr(kernels, "_warn_once", lambda: None)
    monkeypatch.setattr(counting, "_memory_limit", lambda: 100_000)
    texts = ["".join(f"w{number} " for number in range(150_000))] * 2
    with pytest.raises(TokenizerError, match=r"different pieces.*memory"):
        Tokenizer.train(texts, vocab_size=500, algorithm=algorithm)


def test_files_come_in_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(f"line {'é' * (number % 50)}\r\n" for number in range(3000)) + "the end"
    path = tmp_path / "lines.txt"
    path.write_bytes(text.encode())
    monkeypatch.setattr(corpus, "CHUNK", 1000)
    parts = list(corpus.lines(path))
    assert "".join(parts) == text
    assert len(parts) > 50
    assert all(part.endswith("\n") for part in parts[:-1] if part)
    assert count(parts, Options(500)) == count([text], Options(500))


def test_bytes_that_are_no_text_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(b"good\n" * 500 + b"bad \xff\n")
    monkeypatch.setattr(corpus, "CHUNK", 1000)
    with pytest.raises(TokenizerError, match="0xff at offset 2504"):
        Tokenizer.train([path], vocab_size=500, algorithm="unigram")
