"""The commands as a user meets them: help, output, exit codes, and errors of one line without a traceback."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

COMMAND = [sys.executable, "-m", "tinylm.training"]
TINY = ["--depth=1", "--context=16", "--batch-size=2", "--steps=4", "--threads=1", "--dtype=float32", "--device=cpu"]


def test_help_has_examples_and_needs_no_torch():
    code = "import sys\nfrom tinylm.training.cli import main\ntry: main()\nfinally: print('torch' in sys.modules)"
    for arguments in (
        ["--help"],
        ["prepare", "--help"],
        ["pretrain", "--help"],
        ["evaluate", "--help"],
        ["sweep", "--help"],
    ):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0
        assert "Try:" in done.stdout
        assert done.stdout.rstrip().endswith("False")


def test_version_names_package_torch_and_device(run):
    code, out, _ = run("--version")
    assert (code, out.count("\n")) == (0, 1)
    assert out.startswith("tinylm-train ")
    assert f"torch {torch.__version__}" in out
    assert "device" in out


def test_every_option_has_a_flag(run):
    import dataclasses

    from tinylm.training import TrainConfig

    _, out, _ = run("pretrain", "--help")
    for field in dataclasses.fields(TrainConfig):
        assert f"--{field.name.replace('_', '-')}" in out


def test_prepare_pretrain_evaluate(run, house, tmp_path):
    out = tmp_path / "data"
    command = ("prepare", house.text, "--tokenizer", house.tokenizer, "--validation", "tail:0.1", "--out", out)
    code, said, err = run(*command)
    assert (code, err) == (0, "")
    assert "train: " in said
    assert f"data set: {out}" in said
    assert run(*command)[:2] == (0, said)  # again: nothing to do, the same answer
    code, said, err = run("pretrain", "--data", out, "--out", tmp_path / "m", *TINY)
    assert code == 0, err
    assert "device: cpu, float32, 1 thread. " in said
    assert "finished: 4 steps" in said
    figure = said.splitlines()[-1]
    code, said, _ = run("evaluate", tmp_path / "m", "--data", out, "--device", "cpu")
    assert code == 0
    assert f"{float(said.split()[1]):.3f}" in figure
    code, said, _ = run("pretrain", "--data", out, "--out", tmp_path / "m", *TINY)
    assert code == 0
    assert "already finished: 4 steps" in said


def test_a_toml_file_holds_options_and_flags_win(run, house, tmp_path):
    (tmp_path / "run.toml").write_text(f'data = "{house.data}"\nsteps = 3\ndepth = 1\ncontext = 16\nbatch_size = 2\n')
    arguments = ("--out", tmp_path / "m", "--steps", 2, "--device", "cpu", "--threads", 1)
    code, said, err = run("pretrain", "--config", tmp_path / "run.toml", *arguments)
    assert code == 0, err
    assert "finished: 2 steps" in said


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("pretrain --no-such-option", 2, "no-such-option"),
        ("pretrain --steps many", 2, "--steps"),
        ("forge", 2, "forge"),
        ("pretrain", 1, "data and out"),
        ("pretrain --data nowhere --out {new}", 1, "nowhere"),
        ("pretrain --data {data} --out {new} --optimizer sophia", (1, 2), "sophia"),
        ("pretrain --data {data} --out {new} --depth 0", 1, "depth"),
        ("pretrain --data {data} --out {new} --steps 1 --minutes 1", 1, "minutes and steps"),
        ("pretrain --data {data} --out {new} --device tpu", 1, "tpu"),
        ("pretrain --data {data} --out {new} --preset gpt9", 1, "gpt9"),
        ("pretrain --data {data} --out {new} --context 100000", 1, "shorter --context"),
        ("pretrain --data {data} --out {data}/data.json --depth 1 --context 16 --steps 1", 1, "data.json"),
        ("evaluate nowhere --data {data}", 1, "nowhere"),
        ("evaluate {data} --data {data}", 1, "config.json"),
        ("prepare nowhere.txt --tokenizer {tokenizer} --out {new}", 1, "nowhere.txt"),
        ("prepare {data}/data.json --tokenizer {data} --validation tail:2 --out {new}", 1, "tail:2"),
    ],
)
def test_bad_input_is_one_message(run, house, tmp_path, arguments, code, said):
    places = {"data": house.data, "tokenizer": house.tokenizer, "new": tmp_path / "new"}
    got, out, err = run(*[word.format(**places) for word in arguments.split()])
    assert got in (code if isinstance(code, tuple) else (code,)), (got, err)
    assert said in err
    assert "Traceback" not in out + err
    if got == 1:
        assert [line[:7] for line in err.splitlines()] == ["error: "]
    assert not (tmp_path / "new").exists()


def test_python_dash_m_is_the_command(house, tmp_path):
    line = [*COMMAND, "pretrain", "--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "new")]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: wanted")
    assert done.stderr.count("\n") == 1


def test_ctrl_c_while_preparing_is_exit_130(run, house, tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["tinylm.training.prepare"], "_write_splits", interrupted)
    code, _, err = run("prepare", house.text, "--tokenizer", house.tokenizer, "--out", tmp_path / "data")
    assert code == 130
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_out_of_memory_names_what_to_make_smaller(run, house, tmp_path, monkeypatch):
    for error in (MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")):

        def full(self, loader, progress, error=error):
            raise error

        monkeypatch.setattr("tinylm.training.checked_step.CheckedStep.take", full)
        code, _, err = run("pretrain", "--data", house.data, "--out", tmp_path / "m", *TINY)
        assert code == 1
        assert "smaller --batch-size, --depth or --context" in err


def test_text_goes_to_a_full_device_without_a_traceback(house, tmp_path):
    line = [*COMMAND, "prepare", str(house.text), "--tokenizer", str(house.tokenizer), "--out", str(tmp_path / "data")]
    with open("/dev/full", "w") as full:  # noqa: PTH123  # a device
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
