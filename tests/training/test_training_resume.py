"""Nothing is lost: kill -9 at random moments, Ctrl-C, damaged checkpoints, a full disk; bit for bit."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tinylm import observability as obs
from tinylm.training import Trainer, TrainingError

LOGGED = ("loss", "gradient_norm", "learning_rate", "bits_per_character", "tokens", "sample")
LOGGED += ("validation_bits_per_character",)


def outcome(out) -> dict:
    """All that a run leaves but its times: tensors, state, and every logged number of the highest attempt."""
    newest = max((out / "steps").iterdir(), key=lambda p: p.name)
    state = json.loads((newest / "state.json").read_text("utf-8"))
    for name in ("seconds", "seal", "sha256"):  # torch writes the same tensors into a file in no fixed order
        state.pop(name)
    tensors = {}
    for path in [newest / "model.safetensors", *(newest / "state").glob("*.safetensors")]:
        for name, value in load_file(path).items():
            tensors[f"{path.name}:{name}"] = value.tobytes()
    assert (out / "model.safetensors").read_bytes() == (newest / "model.safetensors").read_bytes()
    rows = {row["step"]: tuple(row.get(name) for name in LOGGED) for row in obs.read_metrics(out / "run")}
    return {**{f"state: {name}": value for name, value in state.items()}, "tensors": tensors, "rows": rows}


def rows_written(out) -> int:
    path = out / "run" / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for(condition, process) -> None:
    """Until it holds or the process has ended."""
    deadline = time.monotonic() + 120
    while not condition() and process.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture(scope="module")
def options(tiny, tmp_path_factory):
    """Options of a run of some epochs (74 windows each), with validation and checkpoints now and then."""

    def make(out):
        return tiny(out, steps=60, batch_size=3, context=32, checkpoint_every=7, validate_every=10, warmup_steps=5)

    return make


@pytest.fixture(scope="module")
def unbroken(options, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken") / "m"
    Trainer(options(out)).train()
    return out


@pytest.fixture(scope="module")
def stopped(options, tmp_path_factory):
    out = tmp_path_factory.mktemp("stopped") / "m"
    trainer = Trainer(options(out))
    trainer.report = lambda status: trainer.request_stop() if status.step == 21 else None
    trainer.train()
    return out


@pytest.fixture
def broken_off(stopped, tmp_path):
    """A run that was stopped after step 21, with the checkpoints of steps 14 and 21."""
    shutil.copytree(stopped, tmp_path / "m")
    assert sorted(p.name for p in (tmp_path / "m" / "steps").iterdir()) == ["00000014", "00000021"]
    return tmp_path / "m"


def test_killed_at_random_moments_it_ends_the_same(options, unbroken, start, tmp_path):
    out, kills, draw = tmp_path / "m", 0, random.Random(os.urandom(8))
    while True:
        process = start(options(out), tmp_path / "log.txt")
        seen = rows_written(out)
        more = draw.randint(4, 20) if kills < 5 else 10**9
        wait_for(lambda seen=seen, more=more: rows_written(out) >= seen + more, process)
        time.sleep(draw.random() * 0.02)
        if process.is_alive():
            kills += more < 10**9
            process.kill()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL, (tmp_path / "log.txt").read_text()
    assert kills >= 2
    assert obs.read_run(out / "run")["attempt"] == kills + 1
    assert outcome(out) == outcome(unbroken)
    hidden = [p.name for p in [*out.iterdir(), *(out / "steps").iterdir()] if p.name.startswith(".")]
    assert hidden == []
    assert "continuing after step" in (tmp_path / "log.txt").read_text()


def test_ctrl_c_saves_and_says_how_to_go_on(options, unbroken, start, tmp_path):
    out, log = tmp_path / "m", tmp_path / "log.txt"
    process = start(options(out), log)
    wait_for(lambda: rows_written(out) >= 10, process)
    os.kill(process.pid, signal.SIGINT)
    process.join()
    said = log.read_text()
    assert process.exitcode == 130, said
    assert "Traceback" not in said
    assert "stopping after this step (Ctrl-C again: at once" in said
    newest = max((out / "steps").iterdir(), key=lambda p: p.name)
    step = int(newest.name)
    assert f"stopped after step {step} of 60; the model is saved in {out}. The same command again goes on." in said
    assert step == rows_written(out)  # not one step is lost
    process = start(options(out), log)
    process.join()
    assert process.exitcode == 0
    assert f"continuing after step {step}" in log.read_text()
    assert outcome(out) == outcome(unbroken)
    process = start(options(out), log)
    process.join()
    assert process.exitcode == 0
    assert "already finished: 60 steps" in log.read_text()


ENDLESS_STEP = """
import time
from tinylm.training import checked_step
checked_step.CheckedStep.take = lambda *arguments: print("stepping", flush=True) or time.sleep(600)
"""


def test_a_second_ctrl_c_stops_at_once(tiny, start, tmp_path):
    out, log = tmp_path / "m", tmp_path / "log.txt"
    process = start(tiny(out, steps=5, checkpoint_every=1), log, before=ENDLESS_STEP)
    wait_for(lambda: log.exists() and "stepping" in log.read_text(), process)
    os.kill(process.pid, signal.SIGINT)
    wait_for(lambda: "Ctrl-C again" in log.read_text(), process)
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 130, log.read_text()
    assert "Traceback" not in log.read_text()
    assert rows_written(out) == 0  # it did not wait for the step
    assert not list((out / "steps").glob("*"))
    assert obs.read_run(out / "run")["status"] == "interrupted"


def flip(path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def halve(path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change_a_number(path) -> None:
    path.write_text(path.read_text("utf-8").replace('"index": ', '"index": 1'), "utf-8")


STATE = "state/shard-00001-model-00001-of-00001.safetensors"


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", flip),
        ("model.safetensors", halve),
        ("model.safetensors", lambda p: p.unlink()),
        (STATE, flip),
        ("config.json", halve),
        ("state.json", halve),
        ("state.json", lambda p: p.unlink()),
        ("state.json", lambda p: p.write_bytes(b"\xff garbage")),
        ("state.json", lambda p: p.write_text('{"format": 1}')),
        ("state.json", lambda p: p.write_text('{"format": 1, "sha256": []}')),
        ("state.json", change_a_number),
    ],
)
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(broken_off, options, unbroken, name, damage):
    damage(broken_off / "steps" / "00000021" / name)
    said = []
    assert Trainer(options(broken_off), say=said.append).train().finished
    (message,) = (line for line in said if "damaged" in line)
    assert "00000021" in message
    assert name in message
    assert "continuing after step 14" in said
    assert outcome(broken_off) == outcome(unbroken)


def test_what_falls_back_is_published_and_the_damaged_one_goes(broken_off, options):
    flip(broken_off / "steps" / "00000021" / "model.safetensors")
    trainer = Trainer(options(broken_off))
    seen = []

    def stop(status):
        seen.append((broken_off / "model.safetensors").read_bytes())
        trainer.request_stop()

    before = (broken_off / "steps" / "00000014" / "model.safetensors").read_bytes()
    trainer.report = stop
    assert trainer.train().step == 15
    assert seen == [before]  # from the start, the top is the newest whole model
    assert sorted(p.name for p in (broken_off / "steps").iterdir()) == ["00000014", "00000015"]


def test_every_checkpoint_damaged_is_an_error(broken_off, options):
    for folder in (broken_off / "steps").iterdir():
        halve(folder / "model.safetensors")
    with pytest.raises(TrainingError, match=r"every checkpoint in .*steps is damaged"):
        Trainer(options(broken_off)).train()


def test_a_checkpoint_of_a_later_format_is_refused_and_kept(broken_off, options):
    path = broken_off / "steps" / "00000021" / "state.json"
    path.write_text(path.read_text("utf-8").replace('"format": 1', '"format": 2'), "utf-8")
    with pytest.raises(TrainingError, match="later version"):
        Trainer(options(broken_off)).train()
    assert path.exists()


def test_a_kill_before_publishing_is_made_good(broken_off, options):
    (broken_off / "model.safetensors").write_bytes(b"of an earlier step")
    trainer = Trainer(options(broken_off))
    trainer.request_stop()
    trainer.train()
    newest = broken_off / "steps" / "00000021" / "model.safetensors"
    assert (broken_off / "model.safetensors").read_bytes() == newest.read_bytes()


def test_what_a_killed_run_left_is_removed(broken_off, options):
    left = [broken_off / "steps" / ".00000028.1.tmp", broken_off / ".model.safetensors.1.tmp"]
    left[0].mkdir()
    (left[0] / "model.safetensors").write_bytes(b"half")
    left[1].write_bytes(b"half")
    assert Trainer(options(broken_off)).train().finished
    assert not any(path.exists() for path in left)


def test_precision_and_threads_stay_what_they_were(broken_off, options, monkeypatch):
    import torch

    said = []
    monkeypatch.setattr("tinylm.training.device.pick_dtype", lambda name, device, seconds: torch.bfloat16)
    trainer = Trainer(options(broken_off), say=said.append)
    trainer.request_stop()
    trainer.train()
    assert trainer.dtype == torch.float32
    assert any("in float32 on 1 thread, as the run began" in line for line in said)


@pytest.mark.parametrize("limit", [60_000, 350_000])
def test_a_full_disk_keeps_the_last_good_checkpoint(broken_off, options, unbroken, start, tmp_path, limit):
    before = {p: p.read_bytes() for p in (broken_off / "steps").rglob("*") if p.is_file()}
    sizes = sorted(len(content) for content in before.values())
    assert sizes[-1] > limit > sizes[0]
    log = tmp_path / "log.txt"
    process = start(options(broken_off), log, limit=limit)
    process.join()
    said = log.read_text()
    assert process.exitcode == 1, said
    assert "Traceback" not in said
    (line,) = (line for line in said.splitlines() if line.startswith("error:"))
    assert "File too large" in line
    assert {p: p.read_bytes() for p in (broken_off / "steps").rglob("*") if p.is_file()} == before
    assert sorted(p.name for p in (broken_off / "steps").iterdir()) == ["00000014", "00000021"]
    assert Trainer(options(broken_off)).train().finished  # there is room again
    assert outcome(broken_off) == outcome(unbroken)


def test_a_second_process_is_refused_in_words_and_a_killed_one_is_no_obstacle(options, unbroken, start, tmp_path):
    out = tmp_path / "m"
    first = start(options(out), tmp_path / "first.txt")
    wait_for(lambda: rows_written(out) > 3, first)
    os.kill(first.pid, signal.SIGSTOP)  # it stays alive, and does not finish meanwhile
    try:
        with pytest.raises(TrainingError, match=r"another process is writing.*another --out"):
            Trainer(options(out)).train()
    finally:
        first.kill()
        first.join()
    assert Trainer(options(out)).train().finished
    assert outcome(out) == outcome(unbroken)


def test_a_run_killed_between_its_last_checkpoint_and_its_end_is_closed_by_the_same_command(
    options, unbroken, tmp_path
):
    out = Path(shutil.copytree(unbroken, tmp_path / "m"))
    path = out / "run" / "run.json"
    path.write_text(path.read_text("utf-8").replace('"finished"', '"running"', 1), "utf-8")
    assert obs.read_run(out / "run")["status"] == "unfinished"
    metrics = (out / "run" / "metrics.jsonl").read_bytes()
    assert Trainer(options(out)).train().finished
    assert (obs.read_run(out / "run")["status"], obs.read_run(out / "run")["attempt"]) == ("finished", 2)
    assert Trainer(options(out)).train().finished
    assert obs.read_run(out / "run")["attempt"] == 2
    assert (out / "run" / "metrics.jsonl").read_bytes() == metrics
