"""The explorer's writing and history: the engine's blocks, the work that the cache saves, the steps of a run."""

import shutil

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tinylm import observability as obs
from tinylm.inference import LLM, SamplingParams
from tinylm.inference.explorer.history import history
from tinylm.inference.explorer.library import Library
from tinylm.inference.explorer.reading import Readings
from tinylm.inference.explorer.writing import BLOCK, BLOCKS, Writing, operations

TEXT = "The cook says"


def test_the_text_is_the_engines_and_the_cache_changes_nothing(checkpoint):
    opened = Library([checkpoint]).open(0)
    ids = opened.tokenizer.encode(TEXT)
    params = SamplingParams(temperature=0.8, seed=3, max_tokens=20, logprobs=5, ignore_eos=True)
    writing = Writing(opened, ids, params)
    first = writing.go_on(0)
    assert (len(first.frames), first.done) == (1, False)
    written = writing.go_on(600)
    assert written.done
    wanted = LLM(str(checkpoint), dtype="float32", device="cpu").generate([{"prompt_token_ids": ids}], params)
    assert [frame.id for frame in written.frames] == wanted[0].outputs[0].token_ids
    for place, frame in enumerate(written.frames):
        assert frame.cached == len(ids) + place
        assert frame.difference < 1e-3
    for frame in written.frames:
        assert len(frame.table) == -(-frame.cached // BLOCK)
        assert len(set(frame.table)) == len(frame.table)
        assert set(frame.table) <= set(range(BLOCKS))
    assert all(frame.cached_operations < frame.again_operations for frame in written.frames[1:])


def test_a_text_that_fills_the_context_leaves_room_for_a_token(checkpoint):
    readings = Readings(Library([checkpoint]))
    ids = readings.read(0, "x" * 1000).ids
    written = Writing(readings.library.open(0), ids, SamplingParams(max_tokens=24, logprobs=5)).go_on(600)
    assert written.done
    assert len(written.frames) == 64 - 1 - len(ids) == 1
    assert written.frames[0].table


def test_the_operations_are_those_that_pytorch_counts(checkpoint):
    model = Library([checkpoint]).open(0).model
    ids = torch.arange(12)[None]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(ids, taps={}, logits_at=[-1])
    c = model.config
    unseen = 4 * c.depth * c.heads * c.head_dim * (12 * 12 - 12 * 13 // 2)  # the mask's half is multiplied there too
    assert operations(model, 12, 12) == counter.get_total_flops() - unseen


def test_the_same_text_through_every_step(make_checkpoint, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(make_checkpoint(depth=1), folder)
    for step in (10, 20, 30):
        shutil.copytree(make_checkpoint(depth=1, seed=step), folder / "steps" / f"{step:08}")
    (folder / "steps" / "00000020" / "config.json").write_text("{")
    with obs.init(directory=folder / "run", config={}) as run:
        for step in range(1, 31):
            run.log({"loss": 5 - step / 10}, step=step)
    answer = history(Readings(Library([folder])), 0, TEXT, 2)
    assert [moment.step for moment in answer.moments] == [10, 20, 30, None]
    assert "config.json" in answer.moments[1].problem
    seen = Readings(Library([folder])).see(0, TEXT)
    ids = torch.tensor(seen.read.ids)
    wanted = torch.nn.functional.cross_entropy(seen.taps["logits"][0, :-1], ids[1:])
    assert answer.moments[0].loss == pytest.approx(float(wanted), rel=1e-5)
    assert answer.moments[0].guesses[0].id == int(seen.taps["logits"][0, 2].argmax())
    assert answer.curve[0] == (1, pytest.approx(4.9))
    assert len(answer.curve) == 30


def test_steps_given_by_themselves_have_their_runs_loss_and_gradients(make_checkpoint, tmp_path):
    folder = tmp_path / "model"
    for step in (10, 20):
        shutil.copytree(make_checkpoint(depth=1, seed=step), folder / "steps" / f"{step:08}")
    with obs.init(directory=folder / "run", config={}) as run:
        for step in range(1, 21):
            run.log({"loss": 3.0}, step=step)
        run.histogram("gradient/blocks.0.mlp.up", [2, 0, 2], [-5.0, -3.0, 3.0, 5.0], step=10)
    library = Library([folder / "steps" / "00000020", folder / "steps" / "00000010"])
    answer = history(Readings(library), 1, TEXT, 0)
    assert [moment.step for moment in answer.moments] == [10, 20]
    assert len(answer.curve) == 20
    assert (answer.flow_steps, [flow.name for flow in answer.flows]) == ([10], ["blocks.0.mlp.up"])
    assert answer.flows[0].values == [4.0]  # every number is the middle of its bin


def test_a_run_that_cannot_be_read_says_so_beside_its_steps(make_checkpoint, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(make_checkpoint(depth=1), folder / "steps" / "00000010")
    with obs.init(directory=folder / "run", config={}) as run:
        run.log({"loss": 3.0}, step=1)
    (folder / "run" / "run.json").write_text('{"format": 99}')
    answer = history(Readings(Library([folder / "steps" / "00000010"])), 0, TEXT, 0)
    assert "format" in answer.problem
    assert (answer.curve, answer.flows) == ([], [])
    assert answer.moments[0].problem is None
