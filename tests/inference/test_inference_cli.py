"""The commands as a user meets them: output, exit codes, one-line errors, Ctrl-C, pipes, and a full disk."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402  # after importorskip

from tinylm.inference import LLM, SamplingParams  # noqa: E402  # after importorskip
from tinylm.inference.cli import main  # noqa: E402

COMMAND = [sys.executable, "-m", "tinylm.inference"]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """run("generate", ..., stdin="") -> (exit code, stdout, stderr), in this process: importing torch anew is slow."""

    def call(*arguments: object, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tinylm-infer", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return call


def test_help_needs_no_torch_and_no_fastapi() -> None:
    loaded = "{'torch', 'fastapi', 'uvicorn'} & {*sys.modules}"
    code = f"import sys\nfrom tinylm.inference.cli import main\ntry: main()\nfinally: print({loaded})"
    for arguments in (["--help"], ["generate", "--help"], ["serve", "--help"], ["bench", "--help"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0
        assert done.stdout.rstrip().endswith("set()")


def test_version_names_package_torch_and_device(run: Run) -> None:
    code, out, _ = run("--version")
    assert (code, out.count("\n")) == (0, 1)
    assert f"torch {torch.__version__}" in out
    assert "device" in out


def test_generate_prints_prompt_and_text_and_speed_beside(run: Run, checkpoint: Path, llm: LLM) -> None:
    code, out, err = run("generate", checkpoint, "The cook", "--max-tokens", 12, "--seed", 3, "--device", "cpu")
    expected = llm.generate("The cook", SamplingParams(temperature=0.8, max_tokens=12, seed=3))[0].outputs[0]
    assert (code, out) == (0, f"The cook{expected.text}\n")
    assert "device: cpu, float32" in err
    assert f"{len(expected.token_ids)} tokens in" in err


def test_every_option_reaches_the_parameters(run: Run, checkpoint: Path, llm: LLM) -> None:
    values = {"max_tokens": 30, "temperature": 1.5, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "seed": 5}
    flags = [part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", value)]
    code, out, _ = run("generate", checkpoint, "The", *flags, "--stop", "e", "--stop", "q", "--device", "cpu")
    params = SamplingParams(**values, stop=["e", "q"])
    assert (code, out) == (0, "The" + llm.generate("The", params)[0].outputs[0].text + "\n")


def test_a_file_holds_options_and_flags_go_before_it(run: Run, checkpoint: Path, llm: LLM, tmp_path: Path) -> None:
    file = tmp_path / "options.toml"
    file.write_text('max_tokens = 30\ntemperature = 1.5\nseed = 6\nstop = ["e", "q"]\ndevice = "cpu"\n', "utf-8")
    code, out, _ = run("generate", checkpoint, "The", "--seed", 5, "--config", file)
    params = SamplingParams(max_tokens=30, temperature=1.5, seed=5, stop=["e", "q"])
    assert (code, out) == (0, "The" + llm.generate("The", params)[0].outputs[0].text + "\n")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("max_token = 3", "got max_token; known: max_tokens"),
        ("max_tokens = 3.5", "--max-tokens"),
        ("max_tokens = true", "wanted text or a number for max_tokens, got True"),
        ("max_tokens = [3]", "wanted text or a number for max_tokens, got [3]"),
        ('stop = "e"', "wanted a list of texts for stop, got 'e'"),
        ("max_tokens = ", "wanted a TOML file with options"),
        ("\xff", "wanted a TOML file with options"),
        (None, "wanted a TOML file with options"),
    ],
)
def test_a_file_of_options_that_cannot_be_is_refused(
    run: Run, checkpoint: Path, tmp_path: Path, content: str | None, says: str
) -> None:
    file = tmp_path / "options.toml"
    if content is not None:
        file.write_bytes(content.encode("latin-1"))
    code, out, err = run("generate", checkpoint, "The", "--config", file)
    assert (code, out) == (2, "")
    assert says in " ".join(err.replace("│", " ").split())


def test_an_empty_prompt_begins_a_text(run: Run, checkpoint: Path) -> None:
    code, out, _ = run("generate", checkpoint, "", "--max-tokens", 5)
    assert code == 0
    assert out.endswith("\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "nowhere", "x"], "config.json"),
        (["generate", "CHECKPOINT", "x", "--temperature", "-1"], "temperature"),
        (["generate", "CHECKPOINT", "x", "--top-p", "0"], "top_p"),
        (["generate", "CHECKPOINT", "x", "--device", "abacus"], "abacus"),
        (["generate", "CHECKPOINT", "x", "--dtype", "int3"], "dtype"),
        (["generate", "CHECKPOINT", "good soup " * 100], "context"),
        (["generate", "CHECKPOINT", "\udcff"], "surrogate"),
        (["generate", "CHECKPOINT", "x", "--regex", "\udcff"], "structured output"),
        (["generate", "CHECKPOINT", "x", "--regex", ""], "regex"),
        (["generate", "CHECKPOINT", "x", "--json-schema", os.devnull], "the JSON schema is not JSON"),
        (["bench", "CHECKPOINT", "--quantization", "int3"], "int8, int4"),
        (["bench", "CHECKPOINT", "--prompt-tokens", "1000"], "context"),
        (["bench", "CHECKPOINT", "--perplexity", "nowhere.txt"], "nowhere.txt, got No such file"),
        (["chat", "nowhere"], "config.json"),
    ],
)
def test_bad_input_is_one_line_on_stderr_and_exit_code_1(
    run: Run, checkpoint: Path, arguments: list[str], message: str
) -> None:
    code, out, err = run(*[str(checkpoint) if a == "CHECKPOINT" else a for a in arguments])
    errors = [line for line in err.splitlines() if not line.startswith("device: ")]
    assert (code, out) == (1, "")
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert message in errors[0]


@pytest.mark.parametrize("arguments", [["generate"], ["generate", "x", "y", "--wrong"], ["fly"], ["bench", "x", "-1"]])
def test_wrong_usage_is_exit_code_2(run: Run, arguments: list[str]) -> None:
    assert run(*arguments)[0] == 2


def test_a_damaged_checkpoint_is_one_line(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    (copied / "model.safetensors").write_bytes(b"\0" * 100)
    code, _, err = run("generate", copied, "x")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "model.safetensors" in err


def test_bench_ends_with_one_json_object(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The bird sings. naïve 你好\n" * 9, encoding="utf-8")
    code, out, _ = run(
        "bench", checkpoint, "--prompt-tokens", 4, "--max-tokens", 6, "--repetitions", 1, "--perplexity", text
    )
    figures = json.loads(out.splitlines()[-1])
    assert code == 0
    assert figures["format"] == 1
    assert figures["tokens_per_s"] > 0
    assert figures["perplexity"]["characters"] == len(text.read_text(encoding="utf-8"))


def test_a_perplexity_that_no_number_holds_is_null(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    weights = load_file(copied / "model.safetensors")
    weights["model.norm.weight"] *= 1e6
    save_file(weights, copied / "model.safetensors")
    (tmp_path / "text.txt").write_text("The bird sings.\n" * 9)
    options = ["--prompt-tokens", 4, "--max-tokens", 6, "--repetitions", 1]
    code, out, _ = run("bench", copied, *options, "--perplexity", tmp_path / "text.txt")
    quality = json.loads(out.splitlines()[-1])["perplexity"]
    assert (code, quality["perplexity"], quality["nonfinite"]) == (0, None, {"perplexity": "inf"})
    assert "perplexity           infinite over" in out


def test_bench_refuses_a_file_that_is_not_text(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    code, _, err = run("bench", checkpoint, "--perplexity", tmp_path / "binary")
    assert code == 1
    assert "not UTF-8" in err


def test_chat_works_piped_and_says_that_a_base_model_is_none(run: Run, checkpoint: Path) -> None:
    lines = "The cook says\n\n/clear\nWho sings?\n/exit\nnever read\n"
    code, out, err = run("chat", checkpoint, "--max-tokens", 5, "--seed", 0, stdin=lines)
    assert code == 0
    assert out.count("\n") >= 2
    assert [line for line in err.splitlines() if "not tuned for chat" in line]
    assert "forgotten" in err
    assert run("chat", checkpoint, "--max-tokens", 5, "--seed", 0, stdin=lines)[1] == out


def test_chat_goes_on_after_a_message_that_is_too_long(run: Run, make_checkpoint: Callable[..., Path]) -> None:
    from tinylm.model import Transformer

    directory = make_checkpoint()
    Transformer.load(directory).save(directory)  # without provenance its template is believed
    code, out, err = run("chat", directory, "--max-tokens", 4, stdin=f"{'good soup ' * 100}\nHi\n")
    assert code == 1
    assert "error: the prompt has" in err
    assert out.count("\n") >= 1


def test_chat_goes_on_after_an_answer_without_numbers(run: Run, make_checkpoint: Callable[..., Path]) -> None:
    from tinylm.model import Transformer

    directory = make_checkpoint("gpt2")
    model = Transformer.load(directory)
    with torch.no_grad():
        model.positions.weight[40] = 3e38  # finite, and too large to go on with
    model.save(directory)
    code, out, err = run("chat", directory, "--max-tokens", 30, "--seed", 1, stdin="Hi\nWho sings?\n/clear\nHi\n")
    assert code == 1
    assert err.count("error: the model's logits after 41 tokens are not numbers") == 3
    assert err.index("(conversation forgotten)") > err.index("error")
    assert out.count("\n") >= 3
    assert run("chat", directory, "--max-tokens", 2, stdin="Hi\n")[0] == 0


def test_a_second_ctrl_c_at_once_does_not_end_chat(run: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def interrupted(_: object, text: str) -> bool:
        asked.append(text)
        raise KeyboardInterrupt

    monkeypatch.setattr("tinylm.inference.cli._answer", interrupted)
    assert run("chat", checkpoint, stdin="a\nb\n")[0] == 0
    assert asked == ["a", "b"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_one_line(checkpoint: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, "generate", str(checkpoint), "x"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
        helped = subprocess.run([*COMMAND, "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    for ended in (done, helped):
        assert ended.returncode == 1
        assert "No space left on device" in ended.stderr
        assert "Traceback" not in ended.stderr


def test_a_reader_that_leaves_early_is_no_traceback(checkpoint: Path) -> None:
    command = [*COMMAND, "generate", str(checkpoint), "x", "--max-tokens", "40"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 1
    assert "Traceback" not in err
    assert "Exception" not in err


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_ctrl_c_stops_the_answer_and_ctrl_d_leaves(make_checkpoint: Callable[..., Path]) -> None:
    import pty

    directory = make_checkpoint(context=8192)
    terminal, inside = pty.openpty()
    command = [*COMMAND, "chat", str(directory), "--max-tokens", "8000", "--temperature", "0"]
    process = subprocess.Popen(
        command, stdin=inside, stdout=inside, stderr=inside, start_new_session=True, env={**os.environ, "TERM": "dumb"}
    )
    os.close(inside)
    seen = ""

    def wait_for(text: str) -> None:
        """Reads on until `text` has appeared; what comes after it is kept for the next call."""
        nonlocal seen
        deadline = time.monotonic() + 60
        while text not in seen:
            assert time.monotonic() < deadline, seen
            seen += os.read(terminal, 4096).decode(errors="replace")
        seen = seen.partition(text)[2]

    try:
        wait_for("> ")
        os.write(terminal, b"The cook says\n")
        wait_for("cook says")
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        wait_for("(stopped)")
        wait_for("> ")
        os.write(terminal, b"\x04")
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        os.close(terminal)


def test_ctrl_c_ends_generate_with_130(make_checkpoint: Callable[..., Path]) -> None:
    command = [
        *COMMAND,
        "generate",
        str(make_checkpoint(context=8192)),
        "The",
        "--max-tokens",
        "8000",
        "--temperature",
        "0",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.read(20)  # it has begun to write
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in err
