"""One update: a batch in parts, float16's scale, masked targets, the average of the weights."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from tinylm import observability as obs
from tinylm.model import Transformer
from tinylm.training import AdamW, TokenDataset, Trainer, TrainingError
from tinylm.training.average import Average
from tinylm.training.checkpoint import step_folders
from tinylm.training.scaling import LossScale
from tinylm.training.step import Step
from tinylm.training.strategy import SingleProcess


def step_of(model, parts=1, clip=1e9):
    return Step(model, {"sgd": torch.optim.SGD(model.parameters())}, torch.device("cpu"), clip, parts, SingleProcess())


@pytest.fixture
def model(tiny, tmp_path):
    torch.manual_seed(0)
    return Transformer(Trainer(tiny(tmp_path / "m")).shape)


def ids(rows=6, time=16, seed=0):
    drawn = torch.randint(0, 320, (rows, time + 1), generator=torch.Generator().manual_seed(seed))
    return drawn[:, :-1].contiguous(), drawn[:, 1:].contiguous()


@pytest.mark.parametrize("parts", [2, 3, 6])
@pytest.mark.parametrize("masked", [False, True])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(model, parts, masked):
    inputs, targets = ids()
    if masked:  # parts with different numbers of targets that count, one with none
        targets[0, 3:] = -100
        targets[1] = -100
        targets[5, ::2] = -100
    other = copy.deepcopy(model)
    whole, split = step_of(model).gradient(inputs, targets), step_of(other, parts).gradient(inputs, targets)
    assert split.loss == pytest.approx(whole.loss, rel=1e-6)
    assert split.norm == pytest.approx(whole.norm, rel=1e-5)
    assert split.targets == whole.targets == int((targets != -100).sum())
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-5)
    logits = model(inputs)
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert whole.loss == pytest.approx(float(wanted.detach()), rel=1e-5)


def test_adam_clips_as_it_reads(model):
    """The weights after updates are those of gradients that were multiplied beforehand; short gradients stay."""
    other = copy.deepcopy(model)
    step = Step(model, {"adamw": AdamW(model.parameters())}, torch.device("cpu"), 0.25, 1, SingleProcess())
    reference = torch.optim.AdamW(
        other.parameters(), lr=1e-3, weight_decay=step.optimizers["adamw"].defaults["weight_decay"]
    )
    reference.param_groups[0] |= {name: step.optimizers["adamw"].defaults[name] for name in ("lr", "betas", "eps")}
    step.optimizers["adamw"].param_groups[0]["peak_lr"] = reference.param_groups[0]["lr"]
    for seed in range(3):
        inputs, targets = ids(seed=seed)
        assert step.gradient(inputs, targets).norm > 0.25
        step.update(1.0)
        other.loss(inputs, targets).backward()
        torch.nn.utils.clip_grad_norm_(other.parameters(), 0.25)
        reference.step()
        reference.zero_grad()
        assert step.optimizers["adamw"].gradient_factor == 1
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        rounding = 1e-3 * 2**-7 if a is model.embed.weight else 1e-6  # a tied table's sum of two is rounded to 16 bits
        torch.testing.assert_close(a, b, atol=rounding, rtol=1e-5)


def test_adamw_reads_gradients_in_16_bits_and_nobody_else_is_given_them(model):
    """The step of one pass in bfloat16 is that of the same gradients in float32, clipped or not; with sums of several
    passes, or another optimizer, they are float32."""
    other = copy.deepcopy(model)
    inputs, targets = ids()
    steps = [
        Step(m, {"a": AdamW(m.parameters())}, torch.device("cpu"), 0.25, 1, SingleProcess()) for m in (model, other)
    ]
    for parameter in other.parameters():
        parameter.grad_dtype = torch.float32
    norms = []
    for step in steps:
        step.autocast = lambda: torch.autocast("cpu", torch.bfloat16)
        step.optimizers["a"].param_groups[0]["peak_lr"] = 1e-3
    for seed in range(2):
        inputs, targets = ids(seed=seed)
        norms.append([step.gradient(inputs, targets).norm for step in steps])
        kinds = [{p.grad.dtype for p in m.parameters()} for m in (model, other)]
        for step in steps:
            step.update(1.0)
    assert kinds == [{torch.bfloat16, torch.float32}, {torch.float32}]
    assert norms[0][0] > 0.25
    for mine, wide in norms:
        assert mine == pytest.approx(wide, rel=1e-3)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        rounding = 1e-3 * 2**-7 if a is model.embed.weight else 1e-6  # a tied table's sum of two is rounded to 16 bits
        torch.testing.assert_close(a, b, atol=rounding, rtol=1e-5)

    fresh = copy.deepcopy(other)
    for step in (
        step_of(fresh),
        Step(fresh, {"a": AdamW(fresh.parameters())}, torch.device("cpu"), 1, 2, SingleProcess()),
    ):
        step.autocast = lambda: torch.autocast("cpu", torch.bfloat16)
        step.gradient(inputs, targets)
        assert {p.grad.dtype for p in fresh.parameters()} == {torch.float32}
        step.discard()


def test_the_gradient_is_clipped_to_a_length(model):
    step, before = step_of(model, clip=0.25), copy.deepcopy(model)
    step.optimizers["sgd"].param_groups[0]["peak_lr"] = 1.0
    assert step.gradient(*ids()).norm > 0.25
    step.update(1.0)
    moves = [a - b for a, b in zip(model.parameters(), before.parameters(), strict=True)]
    length = torch.sqrt(sum(move.square().sum() for move in moves))
    assert float(length.detach()) == pytest.approx(0.25, rel=1e-4)


def test_a_run_in_parts_is_the_run(tiny, tmp_path):
    for name, parts in (("whole", 1), ("parts", 4)):
        Trainer(tiny(tmp_path / name, batch_size=4, accumulate=parts, steps=6)).train()
    whole, parts = (obs.read_metrics(tmp_path / name / "run") for name in ("whole", "parts"))
    for a, b in zip(whole, parts, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["tokens"] == b["tokens"] == 4 * 16


@pytest.mark.parametrize("parts", [1, 3])
def test_float16s_scale_takes_itself_back(model, parts):
    inputs, targets = ids()
    other = copy.deepcopy(model)
    plain = step_of(model, parts)
    scaled = step_of(other, parts)
    scaled.scale = LossScale(1024.0)
    a, b = plain.gradient(inputs, targets), scaled.gradient(inputs, targets)
    assert (a.loss, a.norm) == (pytest.approx(b.loss, rel=1e-5), pytest.approx(b.norm, rel=1e-4))
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-6, rtol=1e-4)


def test_the_scale_halves_and_doubles():
    scale = LossScale(8.0, patience=3)
    scale.shrink()
    assert (scale.scale, scale.good) == (4.0, 0)
    for _ in range(2):
        scale.grow()
    assert (scale.scale, scale.good) == (4.0, 2)
    scale.grow()
    assert (scale.scale, scale.good) == (8.0, 0)
    for _ in range(3):
        scale.shrink()
    assert not scale.exhausted
    scale.shrink()
    assert scale.exhausted


def test_float16_learns_and_an_overflow_costs_one_update(tiny, tmp_path, monkeypatch):
    config = tiny(tmp_path / "m", dtype="float16", steps=30, batch_size=8, checkpoint_every=10)
    trainer = Trainer(config)
    trainer.step.scale.scale = 2.0**24  # overflows at once
    trainer.train()
    rows = obs.read_metrics(tmp_path / "m" / "run")
    skipped = [row for row in rows if "skipped" in row]
    assert 1 <= len(skipped) < 15
    assert all("overflowed float16" in row["skipped"] for row in skipped)
    scales = [row["loss_scale"] for row in rows]
    assert scales[0] == 2.0**24
    assert scales[-1] == 2.0 ** (24 - len(skipped))
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5
    assert rows[0]["loss"] == pytest.approx(math.log(320), rel=0.1)


def test_a_batch_whose_targets_are_all_masked_is_said_to_be_and_moves_nothing(tiny, tmp_path, monkeypatch):
    from tinylm.training.data import Loader

    draw, drawn = Loader.next, []

    def masked(self):
        inputs, targets = draw(self)
        drawn.append(targets)
        return inputs, torch.full_like(targets, -100) if len(drawn) == 2 else targets

    monkeypatch.setattr(Loader, "next", masked)
    trainer = Trainer(tiny(tmp_path / "m", steps=3))
    weights = []
    trainer.report = lambda status: weights.append(trainer.model.embed.weight.detach().clone())
    assert trainer.train().finished
    rows = obs.read_metrics(tmp_path / "m" / "run")
    assert ["skipped" in row for row in rows] == [False, True, False]
    assert "all are masked" in rows[1]["skipped"]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_the_average_is_the_formula_and_is_what_is_published(tiny, tmp_path):
    config = tiny(tmp_path / "m", average=0.8, steps=9, learning_rate=0.05)
    trainer = Trainer(config)
    wanted = {name: p.detach().double().clone() for name, p in trainer.model.named_parameters()}

    def follow(status):
        decay = min(0.8, (1 + status.step) / (10 + status.step))
        for name, parameter in trainer.model.named_parameters():
            wanted[name] = decay * wanted[name] + (1 - decay) * parameter.detach().double()

    trainer.report = follow
    result = trainer.train()
    published = dict(Transformer.load(tmp_path / "m").named_parameters())
    for name, weights in wanted.items():
        torch.testing.assert_close(published[name].double(), weights, atol=1e-6, rtol=1e-5)
    assert not torch.equal(published["embed.weight"], trainer.model.embed.weight)
    from tinylm.training import bits_per_character

    judged = bits_per_character(Transformer.load(tmp_path / "m"), TokenDataset(config.data, "validation"))
    assert result.validation_bits_per_character == pytest.approx(judged, rel=1e-6)


def test_inside_the_average_is_in_place_and_after_it_the_weights_are_back(model):
    average = Average(model, 0.5)
    before = model.embed.weight.detach().clone()
    with torch.no_grad():
        model.embed.weight.add_(1.0)
    with average.in_place():
        assert torch.equal(model.embed.weight, before)
    assert torch.equal(model.embed.weight, before + 1.0)


def test_parts_must_divide_the_batch(tiny, tmp_path):
    with pytest.raises(TrainingError, match="divide the batch of 2 windows"):
        Trainer(tiny(tmp_path / "m", accumulate=3))


def test_activation_checkpointing_is_the_same_run(tiny, tmp_path):
    for name, kept in (("a", False), ("b", True)):
        trainer = Trainer(tiny(tmp_path / name, activation_checkpointing=kept, steps=4))
        assert trainer.model.activation_checkpointing is kept
        trainer.train()
    a, b = ([row["loss"] for row in obs.read_metrics(tmp_path / name / "run")] for name in "ab")
    assert a == b


def test_the_best_checkpoint_stays_beside_the_newest(tiny, tmp_path, monkeypatch):
    figures = iter([3.0, 1.0, 2.0, 2.5, 2.4, 2.4])
    monkeypatch.setattr("tinylm.training.judging.bits", lambda setup, whole: next(figures))
    config = tiny(tmp_path / "m", keep_best=True, keep=1, validate_every=3, checkpoint_every=5, steps=15)
    Trainer(config).train()
    # the best validation was after step 6, which no checkpoint was due for; 15 is the newest
    assert [folder.name for folder in step_folders(tmp_path / "m")] == ["00000015", "00000006"]
