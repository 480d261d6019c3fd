"""The command: what it prints, what it refuses, and how it ends."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch

from tinylm.model import Transformer, read_provenance
from tinylm.model.cli import app, main

SMALL = ["--vocab-size", "60", "--depth", "1"]


def run(*arguments):
    """Call the entry point in this process (a new one would import torch each time); -> (exit code, stdout, stderr)."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["tinylm-model", *map(str, arguments)])
        patch.setenv("COLUMNS", "140")
        with pytest.raises(SystemExit) as end:
            main()
    return end.value.code, out.getvalue(), err.getvalue()


def ok(*arguments):
    code, out, err = run(*arguments)
    assert (code, err) == (0, "")
    return out


def refused(*arguments, code=1):
    got, out, err = run(*arguments)
    assert got == code, out + err
    return err


def test_init_inspect_convert(tmp_path):
    assert "parameters" in ok("init", tmp_path / "a", *SMALL, "--preset", "llama", "--set", "context=32", "--seed", 3)
    ok("init", tmp_path / "b", *SMALL, "--preset", "llama", "--set", "context=32", "--seed", 3)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    model = Transformer.load(tmp_path / "a")
    assert model.config.context == 32

    shown = ok("inspect", tmp_path / "a")
    assert f"{model.config.parameter_count():,}" in shown
    assert f"{model.config.flops_per_token():,}" in shown
    facts = json.loads(ok("inspect", tmp_path / "a", "--json"))
    assert facts["shapes"] == {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    assert facts["config"]["context"] == 32

    (tmp_path / "a/tokenizer.json").write_text("{}")
    model.save(tmp_path / "a", {"tokenizer_sha256": "abc"})
    ok("convert", tmp_path / "a", "--out", tmp_path / "c", "--dtype", "bfloat16")
    assert (tmp_path / "c/tokenizer.json").read_text() == "{}"
    assert read_provenance(tmp_path / "c") == {"tokenizer_sha256": "abc"}
    assert torch.equal(Transformer.load(tmp_path / "c").embed.weight, model.embed.weight.bfloat16())


def test_init_zero_residual_and_dtype(tmp_path):
    ok("init", tmp_path / "a", *SMALL, "--residual", "zero", "--dtype", "float16")
    model = Transformer.load(tmp_path / "a")
    assert model.blocks[0].mlp.down.weight.eq(0).all()
    assert model.embed.weight.dtype == torch.float16


def test_plan_counts_what_the_shape_counts():
    shown = ok("plan", "--preset", "gpt2", "--depth", "12", "--tokens", "1e9", "--flops-per-second", "1e14")
    assert "124,439,808" in shown  # OpenAI's GPT-2 small
    assert "1,000,000,000" in shown


def test_plan_names_devices():
    shown = ok("plan", "--depth", 8, "--device", "h100", "--mfu", "0.5")
    assert "50% of h100's 989 TFLOP/s" in shown
    assert "20 per parameter" in shown
    assert "2 x h100's" in ok("plan", "--device", "h100", "--fsdp", "2")


def test_plan_says_what_does_not_fit():
    large = ["plan", "--depth", 48, "--device", "l4"]
    assert "are more than l4 has: --checkpointing" in ok(*large)
    assert json.loads(ok(*large, "--json"))["fits"] is False
    assert "does not fit" not in ok("plan", "--device", "l4")
    assert json.loads(ok("plan", "--device", "l4", "--json"))["fits"] is True


def test_plan_names_every_device_and_whose_memory_it_counts():
    assert "8 (2 data x 4 FSDP x 1 tensor)" in ok("plan", "--data", 2, "--fsdp", 4)
    assert "the CPU path's" in ok("plan", "--device", "h100")
    assert "the CPU path's" in json.loads(ok("plan", "--device", "h100", "--json"))["memory_is"]
    assert "40% of h100's" in ok("plan", "--device", "h100")


def test_plan_as_json():
    scaling = 'rope_scaling={"rope_type":"linear","factor":2.0}'
    assert (
        json.loads(ok("plan", "--preset", "mistral", "--set", scaling, "--json"))["config"]["rope_scaling"]["factor"]
        == 2
    )
    asked = ["plan", "--preset", "gpt2", "--depth", "12", "--device", "h100", "--fsdp", "2", "--price", "2.5", "--json"]
    plan = json.loads(ok(*asked))
    assert (plan["format"], plan["parameters"]) == (1, 124_439_808)
    assert plan["memory"]["weights"] == 2 * 124_439_808
    assert plan["training_seconds"] == pytest.approx(plan["training_flops"] / (0.4 * 2 * 989.4e12))
    assert plan["price"] == pytest.approx(plan["training_seconds"] / 3600 * 2 * 2.5)


def test_help_and_version():
    for arguments in (["--help"], *([name, "--help"] for name in ("init", "inspect", "convert", "plan"))):
        assert "Usage: tinylm-model" in ok(*arguments)
    assert torch.__version__ in ok("--version")


def test_the_examples_of_help_work_as_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = {command.name or command.callback.__name__: command.epilog for command in app.registered_commands}
    for name in ("init", "convert", "inspect", "plan"):
        examples = [line.split()[1:] for line in commands[name].splitlines() if line.startswith("  tinylm-model ")]
        assert examples
        for example in examples:
            ok(*example)


def test_an_output_without_blocks_and_umlauts(tmp_path):
    """As on a console of Windows."""
    command = [sys.executable, "-m", "tinylm.model", "init", tmp_path / "Ü", *SMALL]
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "COLUMNS": "120"}
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert b"\\xdc: qwen3, 1 layers" in done.stdout
    command[3:] = ["inspect", tmp_path / "Ü"]
    shown = subprocess.run(command, env=environment, capture_output=True, check=True).stdout
    assert b"embed.weight" in shown
    assert b"###" in shown


