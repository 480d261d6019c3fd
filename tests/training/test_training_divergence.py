"""A step that is not a number or a spike: found at the step, its layer named, and stop, skip or rollback as chosen."""

from __future__ import annotations

import math

import pytest
import torch

from tinylm import observability as obs
from tinylm.training import Trainer, TrainingError
from tinylm.training.data import Loader
from tinylm.training.divergence import spike

BAD = 7  # the step whose batch makes the model diverge


@pytest.fixture
def poisoned(monkeypatch):
    """Whenever the batch of step BAD is computed, one module's output is not a number; says which batch that is."""
    seen: dict[str, object] = {}
    draw = Loader.next

    def spy(self):
        batch = draw(self)
        if self.state.index == 2 * BAD:  # two windows a step, first epoch
            seen["ids"] = batch[0]
        seen["now"] = batch[0]
        return batch

    def poison(trainer, module="blocks.0.mlp.down", value=float("nan")):
        def hook(part, inputs, output):
            bad = seen.get("ids")
            return output * value if bad is not None and torch.equal(bad, seen["now"]) else output

        trainer.model.get_submodule(module).register_forward_hook(hook)
        return trainer

    monkeypatch.setattr(Loader, "next", spy)
    return poison


def rows(out):
    return {row["step"]: row for row in obs.read_metrics(out / "run")}


def test_stop_names_the_step_and_the_layer_and_what_to_do(tiny, tmp_path, poisoned):
    trainer = poisoned(Trainer(tiny(tmp_path / "m")))
    with pytest.raises(
        TrainingError, match=rf"at step {BAD}, first in blocks\.0\.mlp\.down.*still stands.*skip or roll"
    ):
        trainer.train()
    assert obs.read_run(tmp_path / "m" / "run")["status"] == "failed"
    assert sorted(p.name for p in (tmp_path / "m" / "steps").iterdir()) == ["00000005"]


def test_skip_leaves_the_weights_and_goes_on(tiny, tmp_path, poisoned):
    said, weights = [], {}
    trainer = poisoned(Trainer(tiny(tmp_path / "m", on_divergence="skip"), say=said.append))
    trainer.report = lambda status: weights.update({status.step: trainer.model.embed.weight.detach().clone()})
    assert trainer.train().finished
    assert torch.equal(weights[BAD], weights[BAD - 1])
    assert not torch.equal(weights[BAD + 1], weights[BAD])
    row = rows(tmp_path / "m")[BAD]
    assert math.isnan(row["loss"])
    assert "first in blocks.0.mlp.down" in row["skipped"]
    assert [step for step, row in rows(tmp_path / "m").items() if "skipped" in row] == [BAD]
    assert any("its update is skipped" in line for line in said)


def test_rollback_takes_the_last_checkpoint_and_passes_over_the_batch(tiny, tmp_path, poisoned):
    said = []
    assert poisoned(Trainer(tiny(tmp_path / "m", on_divergence="rollback"), say=said.append)).train().finished
    assert any(f"at step {BAD}, first in blocks.0.mlp.down: back to the last checkpoint" in line for line in said)
    assert "continuing after step 5" in said
    found = rows(tmp_path / "m")
    assert list(found) == list(range(1, 13))
    assert "rolled back" in found[BAD]["skipped"]
    assert (found[5]["attempt"], found[6]["attempt"], found[12]["attempt"]) == (1, 2, 2)
    # from its start the run does the same without the batch: as if it had been skipped
    poisoned(Trainer(tiny(tmp_path / "skip", on_divergence="skip"))).train()
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("m", "skip")]
    assert weights[0] == weights[1]


def test_rollback_without_a_checkpoint_stops(tiny, tmp_path, poisoned):
    trainer = poisoned(Trainer(tiny(tmp_path / "m", on_divergence="rollback", checkpoint_every=100)))
    with pytest.raises(TrainingError, match="No checkpoint had been saved") as error:
        trainer.train()
    assert "--on-divergence" not in str(error.value)  # it is given already


def test_a_model_that_is_broken_is_not_skipped_for_ever(tiny, tmp_path):
    trainer = Trainer(tiny(tmp_path / "m", on_divergence="skip", steps=40, checkpoint_every=100))
    with torch.no_grad():
        trainer.model.blocks[0].attention.q.weight[0, 0] = float("inf")
    with pytest.raises(TrainingError, match="at step 11, first in blocks"):
        trainer.train()


