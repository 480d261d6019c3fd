"""The command `python -m tinylm.tokenizer`, as a user types it."""

import json
import os
import re
import subprocess
import sys
import warnings
from contextlib import ExitStack
from pathlib import Path

import pytest

from tinylm.tokenizer import Tokenizer, _show, cli, kernels
from tinylm.tokenizer._trainers import choose
from tinylm.tokenizer._trainers import corpus as _corpus


def run(*arguments: str | Path, stdin: bytes = b"", code: int = 0) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "tinylm.tokenizer", *map(str, arguments)]
    done = subprocess.run(command, input=stdin, capture_output=True, env={**os.environ, "NO_COLOR": "1"}, timeout=120)
    assert done.returncode == code, done.stderr.decode()
    assert b"Traceback" not in done.stderr
    return done


def call(capfd: pytest.CaptureFixture[str], *arguments: str | Path, code: int) -> str:
    """The same in this process, which is quicker: the exit code is checked, stderr is returned."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tinylm-tokenizer", *map(str, arguments)])
        patch.setattr(warnings, "showwarning", warnings.showwarning)
        with pytest.raises(SystemExit) as exit:
            cli.main()
    assert exit.value.code == code
    return capfd.readouterr().err


def without_warnings(messages: str) -> str:
    """The lines that are no warning: without the kernel there is one about that."""
    return "\n".join(line for line in messages.splitlines() if not line.startswith("warning: "))


@pytest.fixture(scope="module")
def book(corpus: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("book") / "book.txt"
    path.write_bytes("".join(corpus).replace("\0", "").encode())
    return path


@pytest.fixture(scope="module")
def directory(book: Path) -> Path:
    out = book.parent / "tokenizer"
    done = run("train", book, "--vocab-size", "400", "--out", out)
    assert b"400 tokens" in done.stdout
    return out


@pytest.mark.parametrize("algorithm", [name for name in choose.ALGORITHMS if name != "bpe"])
def test_train_takes_every_algorithm(algorithm: str, book: Path, tmp_path: Path) -> None:
    run("train", book, "--vocab-size", "600", "--algorithm", algorithm, "--out", tmp_path)
    tok = Tokenizer.load(tmp_path)
    assert tok.engine.algorithm == algorithm
    assert tok.encode("and the other") == Tokenizer.train([book], vocab_size=600, algorithm=algorithm).encode(
        "and the other"
    )


def test_train_equals_the_api(directory: Path, book: Path, tmp_path: Path) -> None:
    text = book.read_bytes().decode()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    mine = Tokenizer.train([text], vocab_size=400, special_tokens=specials)
    loaded = Tokenizer.load(directory)
    assert loaded.engine.vocabulary == mine.engine.vocabulary
    assert loaded.chat_template is not None
    assert len(loaded.apply_chat_template([{"role": "user", "content": "x"}])) > 3
    run(
        "train",
        book,
        "--vocab-size",
        "300",
        "--out",
        tmp_path,
        "--head",
        "0.5",
        "--pattern",
        "gpt2",
        "--special",
        "<e>",
    )
    half = Tokenizer.train([text[: int(len(text) * 0.5)]], vocab_size=300, pattern="gpt2", special_tokens=["<e>"])
    assert Tokenizer.load(tmp_path).engine.vocabulary == half.engine.vocabulary
    assert Tokenizer.load(tmp_path).chat_template is None


def test_encode_and_decode(directory: Path, tmp_path: Path) -> None:
    tok = Tokenizer.load(directory)
    text = "Hello, wörld <|im_end|>\r\n"
    spaced = run("encode", directory, text).stdout
    assert [int(word) for word in spaced.split()] == tok.encode(text)
    listed = run("encode", directory, "--json", stdin=text.encode()).stdout
    assert json.loads(listed) == tok.encode(text)
    assert run("decode", directory, stdin=listed).stdout == text.encode()
    assert run("decode", directory, *spaced.decode().split()).stdout == text.encode()
    (tmp_path / "a.txt").write_bytes(text.encode())
    special = run("encode", directory, "--file", tmp_path / "a.txt", "--allow-special").stdout
    assert [int(word) for word in special.split()] == tok.encode(text, allowed_special="all")


def test_inspect_shows_tokens_ids_and_bytes(directory: Path) -> None:
    shown = run("inspect", directory, "Hello there\n").stdout.decode()
    tok = Tokenizer.load(directory)
    ids = tok.encode("Hello there\n")
    assert " ".join(map(str, ids)) in shown
    assert f"{len(ids)} tokens: {12 / len(ids):.2f} bytes per token" in shown
    assert "\x1b" not in shown


def test_inspect_lists_tokens_and_paints_them_only_on_a_terminal(directory: Path) -> None:
    tok = Tokenizer.load(directory)
    text = "é\t\ufffd"
    lines = run("inspect", directory, "--each", text).stdout.decode().splitlines()
    assert [int(line.split()[0]) for line in lines[1:-1]] == tok.encode(text)
    assert sum(int(line.split()[1]) for line in lines[1:-1]) == len(text.encode())
    painted = _show.tokens(tok, "Hello there\nyou", colour=True)
    unpainted = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in painted]
    assert painted != unpainted
    assert unpainted[:2] == ["Hello there\\n", "you"]
    assert unpainted[2].split() == [str(id) for id in tok.encode("Hello there\nyou")]


def test_a_narrow_terminal_gets_a_line_for_each_tokenizer(directory: Path) -> None:
    tok = Tokenizer.load(directory)
    wide = _show.comparison([tok, tok], ["one", "another"], ["Hello there", "you"], ["a", "b"], False, 200)
    narrow = _show.comparison([tok, tok], ["one", "another"], ["Hello there", "you"], ["a", "b"], False, 30)
    assert _show.comparison([tok, tok], ["one", "another"], ["Hello there", "you"], ["a", "b"], False) == wide
    assert max(map(len, narrow)) <= 30 < max(map(len, wide))
    assert len(narrow) == 1 + 3 * 3
    cell = f"{tok.count('Hello there')} · "
    assert cell in wide[2]
    assert [cell in line for line in narrow[1:4]] == [False, True, True]


def test_inspect_compares_tokenizers_on_files(directory: Path, book: Path, tmp_path: Path) -> None:
    other, small = tmp_path / "bytes", tmp_path / "small.txt"
    Tokenizer.train(["ab"], vocab_size=256, special_tokens=[]).save(other)
    small.write_text("Hello there " * 20)
    table = run("inspect", directory, "--with", other, "--file", book, "--file", small).stdout.decode()
    texts = [book.read_bytes().decode(), small.read_text()]
    rows = table.splitlines()[2:]
    assert [row.split()[0] for row in rows] == ["book.txt", "small.txt", "together"]
    for row, text in zip(rows, texts, strict=False):
        count, size = Tokenizer.load(directory).count(text), len(text.encode())
        assert row.split()[1:] == [f"{size:,}", f"{count:,}", "·", f"{size / count:.2f}", f"{size:,}", "·", "1.00"]


def test_encode_reads_a_file_in_parts(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tok = Tokenizer.load(directory)
    text = "naïve 日本語 👩‍👩‍👧 <|im_end|>\r\n  and   so on " * 40
    (tmp_path / "a.txt").write_bytes(text.encode())
    for size in (1, 2, 3, 7, 1000):
        monkeypatch.setattr(_corpus, "CHUNK", size)
        with ExitStack() as stack:
            chunks = list(cli._chunks(tmp_path / "a.txt", stack))
        assert "".join(chunks) == text
        assert list(tok.encode_stream(chunks, allowed_special="all")) == tok.encode(text, allowed_special="all")


def test_train_refuses_a_place_it_cannot_write_to_before_it_reads(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        told = run("train", tmp_path / "absent.txt", "--vocab-size", "300", "--out", out, code=1).stderr.decode()
        assert f"cannot write the tokenizer to {out}: {tmp_path / 'file'} is a file" in told
    closed = tmp_path / "closed"
    closed.mkdir(0o500)
    if not os.access(closed, os.W_OK):  # who may do everything may write there, too
        told = run("train", tmp_path / "absent.txt", "--vocab-size", "300", "--out", closed, code=1).stderr.decode()
        assert f"no permission to write in {closed}" in told


def test_encode_of_an_empty_file_is_no_ids(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert run("encode", directory, "--json", "--file", tmp_path / "empty").stdout == b"[]\n"
    assert run("encode", directory, "").stdout == b"\n"


def test_convert_there_and_back(directory: Path, tmp_path: Path) -> None:
    told = run("convert", directory, tmp_path / "x.tiktoken").stderr.decode()
    assert "no pattern" in told
    assert "no special tokens" in told
    run("convert", tmp_path / "x.tiktoken", tmp_path / "json", "--pattern", "cl100k")
    tok, back = Tokenizer.load(directory), Tokenizer.load(tmp_path / "json")
    assert back.encode("Hello there") == tok.encode("Hello there")
    run("convert", directory, tmp_path / "pair" / "vocab.json")
    assert (tmp_path / "pair" / "merges.txt").is_file()


def test_a_rank_file_is_told_its_pattern_and_special_tokens(directory: Path, tmp_path: Path) -> None:
    ranks = tmp_path / "mine.tiktoken"
    run("convert", directory, ranks)
    table = run("inspect", directory, "hello", "--with", ranks, "--pattern", "cl100k").stdout.decode().splitlines()
    assert len(set(re.findall(r"\d+ · [\d.]+", table[2]))) == 1
    special = [f"--special={text}={id}" for text, id in Tokenizer.load(directory).special_tokens.items()]
    options = ("--pattern", "cl100k", *special)
    text = "hello<|im_end|>"
    ids = run("encode", directory, text, "--allow-special").stdout
    assert run("encode", ranks, text, "--allow-special", *options).stdout == ids
    assert run("decode", ranks, *options, stdin=ids).stdout == text.encode()
    run("convert", ranks, tmp_path / "again", *options)
    assert run("encode", tmp_path / "again", text, "--allow-special").stdout == ids


def test_help_and_version() -> None:
    for command in ("train", "convert"):
        assert b"Example" in run(command, "--help").stdout
    backend = "kernels" if kernels.available() else "python"
    assert f"backend {backend}" in run("--version").stdout.decode()


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['x', '--help']\n"
        "try:\n    from tinylm.tokenizer.cli import main; main()\nexcept SystemExit: pass\n"
        "heavy = {'numpy', 'regex', 'torch', 'jinja2', 'tokenizers', 'tiktoken'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_using_the_package_imports_no_reference() -> None:
    code = (
        "import sys\nfrom tinylm.tokenizer import Tokenizer\n"
        "Tokenizer.train(['ab ab'], vocab_size=258).encode('ab')\n"
        "heavy = {'torch', 'tokenizers', 'tiktoken', 'transformers', 'rich', 'typer'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_bad_input_is_one_line_and_exit_code_1(
    directory: Path, book: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run("encode", tmp_path / "nowhere", "x", code=1)
    binary, empty, out = tmp_path / "b.bin", tmp_path / "empty", tmp_path / "out"
    binary.write_bytes(b"abc\xff\x00")
    empty.write_bytes(b"")
    broken = tmp_path / "tokenizer.json"
    broken.write_bytes((directory / "tokenizer.json").read_bytes()[:5000])
    train = ("--vocab-size", "300", "--out", out)
    for arguments, message in [
        (("train", tmp_path / "missing.txt", *train), "No such file"),
        (("train", binary, *train), "offset 3"),
        (("train", empty, *train), "empty"),
        (("train", book, "--vocab-size", "10", "--out", out), "at least 259"),
        (("train", book, *train, "--algorithm", "magic"), "unknown algorithm"),
        (("train", book, *train, "--pattern", "nope"), "unknown pattern"),
        (("train", book, "--vocab-size", "300", "--out", book), "cannot write"),
        (("encode", broken, "x"), "broken JSON"),
        (("encode", tmp_path / "nowhere", "x"), "No such file"),
        (("encode", directory, "--file", binary), "offset 3"),
        (("decode", directory, "1", "400"), "from 0 to 399, got 400"),
        (("decode", directory, "1", "one"), "wanted ids (numbers with spaces between, or a JSON list), got 'one'"),
    ]:
        error = without_warnings(call(capfd, *arguments, code=1))
        assert error.startswith("error: ")
        assert message in error
        assert "\n" not in error
    assert not out.exists()


def test_wrong_usage_is_exit_code_2(directory: Path, book: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run("nonsense", code=2)
    for arguments in [
        ("train", book, "--nonsense"),
        ("encode", directory, "x", "--file", book),
        ("train", book, "--vocab-size", "300", "--out", directory, "--head", "1.5"),
        ("train", book, "--vocab-size", "many", "--out", directory),
        ("inspect", directory, "x", "--with", directory, "--each"),
        ("inspect", directory, "x", "--with", directory, "--pattern", "gpt2"),
        ("encode", directory, "x", "--special", "<x>"),
    ]:
        assert "Usage" in call(capfd, *arguments, code=2)


def test_a_terminal_that_lacks_a_character(directory: Path, book: Path, tmp_path: Path) -> None:
    for arguments, wanted in [
        (("--help",), b"Text \\u2192 ids."),
        (("train", book, "--vocab-size", "300", "--out", tmp_path / "t"), b"\\u2192"),
        (("convert", directory, tmp_path / "x.tiktoken"), b"\\u2192"),
        (("inspect", directory, "\u65e5", "--with", directory), b"bytes per token"),
    ]:
        command = [sys.executable, "-m", "tinylm.tokenizer", *map(str, arguments)]
        environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}  # what Windows gives to a file or a pipe
        done = subprocess.run(command, capture_output=True, env=environment, timeout=120)
        assert done.returncode == 0, done.stderr.decode()
        assert wanted in done.stdout


@pytest.mark.skipif(os.name != "posix", reason="closes the standard streams in a shell")
def test_closed_standard_streams(directory: Path) -> None:
    for command, code in [("encode {} x >&-", 0), ("encode {} <&-", 0), ("encode {}/no x 2>&-", 1)]:
        line = f"{sys.executable} -m tinylm.tokenizer {command.format(directory)}"
        done = subprocess.run(["sh", "-c", line], capture_output=True, timeout=60)
        assert done.returncode == code
        assert b"Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_full_disk_behind_stdout(directory: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        for arguments in (
            ["encode", str(directory), "x"],
            ["decode", str(directory), "1"],
            ["inspect", str(directory), "x"],
        ):
            command = [sys.executable, "-m", "tinylm.tokenizer", *arguments]
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=60)
            assert done.returncode == 1
            assert without_warnings(done.stderr.decode()).startswith("error: ")
            assert b"Traceback" not in done.stderr
            assert b"Exception ignored" not in done.stderr