def test_help_does_not_import_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "sys.argv = ['tinylm-model', '--help']\n"
        "from tinylm.model.cli import main\nmain()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_wrong_use_ends_with_2(tmp_path):
    assert "No such option" in refused("plan", "--dpeth", 3, code=2)
    assert "No such command" in refused("invent", code=2)
    assert "gtp2" in refused("init", tmp_path / "a", "--preset", "gtp2", code=2)
    assert refused("convert", tmp_path, code=2)  # --out is missing


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inspect", "absent"], "no config.json"),
        (["convert", "absent", "--out", "x"], "no config.json"),
        (["convert", "model.gguf", "--out", "x"], "check the path"),
        (["inspect", "model.gguf"], "check the path"),
        (["convert", "absent", "--out", "x", "--to", "gguf"], "ends in .gguf"),
        (["convert", "absent", "--out", "x.gguf", "--to", "huggingface"], "wanted a directory"),
        (["convert", "absent", "--out", "nowhere/x.gguf"], "a directory that exists"),
        (["convert", "absent", "--out", "nowhere/x.GGUF"], "a directory that exists"),
        (["convert", "model.GGUF", "--out", "x"], "check the path"),
        (["convert", "absent", "--out", "x.safetensors"], "the name of a file"),
        (["convert", "absent", "--out", "x.PT"], "the name of a file"),
        (["init", "x.gguf"], "the name of a file"),
        (["init", "x", "--preset", "gpt2", "--set", "norm=rmsnorm", "--vocab-size", "4000000000"], "Hugging Face's"),
        (["init", "x", "--set", "context=" + "9" * 5000], "whole number"),
        (["init", "x", "--set", "context=" + "[" * 100_000], "whole number"),
        (["convert", "absent", "--out", "x", "--dtype", "q8_0"], "q8_0 is a type of GGUF's"),
        (["init", "x", "--set", "heads=4", "--set", "kv_heads=3"], "multiple of kv_heads"),
        (["init", "x", "--set", "wdith=5"], "no such field"),
        (["init", "x", "--set", "context"], "FIELD=VALUE"),
        (["init", "x", "--set", "depth=3"], "--depth"),
        (["init", "x", "--set", "context=many"], "whole number"),
        (["plan", "--device", "abacus"], "h100"),
        (["plan", "--device", "h100", "--flops-per-second", "1e9"], "got both"),
        (["plan", "--device", "h100", "--mfu", "40"], "--mfu"),
        (["plan", "--mfu", "9"], "at most 1, got 9"),
        (["plan", "--mfu", "0.5"], "--device"),
        (["plan", "--mfu", "0.5", "--flops-per-second", "1e9"], "--device"),
        (["plan", "--device", "h100", "--dtype", "float32"], "bfloat16"),
        (["plan", "--tokens", "5", "--flops-per-second", "0"], "above 0"),
        (["plan", "--flops-per-second", "inf"], "--flops-per-second"),
        (["plan", "--tokens", "nan"], "--tokens"),
        (["plan", "--price", "2"], "got neither"),
        (["plan", "--price", "nan", "--device", "h100"], "--price"),
        (["plan", "--tensor", "3"], "tensor to divide"),
    ],
)
def test_bad_input_is_one_line_and_1(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refused(*arguments)
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert words in message
    assert list(tmp_path.iterdir()) == []


def test_what_torch_has_no_room_for_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wide = ["--set", "width=100000000", "--set", "heads=1", "--set", "kv_heads=1"]  # 1.6e18 bytes: nowhere to be had
    message = refused("init", "x", "--vocab-size", 4_000_000_000, *wide)
    assert message.startswith("error: wanted memory")
    assert message.count("\n") == 1
    assert "--seed" in refused("init", "x", *SMALL, "--seed", 10**22, code=2)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path):
    ok("init", tmp_path / "a", *SMALL)
    ok("init", tmp_path / "b", *SMALL, "--seed", 1)
    assert "without a model" in refused("convert", tmp_path / "b", "--out", tmp_path / "a")
    before = (tmp_path / "a/model.safetensors").read_bytes()
    assert "without a model" in refused("init", tmp_path / "a", *SMALL)
    assert "another place" in refused("convert", tmp_path / "a", "--out", tmp_path / "a", "--dtype", "bfloat16")
    assert (tmp_path / "a/model.safetensors").read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_one_line(tmp_path):
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "tinylm.model", "plan"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "No space" in done.stderr
    assert done.stderr.count("\n") == 1


