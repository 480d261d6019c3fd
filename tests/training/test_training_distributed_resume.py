"""A run over two processes that stops, or loses one of them: the others say so, and any number of processes goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time

import pytest
from safetensors.numpy import load_file

from tinylm import observability as obs
from tinylm.training import Trainer

FSDP = {"data_parallel": "fsdp"}
LOGGED = ("loss", "gradient_norm", "learning_rate", "tokens", "sample", "validation_bits_per_character")
# The second process alone is asked to stop: the first, which writes, has to hear of it.
STOP_AFTER_10 = """
from tinylm.training import trainer
plain = trainer.Trainer._advance
def advance(self, *arguments):
    plain(self, *arguments)
    if self.progress.step == 10 and self.strategy.rank == self.strategy.world_size - 1:
        self.request_stop()
trainer.Trainer._advance = advance
"""
ENDLESS = """
import time
from tinylm.training import trainer
plain = trainer.Trainer._advance
def advance(self, *arguments):
    plain(self, *arguments)
    if self.progress.step == 7:
        print("after step 7", flush=True)
        if self.strategy.rank == 1:
            time.sleep(600)
trainer.Trainer._advance = advance
"""


@pytest.fixture(scope="module")
def options(tiny):
    """Epochs of 148 windows: the run goes through the border of two."""
    shape = {"depth": 1, "batch_size": 8, "steps": 20, "warmup_steps": 2, "average": 0.9, "validate_every": 10}
    return lambda out, **more: tiny(out, **{**shape, "process_timeout": 120.0, **more})


def rows(out) -> dict[int, tuple]:
    return {row["step"]: tuple(row.get(name) for name in LOGGED) for row in obs.read_metrics(out / "run")}


def state(out) -> dict:
    return json.loads((max((out / "steps").iterdir()) / "state.json").read_text("utf-8"))


def assert_close(out, wanted) -> None:
    ours, theirs = rows(out), rows(wanted)
    assert list(ours) == list(theirs) == list(range(1, 21))
    for step, row in ours.items():
        for mine, other in zip(row, theirs[step], strict=True):
            assert mine == (pytest.approx(other, abs=1e-5) if isinstance(other, float) else other), step
    for name in ("loader", "step", "rng", "optimizer", "total_steps"):
        assert state(out)[name] == state(wanted)[name]
    left, right = load_file(out / "model.safetensors"), load_file(wanted / "model.safetensors")
    for name, value in left.items():
        assert value == pytest.approx(right[name], abs=1e-4), name


@pytest.fixture(scope="module")
def alone(options, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "m"
    Trainer(options(out)).train()
    return out


@pytest.fixture(scope="module")
def stopped(options, together, tmp_path_factory):
    """Stopped after step 10 by two processes that have a part of the state each."""
    folder = tmp_path_factory.mktemp("stopped")
    run = together(options(folder / "m", **FSDP), folder, before=STOP_AFTER_10)
    assert run.wait() == [130, 130], run.said
    assert f"stopped after step 10 of 20; the model is saved in {folder / 'm'}" in run.said
    return folder / "m"


def test_both_write_their_parts_of_the_state(stopped):
    folder = stopped / "steps" / "00000010"
    files = sorted(folder.glob("state/*.safetensors"))
    assert len(files) == 2
    whole = load_file(folder / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    parts = [load_file(file)["muon.blocks.0.mlp.up.weight.momentum_buffer"] for file in files]
    assert [len(part) for part in parts] == [len(whole) // 2] * 2
    assert set(state(stopped)["sha256"]) >= {file.relative_to(folder).as_posix() for file in files}
    assert not list(stopped.rglob("*.metadata"))  # torch's own storage, which pickles


@pytest.mark.parametrize("how", [{}, FSDP], ids=["ddp", "fsdp"])
def test_saved_by_two_it_goes_on_with_two_bit_for_bit(options, together, stopped, alone, tmp_path, how):
    shutil.copytree(stopped, tmp_path / "m")
    run = together(options(tmp_path / "m", **how), tmp_path)
    assert run.wait() == [0, 0], run.said
    assert "continuing after step 10" in run.said
    assert_close(tmp_path / "m", alone)
    if how == FSDP:
        unbroken = together(options(tmp_path / "unbroken", **FSDP), tmp_path / "logs")
        assert unbroken.wait() == [0, 0], unbroken.said
        assert rows(tmp_path / "m") == rows(tmp_path / "unbroken")


def test_saved_by_two_it_goes_on_alone(options, stopped, alone, tmp_path):
    shutil.copytree(stopped, tmp_path / "m")
    said = []
    assert Trainer(options(tmp_path / "m"), say=said.append).train().finished
    assert "continuing after step 10" in said
    assert_close(tmp_path / "m", alone)


def test_saved_by_one_it_goes_on_with_two(options, together, alone, tmp_path):
    trainer = Trainer(options(tmp_path / "m"))
    trainer.report = lambda status: trainer.request_stop() if status.step == 10 else None
    assert not trainer.train().finished
    run = together(options(tmp_path / "m", **FSDP), tmp_path)
    assert run.wait() == [0, 0], run.said
    assert_close(tmp_path / "m", alone)


def until(condition, run) -> None:
    deadline = time.monotonic() + 120
    while not condition() and all(process.is_alive() for process in run):
        assert time.monotonic() < deadline, run.said
        time.sleep(0.01)


def test_when_one_is_killed_the_other_says_so_and_the_same_command_goes_on(options, together, alone, tmp_path):
    run = together(options(tmp_path / "m", checkpoint_every=3), tmp_path, before=ENDLESS)
    written = tmp_path / "m" / "steps" / "00000006"  # beside the steps, so that it may come later than they
    until(lambda: run.said.count("after step 7") == 2 and written.is_dir(), run)
    os.kill(run[1].pid, signal.SIGKILL)
    assert run.wait() == [1, -signal.SIGKILL], run.said
    (line,) = (line for line in run.logs[0].read_text().splitlines() if line.startswith("error:"))
    assert "process 0 on " in line
    assert "another process of this run has ended" in line
    assert "The same command again goes on from the last checkpoint" in line
    assert "Traceback" not in run.said
    assert obs.read_run(tmp_path / "m" / "run")["status"] == "failed"
    again = together(options(tmp_path / "m", checkpoint_every=3), tmp_path / "again")
    assert again.wait() == [0, 0], again.said
    assert "continuing after step 6" in again.said
    assert_close(tmp_path / "m", alone)


def test_one_that_does_not_answer_is_given_up(options, together, tmp_path):
    run = together(options(tmp_path / "m", process_timeout=5.0, validate_every=20), tmp_path, before=ENDLESS)
    until(lambda: run.said.count("after step 7") == 2, run)
    run[0].join(240)
    assert run[0].exitcode == 1, run.said
    assert "has not answered for 5 s" in run.logs[0].read_text()
    run[1].kill()
