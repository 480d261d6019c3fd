"""Over two processes: what cannot be shared is refused in words, and what all must do alike, all do alike."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tinylm import observability as obs
from tinylm.training import TokenDataset, Trainer, TrainingError
from tinylm.training.launched import refuse_many_processes
from tinylm.training.strategy import SingleProcess

LAST = {"depth": 1, "batch_size": 4, "steps": 4, "validate_every": 4, "checkpoint_every": 4, "process_timeout": 120.0}


def test_torchrun_starts_it_and_repeats_its_error(tiny, tmp_path):
    config = tiny(tmp_path / "m", **LAST)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tinylm.training", "pretrain", "--data", config.data, "--out", config.out, "--width", "64"]
    command += ["--depth", "1", "--context", "16", "--steps", "2", "--device", "cpu", "--threads", "1"]
    environment = {**os.environ, "COLUMNS": "200"}
    for flag, words in (
        ("--batch-size", "wanted a batch that 2 processes can share equally, got 3 windows: give --batch-size 2 or 4"),
        ("--tensor-parallel", "wanted --tensor-parallel to divide the number of processes, got 3 and 2: start with"),
    ):
        done = subprocess.run([*command, flag, "3"], capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 1
        assert f"error: {words}" in done.stderr
        assert words in done.stderr.partition("Root Cause")[2]  # where one looks when torchrun has filled the screen
        assert done.stderr.count("Traceback") == 1  # torchrun's own
        assert not (tmp_path / "m").exists()
    done = subprocess.run([*command, "--batch-size", "4"], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished: 2 steps") == 1
    assert [row["step"] for row in obs.read_metrics(tmp_path / "m" / "run")] == [1, 2]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"batch_size": 2, "accumulate": 2},
            "2 processes can share equally in 2 parts each, got 2 windows: give --batch",
        ),
        ({"tensor_parallel": 2}, "--tensor-parallel 2 divides, and no experts, got heads 1, kv_heads 1"),
        ({"tensor_parallel": 3}, "wanted --tensor-parallel to divide the number of processes, got 3 and 2"),
    ],
)
def test_what_cannot_be_shared_is_refused(tiny, together, tmp_path, options, words):
    run = together(tiny(tmp_path / "m", **{**LAST, **options}), tmp_path)
    assert run.wait() == [1, 1], run.said
    assert words in run.said
    assert "Traceback" not in run.said
    assert not (tmp_path / "m").exists()


def test_options_for_many_processes_want_many(tiny, tmp_path):
    with pytest.raises(TrainingError, match=r"got 2 and 1: start with torchrun --nproc-per-node 2"):
        Trainer(tiny(tmp_path / "m", tensor_parallel=2))


@pytest.mark.parametrize("command", ["prepare", "finetune", "evaluate"])
def test_what_works_in_one_process_refuses_many(monkeypatch, run, command):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = run(command, "x", "--data", "x", "--out", "x")
    assert (code, err) == (1, f"error: wanted one process for {command}, got 2: start it without torchrun\n")
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(TrainingError, match="WORLD_SIZE, got 'many'"):
        refuse_many_processes(command)


def test_minutes_are_measured_by_one_and_agreed_by_all(tiny, together, tmp_path):
    config = tiny(tmp_path / "m", **{**LAST, "steps": None, "minutes": 0.02, "validate_every": 1000})
    run = together(config, tmp_path)
    assert run.wait() == [0, 0], run.said
    rows = obs.read_metrics(tmp_path / "m" / "run")
    assert f"finished: {len(rows)} steps" in run.said
    assert run.said.count(f"(the same again: --steps {len(rows)}") == 1


SPIKE = """
from tinylm.training import step
plain = step.Step.gradient
def gradient(self, inputs, targets):
    self.calls = getattr(self, "calls", 0) + 1
    if self.calls == 6 and self.strategy.rank == 1:  # in the part of the batch that the writer does not see
        with __import__("torch").no_grad():
            self.model.blocks[0].mlp.down.weight[0, 0] = float("nan")
        found = plain(self, inputs, targets)
        self.model.blocks[0].mlp.down.weight.data[0, 0] = 0.0
        return found
    return plain(self, inputs, targets)