STOPS = {
    "no room": (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 1, "No space left on device; free some space"),
    "no permission": (PermissionError(errno.EACCES, os.strerror(errno.EACCES)), 1, "Permission denied; change its"),
    "Ctrl-C": (KeyboardInterrupt(), 130, "interrupted"),
}
PLACES = {  # what fails while --out is written
    "x.gguf": ("tinylm.model.gguf.writer.encode", "tinylm.model._atomic.os.fsync", "tempfile.mkstemp"),
    "x": ("tinylm.model.checkpoint.save_file", "tinylm.model._convert.shutil.copyfile", "tempfile.mkstemp"),
}


@pytest.mark.parametrize(("out", "place"), [(out, place) for out, places in PLACES.items() for place in places])
@pytest.mark.parametrize("stop", STOPS)
def test_a_convert_that_ends_early_leaves_nothing(stop, out, place, tmp_path, monkeypatch):
    ok("init", tmp_path / "a", *SMALL)
    (tmp_path / "a/generation_config.json").write_text("{}")
    error, code, words = STOPS[stop]

    def end(*_, **__):
        raise error

    monkeypatch.setattr(place, end)
    message = refused("convert", tmp_path / "a", "--out", tmp_path / out, code=code)
    assert words in message
    assert message.count("\n") == 1
    assert stop == "Ctrl-C" or f"{tmp_path / out}" in message
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("number", "named"), [(errno.EACCES, "a/tokenizer.model"), (errno.ENOSPC, "b/tokenizer.model")]
)
def test_whether_reading_or_writing_failed_is_said(number, named, tmp_path, monkeypatch):
    ok("init", tmp_path / "a", *SMALL)
    (tmp_path / "a/tokenizer.model").write_text("x")

    def copyfile(source, target):  # as shutil's raises them
        pair = (source,) if number == errno.EACCES else (source, None, target)
        raise OSError(number, os.strerror(number), *(path and str(path) for path in pair))

    monkeypatch.setattr("shutil.copyfile", copyfile)
    message = refused("convert", tmp_path / "a", "--out", tmp_path / "b")
    assert message.startswith(f"error: {tmp_path / named}: wanted to read or write it")
    assert not (tmp_path / "b").exists()


def test_a_file_that_may_not_be_read_is_named(tmp_path):
    ok("init", tmp_path / "a", *SMALL)
    path = tmp_path / "a/model.safetensors"
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("root may read everything")
    assert refused("inspect", tmp_path / "a").startswith(f"error: {path}: wanted to read or write it, got: Permission")


def test_a_gguf_file_is_known_by_how_it_begins(tmp_path):
    ok("init", tmp_path / "a", *SMALL)
    ok("convert", tmp_path / "a", "--out", tmp_path / "a.gguf")
    assert "which exists" in refused("convert", tmp_path / "a", "--out", tmp_path / "a.gguf", "--dtype", "q8_0")
    (tmp_path / "a.gguf").rename(tmp_path / "sha256-0123")  # as caches name it
    assert "GGUF version 3" in ok("inspect", tmp_path / "sha256-0123")
    ok("convert", tmp_path / "sha256-0123", "--out", tmp_path / "b")
    assert "got a file" in refused("convert", tmp_path / "b", "--out", tmp_path / "sha256-0123")


def test_experts_windows_and_stretched_rope_in_the_commands(tmp_path):
    yarn = {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 64}
    fields = ["--set", "window=20", "--set", f"rope_scaling={json.dumps(yarn)}"]
    ok("init", tmp_path / "a", *SMALL, "--preset", "qwen3-moe", *fields)
    shown = ok("inspect", tmp_path / "a")
    assert all(words in shown for words in ("2 of 8 experts", "a window of 20", "stretched (yarn)", "a token meets"))
    config = json.loads(ok("inspect", tmp_path / "a", "--json"))["config"]
    assert (config["window"], config["experts"], config["rope_scaling"]["factor"]) == (20, 8, 4)
    assert "2 of 8 experts" in ok("plan", "--preset", "qwen3-moe")
    json.loads(ok("plan", "--preset", "qwen3-moe", *fields, "--json"))
    for wrong in ("window=0", "experts_per_token=9", 'rope_scaling={"rope_type":"spiral"}'):
        assert "wanted" in refused("init", tmp_path / "b", *SMALL, "--preset", "qwen3-moe", "--set", wrong)
    assert not (tmp_path / "b").exists()
