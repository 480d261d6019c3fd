"""The naive rung's two files, and `python -m tinylm.tokenizer.naive_bpe FILE` with good and bad input."""

import json
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinylm.tokenizer import TokenizerError, naive_bpe

WORD_FREQ = naive_bpe.char_spaced_word_freq("low lower lowest, newest; ünd # don't\n")
MERGES = naive_bpe.learn_merges(WORD_FREQ, 12)
VOCAB = naive_bpe.build_vocab(WORD_FREQ, MERGES)


def test_merge_rules_are_plain_text_one_pair_a_line_in_merge_order(tmp_path: Path) -> None:
    naive_bpe.save_merge_rules(MERGES, tmp_path / "merge_rules.txt")
    text = (tmp_path / "merge_rules.txt").read_bytes().decode()
    assert text.endswith("\n")
    assert [tuple(line.split(" ")) for line in text[:-1].split("\n")] == MERGES


def test_vocabulary_is_json_of_token_to_id(tmp_path: Path) -> None:
    naive_bpe.save_vocab(VOCAB, str(tmp_path / "vocab.json"))
    assert json.loads((tmp_path / "vocab.json").read_bytes()) == VOCAB


def test_saving_twice_leaves_one_files_worth(tmp_path: Path) -> None:
    rules, vocab = tmp_path / "merge_rules.txt", tmp_path / "vocab.json"
    naive_bpe.save_merge_rules(MERGES, rules)
    naive_bpe.save_vocab(VOCAB, vocab)
    once = rules.read_bytes(), vocab.read_bytes()
    naive_bpe.save_merge_rules(MERGES, rules)
    naive_bpe.save_vocab(VOCAB, vocab)
    assert (rules.read_bytes(), vocab.read_bytes()) == once
    assert sorted(tmp_path.iterdir()) == [rules, vocab]


def test_saving_where_it_cannot_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        naive_bpe.save_merge_rules(MERGES, tmp_path / "taken")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


@given(text=st.text(), number_of_merges=st.integers(0, 15))
def test_loading_gives_back_what_was_saved(
    tmp_path_factory: pytest.TempPathFactory, text: str, number_of_merges: int
) -> None:
    folder = tmp_path_factory.getbasetemp()
    word_freq = naive_bpe.char_spaced_word_freq(text)
    merges = naive_bpe.learn_merges(word_freq, number_of_merges)
    vocab = naive_bpe.build_vocab(word_freq, merges)
    naive_bpe.save_merge_rules(merges, folder / "merge_rules.txt")
    naive_bpe.save_vocab(vocab, folder / "vocab.json")
    assert naive_bpe.load_merge_rules(folder / "merge_rules.txt") == merges
    assert naive_bpe.load_vocab(folder / "vocab.json") == vocab


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"l o\nlo w", "newline"),
        (b"l o\n\nlo w\n", "line 2"),
        (b"l o w\n", "line 1"),
        (b"low\n", "line 1"),
        (b" o\n", "line 1"),
        (b"\xff\xfe\n", "UTF-8"),
    ],
)
def test_bad_merge_rules_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "merge_rules.txt").write_bytes(content)
    with pytest.raises(TokenizerError, match=message):
        naive_bpe.load_merge_rules(tmp_path / "merge_rules.txt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "JSON"),
        (json.dumps(VOCAB)[:-9], "JSON"),
        ("[" * 100_000, "JSON"),
        ("[0, 1]", "token -> id"),
        (json.dumps({**VOCAB, "extra": 7_000}), "token -> id"),
        (json.dumps({"a": 0, "b": 1}), "ids 0 to 3"),
    ],
)
def test_bad_vocabulary_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "vocab.json").write_text(content, encoding="utf-8")
    with pytest.raises(TokenizerError, match=message):
        naive_bpe.load_vocab(tmp_path / "vocab.json")


def demonstrate(*arguments: str, stdout: int | IO[str] = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tinylm.tokenizer.naive_bpe", *arguments]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, encoding="utf-8")


def test_demonstration_trains_encodes_and_decodes(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("\nDon't go low, lower, lowest.\nü low\n", encoding="utf-8")
    done = demonstrate(str(tmp_path / "corpus.txt"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "'l' + 'o' -> 'lo'" in done.stdout
    assert 'decoded  "Don\'t go low, lower, lowest."' in done.stdout


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file"), (b"", "nothing but"), (b" \n \n", "nothing but"), (b"\x89PNG", "UTF-8"), (b"a\0b", "NUL")],
)
def test_demonstration_says_in_one_line_what_is_wrong(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "corpus.txt"
    if content is not None:
        path.write_bytes(content)
    done = demonstrate(str(path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: wanted ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert str(path) in done.stderr


def test_demonstration_on_a_full_disk(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    (tmp_path / "corpus.txt").write_text("low lower", encoding="utf-8")
    with Path("/dev/full").open("w") as full:
        done = demonstrate(str(tmp_path / "corpus.txt"), stdout=full)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [(), ("a.txt", "b.txt"), ("--merges", "3", "a.txt")])
def test_demonstration_usage_errors_exit_2(arguments: tuple[str, ...]) -> None:
    done = demonstrate(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
