"""The explorer's rungs: each agrees, each has its cost, and what takes long runs in the background, to be cancelled."""

import threading

import pytest
import torch

from tinylm.inference import InferenceError
from tinylm.inference.explorer import rungs
from tinylm.inference.explorer.background import Background, Cancelled, Progress
from tinylm.inference.explorer.library import Library
from tinylm.inference.explorer.reading import Readings

TEXT = "The cook says"


@pytest.fixture(scope="module")
def gpt2(make_checkpoint):
    return Readings(Library([make_checkpoint("gpt2", depth=1)])).see(0, TEXT)


@pytest.fixture(scope="module")
def qwen3(checkpoint):
    return Readings(Library([checkpoint])).see(0, TEXT)


@pytest.fixture
def quick(monkeypatch):
    """However loaded this machine is, every rung counts as quick."""
    monkeypatch.setattr(rungs, "NOW", float("inf"))


@pytest.mark.usefixtures("quick")
def test_every_rung_that_the_shape_has_agrees(gpt2, qwen3):
    for seen, wanted in (
        (gpt2, ["scalar", "arrays", "tensors", "transformer"]),
        (qwen3, ["arrays", "tensors", "transformer"]),
    ):
        answer = rungs.rungs(seen)
        assert [rung.name for rung in answer] == list(rungs.SAYS)
        assert [rung.name for rung in answer if rung.result is not None] == wanted
        assert [rung.name for rung in answer if rung.why_not is None] == wanted
        for rung in answer:
            if rung.result is not None:
                assert rung.result.tokens == rung.result.same == len(seen.read.ids)
                assert rung.result.difference < 1e-3
                assert rung.result.seconds > 0


def test_what_a_model_lacks_is_said(qwen3, gpt2, monkeypatch):
    assert "GPT-2's shape" in rungs.rungs(qwen3)[0].why_not
    monkeypatch.setattr(rungs, "MOST", 10)
    assert "below 10 parameters" in rungs.rungs(gpt2)[0].why_not
    with pytest.raises(InferenceError, match="'scalar' is not run: it is run for models below 10"):
        rungs.run("scalar", gpt2, 2, Progress())
    with pytest.raises(InferenceError, match="there are scalar, arrays"):
        rungs.run("nothing", gpt2, 2, Progress())


def test_a_slow_rung_is_offered_on_as_many_tokens_as_fit(gpt2, monkeypatch):
    monkeypatch.setattr(rungs, "estimate", lambda name, _: 20.0 if name == "scalar" else 0.0)
    scalar, arrays, *_ = rungs.rungs(gpt2)
    assert (scalar.result, scalar.estimate, scalar.tokens) == (None, 20.0, len(gpt2.read.ids) // 2)
    assert arrays.result is not None


def test_the_estimate_grows_with_the_text(gpt2, checkpoint):
    short = Readings(Library([checkpoint])).see(0, "The")
    for name in ("arrays", "tensors", "transformer"):
        assert rungs.estimate(name, short) > 0
    assert rungs.estimate("scalar", gpt2) > 1e-4  # 1 ms at 30 ns for each of 40,000 numbers and 5 tokens or so


@pytest.mark.parametrize("name", ["scalar", "arrays", "tensors"])
def test_the_progress_never_passes_the_whole(gpt2, name, monkeypatch):
    monkeypatch.setattr(rungs, "WARM", 0.0)
    progress = Progress()
    result = rungs.run(name, gpt2, 3, progress)
    assert result.tokens == 3
    assert result.same == 3
    assert 0 < progress.done <= progress.total
    assert name != "scalar" or progress.done == progress.total


@pytest.mark.parametrize("name", ["scalar", "arrays", "tensors"])
def test_a_cancelled_rung_stops_where_it_stands(gpt2, name):
    progress = Progress()
    progress.cancel()
    with pytest.raises(Cancelled):
        rungs.run(name, gpt2, 3, progress)
    assert progress.done < progress.total


def test_work_in_the_background_is_told_of_and_cancelled():
    background, begun, go_on = Background(), threading.Event(), threading.Event()

    def work(progress):
        progress.total = 4
        progress.add(1)
        begun.set()
        go_on.wait()
        progress.add(1)
        return "whole"

    first = background.start(work)
    begun.wait()
    now = background.status(first.id)
    assert (now.state, now.fraction, now.result) == ("running", 0.25, None)
    threading.Timer(0.05, go_on.set).start()
    assert background.cancel(first.id).state == "cancelled"
    second = background.start(work)
    background._thread.join()
    assert (background.status(second.id).state, background.status(second.id).result) == ("done", "whole")
    assert background.cancel(second.id).state == "done"
    with pytest.raises(InferenceError, match="another was begun"):
        background.status(first.id)


def test_work_that_fails_says_why():
    background = Background()

    def work(_):
        raise InferenceError("no such thing")

    begun = background.start(work)
    background._thread.join()
    status = background.status(begun.id)
    assert (status.state, status.error) == ("failed", "no such thing")


def test_new_work_ends_the_old():
    background, ended = Background(), threading.Event()

    def work(progress):
        progress.total = 1
        try:
            while True:
                progress.add(0)
        finally:
            ended.set()

    background.start(work)
    background.start(lambda _: torch.zeros(1).item())
    assert ended.is_set()
    background.start(work)
    background.close()
    assert not background._thread.is_alive()
