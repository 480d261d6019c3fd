"""Checkpoints are written beside the training: one at a time, errors come out, a stop waits for no more than a file."""

from __future__ import annotations

import threading

import pytest
import torch

from tinylm.training import Trainer, checkpoint
from tinylm.training._writer import Writer


def test_jobs_run_one_after_the_other_and_wait_waits():
    writer, order, gate = Writer(), [], threading.Event()

    def first(check):
        gate.wait()
        order.append("first")

    writer.submit(first)
    assert order == []  # it does not wait for the job
    threading.Timer(0.05, gate.set).start()
    writer.submit(lambda check: order.append("second"))
    writer.wait()
    assert order == ["first", "second"]
    writer.wait()


def test_an_error_comes_out_once_at_the_next_call():
    def fails(check):
        raise OSError("no room")

    for call in ("wait", "submit", "poll"):
        writer = Writer()
        writer.submit(fails)
        while writer._thread.is_alive():
            pass
        with pytest.raises(OSError, match="no room"):
            writer.submit(lambda check: None) if call == "submit" else getattr(writer, call)()
        writer.wait()


def test_cancel_ends_a_job_at_its_next_check():
    writer, gate, after = Writer(), threading.Event(), []

    def job(check):
        gate.set()
        while True:
            check()

    writer.submit(job)
    gate.wait()
    writer.cancel()
    assert after == []
    writer.submit(lambda check: (check(), after.append("goes on")))
    writer.wait()
    assert after == ["goes on"]


def test_training_goes_on_while_a_checkpoint_is_written(tiny, tmp_path, monkeypatch):
    """The first checkpoint is held up until the run has made three more steps: if the run waited, neither would end."""
    write, further, written = checkpoint.write, threading.Event(), []

    def held(out, snapshot, progress, *rest):
        if progress.step == 5:
            assert further.wait(timeout=60)
        written.append((progress.step, snapshot.model.embed.weight.clone()))
        return write(out, snapshot, progress, *rest)

    monkeypatch.setattr("tinylm.training.checkpoint.write", held)
    trainer, weights = Trainer(tiny(tmp_path / "m")), {}

    def report(status):
        weights[status.step] = trainer.model.embed.weight.detach().clone()
        if status.step == 8:
            further.set()

    trainer.report = report
    assert trainer.train().finished
    assert [step for step, _ in written] == [5, 10, 12]
    for step, embed in written:
        assert torch.equal(embed, weights[step])  # of its step, although the weights had moved on


def test_a_failed_write_ends_the_run_with_its_error(tiny, tmp_path, monkeypatch):
    def fails(*arguments):
        raise OSError("the disk is gone")

    monkeypatch.setattr("tinylm.training.checkpoint.write", fails)
    with pytest.raises(OSError, match="the disk is gone"):
        Trainer(tiny(tmp_path / "m")).train()
