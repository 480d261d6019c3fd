"""Sampling the machine in a thread; alerts and artifacts in a run."""

import sys
import threading
from pathlib import Path

import pytest

from tinylm import observability as obs


def test_the_machine_is_sampled_until_closed(tmp_path: Path) -> None:
    pytest.importorskip("psutil")
    with obs.init(tmp_path) as run:
        run.log({"loss": 1.0}, step=7)
        sampler = obs.sample_system(run, every=0.01)
        written = threading.Event()
        while not written.is_set():
            if len(obs.read_system(tmp_path)) >= 2:
                written.set()
        sampler.close()
        count = len(obs.read_system(tmp_path))
        sampler.close()
        assert len(obs.read_system(tmp_path)) == count
    rows = obs.read_system(tmp_path)
    assert rows[-1]["step"] == 7
    assert rows[-1]["process memory (MB)"] > 1
    assert 0 < rows[-1]["memory (%)"] < 100
    assert rows[-1]["cpu (%)"] >= 0
    assert [row["time"] for row in rows] == sorted(row["time"] for row in rows)
    assert "cpu (%)" not in obs.read_metrics(tmp_path)[0]


def test_a_run_that_finishes_first_ends_the_sampler(tmp_path: Path) -> None:
    pytest.importorskip("psutil")
    run = obs.init(tmp_path)
    sampler = obs.sample_system(run, every=60)
    run.finish()
    sampler.close()  # neither raises nor waits for the minute


def test_without_psutil_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    with obs.init(tmp_path) as run, pytest.raises(obs.ObservabilityError, match=r'pip install "tinylm-obs\[system\]"'):
        obs.sample_system(run)
    with obs.init(tmp_path) as run, pytest.raises(obs.ObservabilityError, match="seconds above 0"):
        obs.sample_system(run, every=0)


def test_alerts_and_artifacts(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with obs.init(tmp_path / "run") as run:
        run.alert("spike", "blocks.1", "the loss is 9", step=4)
        run.artifact("checkpoint", tmp_path / "model", step=4)
        run.log({"sample": "Once upon a time"}, step=4)
        with pytest.raises(obs.ObservabilityError, match="got nothing at"):
            run.artifact("checkpoint", tmp_path / "none", step=4)
    with obs.init(tmp_path / "run") as run:
        run.alert("spike", "blocks.1", "the loss is 8", step=4)
        run.alert("nan", "blocks.0", "its output is not finite", step=2)
    found = obs.read_alerts(tmp_path / "run")
    assert [(one["alert"], one["layer"], one["step"], one["attempt"]) for one in found] == [
        ("nan", "blocks.0", 2, 2),
        ("spike", "blocks.1", 4, 2),
    ]
    assert found[1]["message"] == "the loss is 8"
    (row,) = obs.read_metrics(tmp_path / "run")
    assert row["artifact/checkpoint"] == "../model"
    assert row["sample"] == "Once upon a time"
    with pytest.raises(obs.ObservabilityError, match="wanted a running run"):
        run.alert("nan", "x", "late")
    with pytest.raises(obs.ObservabilityError, match="wanted a run"):
        obs.read_alerts(tmp_path / "model")