step.Step.gradient = gradient
"""


def test_a_divergence_that_one_process_sees_is_every_ones(tiny, together, tmp_path):
    config = tiny(tmp_path / "m", **{**LAST, "steps": 8, "on_divergence": "skip"})
    run = together(config, tmp_path, before=SPIKE)
    assert run.wait() == [0, 0], run.said
    rows = obs.read_metrics(tmp_path / "m" / "run")
    assert [row["step"] for row in rows if "skipped" in row] == [6]
    assert "the loss is nan" in rows[5]["skipped"]
    assert "finished: 8 steps" in run.said


def test_more_processes_than_shards(tiny, house, together, tmp_path):
    """Rows are shared out, not shards: a data set of one shard serves any number of processes."""
    assert len(TokenDataset(house.data, "train").shards) == 1
    run = together(tiny(tmp_path / "m", **LAST), tmp_path, 4)
    assert run.wait() == [0] * 4, run.said


def test_hosts_with_other_data_are_told(tiny, house, other_house, together, tmp_path):
    """The second process finds another data set at the same path, as on a host of its own."""
    data = tmp_path / "data"
    shutil.copytree(house.data, data)
    before = f"""
import os
from tinylm.training import _setup
plain = _setup.TokenDataset
_setup.TokenDataset = lambda folder, split: plain([folder, {str(other_house.data)!r}][int(os.environ["RANK"])], split)
"""
    run = together(tiny(tmp_path / "m", **{**LAST, "data": str(data)}), tmp_path, before=before)
    assert run.wait() == [1, 1], run.said
    assert f"wanted the same data set on every host, got different ones at {data}" in run.said


def test_hosts_that_do_not_see_the_folder_are_told(tiny, together, tmp_path):
    before = """
import os, pathlib
exists = pathlib.Path.exists
pathlib.Path.exists = lambda self, **more: exists(self, **more) and (
    ".processes" not in self.name or os.environ["RANK"] == "0")
"""
    run = together(tiny(tmp_path / "m", **LAST), tmp_path, before=before)
    assert run.wait() == [1, 1], run.said
    assert "give an --out on a file system that all of them share" in run.said


def test_a_stop_that_is_asked_for_while_processes_agree_is_not_lost(tiny, tmp_path):
    class Slow(SingleProcess):
        asked = 0

        def any(self, flag):
            self.asked += 1
            if self.asked == 3:
                trainer.request_stop()  # as a signal does, while the others are being heard
            return flag

    trainer = Trainer(tiny(tmp_path / "m"), strategy=Slow())
    assert trainer.train().step == 3
    assert sorted(p.name for p in (tmp_path / "m" / "steps").iterdir()) == ["00000003"]


SIGNALLED = """
from tinylm.training import trainer
plain = trainer.Trainer._advance
def advance(self, *arguments):
    plain(self, *arguments)
    print("step", self.progress.step, flush=True)
trainer.Trainer._advance = advance
"""


def test_ctrl_c_reaches_all_and_they_save_together(tiny, together, tmp_path):
    config = tiny(tmp_path / "m", **{**LAST, "steps": 100_000, "validate_every": 100_000, "checkpoint_every": 100_000})
    run = together(config, tmp_path, before=SIGNALLED)
    deadline = time.monotonic() + 120
    while not all("step 5" in log.read_text() for log in run.logs if log.exists()) or "step 5" not in run.said:
        assert time.monotonic() < deadline, run.said
        time.sleep(0.01)
    for process in run:
        os.kill(process.pid, signal.SIGINT)
    assert run.wait() == [130, 130], run.said
    (folder,) = (tmp_path / "m" / "steps").iterdir()
    assert f"stopped after step {int(folder.name)} of 100000" in run.said
    assert obs.read_run(tmp_path / "m" / "run")["status"] == "interrupted"