def test_a_gradient_that_is_not_a_number_names_its_parameter(tiny, tmp_path):
    trainer = Trainer(tiny(tmp_path / "m"))
    trainer.model.blocks[0].mlp.up.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(TrainingError, match=r"the loss is [0-9.]+ .* at step 1, first in blocks\.0\.mlp\.up\.weight"):
        trainer.train()


def test_a_spike_is_found_and_named(tiny, tmp_path, poisoned):
    config = tiny(tmp_path / "m", steps=60, batch_size=2, on_divergence="skip", spike=20.0)
    trainer = Trainer(config)
    step = {"now": 0}
    trainer.report = lambda status: step.update(now=status.step)
    parameter = trainer.model.blocks[0].attention.v.weight
    parameter.register_hook(lambda gradient: gradient * (1e5 if step["now"] == 49 else 1.0))
    trainer.train()
    skipped = {number: row["skipped"] for number, row in rows(tmp_path / "m").items() if "skipped" in row}
    assert list(skipped) == [50]
    assert "times the usual" in skipped[50]
    assert "first in blocks.0.attention.v.weight" in skipped[50]


def test_what_a_spike_is():
    losses, norms = [2.0, 2.1, 1.9, 2.05] * 10, [1.0, 1.2, 0.8, 1.1] * 10
    assert spike(2.2, 5.0, losses, norms, 20.0) is None
    assert "gradient norm is 30" in str(spike(2.2, 30.0, losses, norms, 20.0))
    assert "the loss is 4.000" in str(spike(4.0, 1.0, losses, norms, 20.0))
    assert spike(4.0, 30.0, losses, norms, 0.0) is None  # none is one
    assert spike(4.0, 30.0, losses[:20], norms[:20], 20.0) is None  # too few to say


def test_a_nan_planted_in_layer_3_is_an_alert_that_names_it(tiny, tmp_path, poisoned):
    trainer = poisoned(Trainer(tiny(tmp_path / "m", depth=4)), module="blocks.3.mlp.down")
    with pytest.raises(TrainingError, match=r"first in blocks\.3\.mlp\.down"):
        trainer.train()
    (alert,) = obs.read_alerts(tmp_path / "m" / "run")
    assert (alert["alert"], alert["layer"], alert["step"]) == ("nan", "blocks.3.mlp.down", BAD)


def test_a_run_is_watched_layer_by_layer(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("tinylm.training._watching._EVERY", 4)
    Trainer(tiny(tmp_path / "m")).train()
    found = rows(tmp_path / "m")
    looked = [step for step, row in found.items() if "gradient_norm/blocks.0.mlp.down" in row]
    assert looked == [step for step in found if step % 4 == 0]
    row = found[4]
    assert {name.split("/")[0] for name in row if "/" in name} == {
        *("activation_rms", "activation_max", "dead_units", "attention_entropy"),
        *("gradient_norm", "weight_norm", "update_ratio"),
    }
    assert row["update_ratio/blocks.0.attention.q"] > 0
    assert row["attention_entropy/blocks.0.attention"] > 0
    names = {one["name"] for one in obs.read_histograms(tmp_path / "m" / "run") if one["step"] == 4}
    assert "gradient/blocks.0.attention.q" in names


@pytest.mark.parametrize(("rate", "told"), [(1e6, ["64 steps after the warm-up", "at the end"]), (None, [])])
def test_a_learning_rate_that_ends_in_guessing_is_told(tiny, tmp_path, rate, told):
    """Norms keep all numbers finite, so that nothing else would show it (weight decay, a factor of 1 - rate * decay,
    would not)."""
    rates = {} if rate is None else {"learning_rate": rate, "embedding_learning_rate": rate, "weight_decay": 0.0}
    said: list[str] = []
    config = tiny(
        tmp_path / "m", steps=150, warmup_steps=5, validate_every=150, checkpoint_every=150, spike=0.0, **rates
    )
    Trainer(config, say=said.append).train()
    lines = [line for line in said if "no better than guessing" in line]
    assert [line.startswith(words) for line, words in zip(lines, told, strict=True)] == [True] * len(told)
    assert all("learning rates" in line for line in lines)
