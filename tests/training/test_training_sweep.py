"""The scaling-law sweep: fits find the laws that points were made from; runs spend equal FLOPs and go on."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from pathlib import Path

import pytest
import torch

from tinylm import observability as obs
from tinylm.training import TrainConfig, TrainingError, sweep
from tinylm.training.checked_step import CheckedStep
from tinylm.training.scaling_law import Law, Point, isoflops, law, optimum

TRUE = Law(e=1.7, a=40.0, alpha=0.34, b=90.0, beta=0.28, error=0.0)


def points(budgets=(1e12, 1e13, 1e14), sizes=(1e4, 3e4, 1e5, 3e5, 1e6, 3e6), of=TRUE):
    return [
        Point(flops, int(size), int(flops / 6 / size), of.loss(int(size), int(flops / 6 / size)))
        for flops in budgets
        for size in sizes
    ]


def test_the_law_that_losses_were_made_from_is_found():
    found = law(points())
    assert found is not None
    assert (found.e, found.alpha, found.beta) == pytest.approx((1.7, 0.34, 0.28), rel=0.02)
    assert found.error < 1e-4
    assert found.loss(1e7, 1e9) == pytest.approx(TRUE.loss(1e7, 1e9), rel=1e-3)


def test_a_floor_below_zero_is_none():
    found = law(points(of=Law(-0.5, 40.0, 0.2, 90.0, 0.28, 0.0)))
    assert found is not None
    assert found.e == 0.0


def test_parabolas_find_the_best_size_and_its_power():
    """Losses made as parabolas about 3 · C^0.4."""
    made = [
        Point(flops, int(size), 1, 2.0 + 0.1 * (math.log(int(size)) - math.log(3 * flops**0.4)) ** 2)
        for flops in (1e9, 1e11, 1e13)
        for size in (1e4, 3e4, 1e5, 3e5, 1e6)
    ]
    curves = isoflops(made)
    assert [curve.flops for curve in curves] == [1e9, 1e11, 1e13]
    assert [curve.inside for curve in curves] == [True, True, True]
    best = optimum(curves)
    assert best is not None
    assert (best.exponent, best.coefficient) == pytest.approx((0.4, 3.0), rel=1e-6)
    assert best.parameters(1e10) == pytest.approx(3e4, rel=1e-6)


def test_a_best_size_at_the_edge_is_said_to_be_there_and_counts_for_nothing():
    falling = [Point(1e12, n, 1, 5 - 0.1 * math.log(n)) for n in (10_000, 30_000, 100_000)]
    (curve,) = isoflops(falling)
    assert not curve.inside
    assert curve.parameters == pytest.approx(100_000)
    assert optimum([curve, curve]) is None
    assert isoflops(falling[:2]) == []
    assert law(falling) is None


@pytest.fixture
def config(house, tmp_path):
    return TrainConfig(
        data=str(house.data), out=str(tmp_path / "s"), width=64, context=16, batch_size=2, threads=1, dtype="float32",
        device="cpu", compile="never", validate_every=10**6, checkpoint_every=10**6,
    )  # fmt: skip


def test_every_depth_of_a_budget_spends_the_same(config):
    runs = sweep.plan(config, [3, 1, 2], [2e9, 1e9])
    assert [run.flops for run in runs] == [1e9] * 3 + [2e9] * 3
    for run in runs:
        one, shape = run.config.resolve(320)
        assert run.tokens == (one.steps or 0) * 32
        assert run.tokens * shape.flops_per_token() == pytest.approx(run.flops, rel=0.05)
    assert len({run.parameters for run in runs}) == 3


@pytest.mark.parametrize(
    ("depths", "budgets", "words"),
    [
        ([1], [1e6], "at least 10 steps, got 0"),
        ([0], [1e9], "above 0, got 0"),
        ([1], [math.nan], "above 0, got nan"),
        ([1.5, 2], [1e9], "whole numbers of layers, got 1.5"),
    ],
)
def test_budgets_that_say_nothing_are_refused(config, depths, budgets, words):
    with pytest.raises(TrainingError, match=words):
        sweep.plan(config, depths, budgets)


def test_the_command_runs_fits_plots_and_goes_on(run, config, house, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    options = ("width", "context", "batch_size", "threads", "dtype", "device", "compile", "checkpoint_every")
    toml = tmp_path / "run.toml"
    toml.write_text("".join(f"{name} = {json.dumps(getattr(config, name))}\n" for name in options), "utf-8")
    out = tmp_path / "s"
    command = ["sweep", "--data", house.data, "--out", out, "--config", toml, "--depths", "1,2,3"]
    command += ["--flops", "6e8,1e9"]
    code, said, err = run(*command, "--dry-run")
    assert (code, err, said.count("\n")) == (0, "", 6)
    assert not out.exists()

    trained = sweep.Trainer.train

    def stopping(trainer):
        if trainer.out.name == "flops-6e+08-depth-3":
            trainer.request_stop()
        return trained(trainer)

    monkeypatch.setattr(sweep.Trainer, "train", stopping)
    code, said, _ = run(*command)
    assert code == 130
    assert "The same command again goes on" in said
    assert not (out / "sweep.json").exists()
    monkeypatch.setattr(sweep.Trainer, "train", trained)
    code, said, err = run(*command)
    assert code == 0, err
    assert len(re.findall(r"^step \d+/\d+ · loss \d+\.\d+ · seconds left 0$", said, re.M)) == 4  # what was not run yet
    found = json.loads((out / "sweep.json").read_text("utf-8"))
    assert len(found["runs"]) == 6
    assert len(found["isoflop"]) == 2
    assert found["law"]["error"] < 0.5
    assert "loss: " in said
    assert "</svg>" in (out / "sweep.svg").read_text("utf-8")
    for one in found["runs"]:
        row = obs.read_metrics(out / one["name"] / "run")[-1]
        assert row["step"] * 32 == one["tokens"]
        assert one["loss"] == pytest.approx(_nats(row, house))
    attempts = {path.name: obs.read_run(path / "run")["attempt"] for path in out.iterdir() if path.is_dir()}
    assert attempts.pop("flops-6e+08-depth-3") == 2
    assert set(attempts.values()) == {1}

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, said, err = run(*command)  # nothing is trained again
    assert (code, json.loads((out / "sweep.json").read_text("utf-8"))) == (0, found), err
    assert (
        'No picture: wanted matplotlib to draw the sweep, got no such package: pip install "tinylm-train[plot]"' in said
    )


def test_a_run_that_diverges_is_left_out_and_the_sweep_goes_on(config, tmp_path, monkeypatch):
    runs, said = sweep.plan(dataclasses.replace(config, checkpoint_every=5), [1, 2, 3], [6e8, 1e9]), []
    steps = {run.name: run.config.steps for run in runs}
    taken = CheckedStep.take

    def take(self, loader, progress):
        row, after = taken(self, loader, progress)
        if self._setup.config.out.endswith(tuple(broken)) and after.step == 8:
            with torch.no_grad():
                self._setup.model.blocks[0].mlp.down.weight[0, 0] = math.nan  # of a rate at its edge
        return row, after

    monkeypatch.setattr(CheckedStep, "take", take)
    broken = ["flops-1e+09-depth-2"]
    for _ in range(2):  # what ended is not run again, what diverged goes on from its last checkpoint
        found = sweep.Sweep(runs, tmp_path / "s", said.append).run()
        assert [run["name"] for run in found["runs"]] == [name for name in steps if name not in broken]
        assert list(found["left_out"]) == broken
        written = json.loads((tmp_path / "s" / "sweep.json").read_text("utf-8"))
        assert written == {"format": 1, **json.loads(json.dumps(found))}
        (line,) = (line for line in said if "left out" in line)
        assert line.startswith(f"5/6 {broken[0]}: ")
        assert "at step 9, first in blocks.0.mlp" in line
        assert line.endswith(found["left_out"][broken[0]])
        said.clear()
    assert [curve["flops"] for curve in found["isoflop"]] == [6e8]
    words = sweep.lines(found)
    assert words[0].startswith("flops-1e+09-depth-2 is left out (the loss is nan")
    assert "1e+09 FLOPs: wanted three depths at least for a best size, got fewer" in words

    broken, elsewhere = list(steps), dataclasses.replace(config, out=str(tmp_path / "t"))
    with pytest.raises(TrainingError, match="every run of the sweep is left out"):
        sweep.Sweep(sweep.plan(elsewhere, [1, 2], [6e8]), tmp_path / "t").run()


def test_a_run_that_ends_no_better_than_guessing_is_left_out_too(config, tmp_path):
    """Norms keep every number finite at such a rate: the trainer sees no divergence, and the loss is one for a fit."""
    runs, said = sweep.plan(dataclasses.replace(config, spike=0.0), [1, 2], [6e8]), []
    far = dataclasses.replace(runs[0].config, learning_rate=50.0, embedding_learning_rate=50.0)
    runs[0] = dataclasses.replace(runs[0], config=far)
    found = sweep.Sweep(runs, tmp_path / "s", said.append).run()
    assert [run["name"] for run in found["runs"]] == ["flops-6e+08-depth-2"]
    (sign,) = found["left_out"].values()
    assert re.fullmatch(r"the loss is \d+\.\d+, no better than guessing \(5\.768\)", sign)  # log(320)
    assert said[0].endswith(f"left out: {sign}")
    assert sweep.lines(found)[0].startswith(f"flops-6e+08-depth-1 is left out ({sign})")


def _nats(row, house) -> float:
    split = json.loads(Path(house.data, "data.json").read_text("utf-8"))["splits"]["validation"]
    return row["validation_bits_per_character"] * math.log(2) * split["characters"] / split["tokens"]
