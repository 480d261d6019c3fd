"""The loop: it learns, it measures its own length, it writes what others can open, and it refuses what cannot go on."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import sys
import time

import pytest
import torch

from tinylm import observability as obs
from tinylm.model import ModelError, Transformer, read_provenance
from tinylm.training import AdamW, TokenDataset, Trainer, TrainingError, bits_per_character
from tinylm.training.schedule import learning_rate_factor


def train(config, **hooks):
    return Trainer(config, **hooks).train()


@pytest.mark.parametrize(("optimizer", "preset"), [("muon", "qwen3"), ("adamw", "gpt2"), ("muon", "llama")])
def test_the_loss_falls_and_the_rows_say_so(tiny, house, tmp_path, optimizer, preset):
    config = tiny(tmp_path / "m", steps=120, batch_size=8, optimizer=optimizer, preset=preset, warmup_steps=5)
    statuses = []
    result = train(config, report=statuses.append)
    rows = obs.read_metrics(tmp_path / "m" / "run")
    assert [row["step"] for row in rows] == [status.step for status in statuses] == list(range(1, 121))
    assert rows[0]["loss"] == pytest.approx(math.log(320), rel=0.1)
    assert sum(row["loss"] for row in rows[-10:]) / 10 < rows[0]["loss"] - 1.5
    assert result.finished
    assert result.validation_bits_per_character < 0.75 * rows[0]["bits_per_character"]
    dataset = TokenDataset(config.data, "train")
    resolved, _ = config.resolve(dataset.vocab_size)
    written = len(house.text.read_bytes().decode()[: dataset.characters].encode())
    assert written > dataset.characters
    for row in rows:
        factor = learning_rate_factor(row["step"] - 1, 120, 5, config.decay_fraction)
        assert row["learning_rate"] == pytest.approx(resolved.learning_rate * factor, rel=1e-12)
        assert row["bits_per_character"] == pytest.approx(
            row["loss"] / math.log(2) * dataset.tokens / dataset.characters
        )
        assert row["bits_per_byte"] == pytest.approx(row["loss"] / math.log(2) * dataset.tokens / written)
        assert row["tokens"] == 8 * 16
        assert ("validation_bits_per_character" in row) == (row["step"] % 5 == 0)


def test_the_first_updates_are_those_of_a_plain_loop(tiny, house, tmp_path):
    """The loss, the clipping, the schedule and the order of it all, written out again with torch's AdamW."""
    config = tiny(tmp_path / "m", steps=6, optimizer="adamw", clip=0.5, weight_decay=0.1, warmup_steps=3)
    trainer = Trainer(config)
    torch.manual_seed(config.seed)
    model = Transformer(trainer.shape)
    trainer.train()
    from tinylm.training.data import Loader, LoaderState

    loader = Loader(TokenDataset(house.data), 2, 16, config.seed, LoaderState())
    matrices = [p for n, p in model.named_parameters() if n.startswith("blocks.") and p.ndim == 2]
    rest = [p for n, p in model.named_parameters() if not (n.startswith("blocks.") and p.ndim == 2)]
    peaks = [trainer.config.learning_rate, trainer.config.embedding_learning_rate]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    for step in range(6):
        inputs, targets = loader.next()
        reference.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        loss.backward()
        norm = torch.sqrt(sum(p.grad.square().sum() for p in model.parameters()))
        for parameter in model.parameters():
            parameter.grad *= min(1.0, 0.5 / float(norm))
        for group, peak in zip(reference.param_groups, peaks, strict=True):
            group["lr"] = peak * learning_rate_factor(step, 6, 3, config.decay_fraction)
        reference.step()
        row = obs.read_metrics(tmp_path / "m" / "run")[step]
        assert row["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
        assert row["gradient_norm"] == pytest.approx(float(norm), rel=1e-3)
    for mine, theirs in zip(trainer.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-4, rtol=1e-3)


def test_each_parameter_has_one_optimizer(tiny, tmp_path):
    for optimizer in ("muon", "adamw"):
        trainer = Trainer(tiny(tmp_path / "m", optimizer=optimizer, weight_decay=0.1))
        mine = [p for o in trainer.optimizers.values() for g in o.param_groups for p in g["params"]]
        assert sorted(map(id, mine)) == sorted(map(id, trainer.model.parameters()))
        decayed = {
            id(p) for o in trainer.optimizers.values() for g in o.param_groups if g["weight_decay"] for p in g["params"]
        }
        matrices = {id(p) for n, p in trainer.model.named_parameters() if n.startswith("blocks.") and p.ndim == 2}
        assert decayed == matrices
        assert isinstance(trainer.optimizers["adamw"], AdamW)


def test_the_same_seed_is_the_same_run_and_another_is_another(tiny, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(tiny(tmp_path / name, seed=seed))
    weights = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in "abc"}
    assert weights["a"] == weights["b"] != weights["c"]


def test_the_files_of_a_checkpoint(tiny, house, tmp_path):
    out = tmp_path / "m"
    train(tiny(out, keep=2))
    assert sorted(p.name for p in (out / "steps").iterdir()) == ["00000010", "00000012"]
    newest = out / "steps" / "00000012"
    names = ["chat_template.jinja", "config.json", "generation_config.json", "model.safetensors"]
    names += ["tokenizer.json", "tokenizer_config.json"]
    assert sorted(p.name for p in out.iterdir()) == sorted([*names, "run", "steps"])
    for name in names:
        assert (out / name).read_bytes() == (newest / name).read_bytes()
    assert (out / "tokenizer.json").read_bytes() == (house.tokenizer / "tokenizer.json").read_bytes()
    assert (out / "tokenizer_config.json").read_bytes() == (house.tokenizer / "tokenizer_config.json").read_bytes()
    digest = hashlib.sha256((out / "tokenizer.json").read_bytes()).hexdigest()
    assert read_provenance(out)["tokenizer_sha256"] == digest
    state = json.loads((newest / "state.json").read_text("utf-8"))
    assert state["format"] == 1
    assert (state["step"], state["total_steps"]) == (12, 12)
    files = {p.relative_to(newest).as_posix() for p in newest.rglob("*") if p.is_file()}
    assert files == {"state.json", *state["sha256"]}
    assert any(name.startswith("state/") and name.endswith(".safetensors") for name in files)
    for name, wanted in state["sha256"].items():
        assert hashlib.sha256((newest / name).read_bytes()).hexdigest() == wanted
    record = obs.read_run(out / "run")
    assert (record["status"], record["attempt"]) == ("finished", 1)
    assert record["config"]["depth"] == 1
    assert record["config"]["tokenizer_sha256"] == digest


def test_the_last_validation_is_of_the_whole_split(tiny, house, tmp_path):
    result = train(tiny(tmp_path / "m"))
    model = Transformer.load(tmp_path / "m")
    exact = bits_per_character(model, TokenDataset(house.data, "validation"))
    assert result.validation_bits_per_character == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("preset", ["qwen3", "llama", "gpt2"])
def test_transformers_opens_the_checkpoint_with_the_same_logits(tiny, house, tmp_path, preset):
    transformers = pytest.importorskip("transformers")
    train(tiny(tmp_path / "m", preset=preset, steps=3))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32).eval()
    ours = Transformer.load(tmp_path / "m").eval()
    ids = torch.from_numpy(TokenDataset(house.data).ids(0, 32).reshape(2, 16))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-5, rtol=1e-5)
    from tinylm.tokenizer import Tokenizer

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    line = house.text.read_text("utf-8")[:200] + " 1234567 don't HE'LL\n\n  so"  # where families split text otherwise
    assert tokenizer.encode(line, add_special_tokens=False) == Tokenizer.load(tmp_path / "m").encode(line)
    assert tokenizer.eos_token == "<|endoftext|>"
    assert theirs.generation_config.eos_token_id == Tokenizer.load(tmp_path / "m").eos_id


def test_minutes_become_steps_once_and_for_all(tiny, tmp_path):
    out, said = tmp_path / "m", []
    config = tiny(out, steps=None, minutes=0.01, warmup_steps=2, checkpoint_every=1, validate_every=1000)
    trainer = Trainer(config, say=said.append)
    trainer.report = lambda status: trainer.request_stop() if status.total_steps else None
    first = trainer.train()
    assert not first.finished
    assert first.seconds >= 0.75 * 0.4 * 0.01 * 60  # measured on three quarters of the time before the decay,
    assert first.total_steps >= math.ceil(first.step / 0.4)  # which has not begun when the length is decided
    (line,) = (line for line in said if "0.01 minutes are" in line)
    assert f"--steps {first.total_steps} instead of --minutes 0.01" in line
    state = json.loads(max((out / "steps").glob("*/state.json")).read_text("utf-8"))
    assert state["total_steps"] == first.total_steps
    result = train(config, say=said.append)
    assert result.finished
    assert result.step == result.total_steps == first.total_steps
    assert sum("minutes are" in line for line in said) == 1


def test_a_stop_before_the_length_is_known_goes_on_with_the_timing(tiny, tmp_path):
    config = tiny(tmp_path / "m", steps=None, minutes=0.05, validate_every=1000)
    trainer = Trainer(config)
    trainer.report = lambda status: trainer.request_stop()
    first = trainer.train()
    assert (first.step, first.total_steps, first.finished) == (1, None, False)
    result = train(config)
    assert result.finished
    assert result.step == result.total_steps
    assert result.step > 1


def test_a_run_stops_after_the_step_and_the_same_trainer_goes_on(tiny, tmp_path):
    config = tiny(tmp_path / "m")
    trainer = Trainer(config)
    trainer.report = lambda status: trainer.request_stop() if status.step == 3 else None
    first = trainer.train()
    assert (first.step, first.finished) == (3, False)
    assert obs.read_run(tmp_path / "m" / "run")["status"] == "interrupted"
    assert trainer.train().finished
    train(tiny(tmp_path / "whole"))
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("m", "whole")]
    assert weights[0] == weights[1]


def test_the_machine_is_sampled_where_psutil_is_installed(tiny, tmp_path, monkeypatch):
    pytest.importorskip("psutil", reason="the extra [system] of tinylm-obs is not installed")
    Trainer(tiny(tmp_path / "with")).train()
    assert obs.read_system(tmp_path / "with" / "run")[-1]["process memory (MB)"] > 0
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert Trainer(tiny(tmp_path / "without")).train().finished
    assert obs.read_system(tmp_path / "without" / "run") == []


def test_a_finished_run_does_nothing_more(tiny, tmp_path):
    train(tiny(tmp_path / "m"))
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    time.sleep(0.01)
    again = train(tiny(tmp_path / "m"))
    assert (again.finished, again.step, again.validation_bits_per_character) == (True, 12, None)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_checkpoints_are_a_tenth_of_the_run_apart_and_so_many_updates_at_most(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("tinylm.training.trainer.SAVED_WITHIN", 7)
    Trainer(tiny(tmp_path / "m", steps=40, checkpoint_every=None, keep=100, keep_best=False)).train()
    saved = sorted(int(path.name) for path in (tmp_path / "m" / "steps").iterdir())
    assert saved == sorted({*range(4, 41, 4), *range(7, 41, 7)})


def test_other_options_are_refused_by_name(tiny, tmp_path):
    train(tiny(tmp_path / "m", steps=3))
    for options in ({"steps": 4}, {"seed": 1}, {"learning_rate": 0.5}, {"batch_size": 3}, {"depth": 2}):
        (name,) = options
        with pytest.raises(TrainingError, match=rf"other options.*{name} was .*, now {options[name]}"):
            train(tiny(tmp_path / "m", **{"steps": 3, **options}))


def test_where_the_folders_stand_may_change(tiny, house, tmp_path):
    trainer = Trainer(tiny(tmp_path / "m"))
    trainer.report = lambda status: trainer.request_stop()
    trainer.train()
    (tmp_path / "m").rename(tmp_path / "moved")
    assert train(tiny(tmp_path / "moved", keep=1)).finished
    assert [p.name for p in (tmp_path / "moved" / "steps").iterdir()] == ["00000012"]


def test_another_data_set_is_refused(tiny, other_house, tmp_path):
    train(tiny(tmp_path / "m", steps=3))
    with pytest.raises(TrainingError, match="another data set"):
        train(tiny(tmp_path / "m", steps=3, data=str(other_house.data)))


def test_a_foreign_model_is_not_overwritten(tiny, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.safetensors").write_bytes(b"somebody's")
    with pytest.raises(TrainingError, match="no steps/ to continue from"):
        train(tiny(tmp_path / "m"))
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == b"somebody's"


@pytest.mark.parametrize(("which", "what"), [("data", "a data set"), ("tokenizer", "a tokenizer")])
def test_a_model_is_not_written_into_a_data_set_or_a_tokenizer(tiny, house, tmp_path, which, what):
    shutil.copytree(getattr(house, which), tmp_path / "m")
    before = sorted(path.name for path in (tmp_path / "m").iterdir())
    with pytest.raises(TrainingError, match=f"m holds {what}: choose another --out"):
        train(tiny(tmp_path / "m"))
    assert sorted(path.name for path in (tmp_path / "m").iterdir() if not path.name.startswith(".")) == before


def test_a_run_that_diverges_says_so_and_saves_nothing_broken(tiny, tmp_path):
    out = tmp_path / "m"
    config = tiny(out, learning_rate=1e30, embedding_learning_rate=1e30, steps=50, checkpoint_every=1, warmup_steps=0)
    with pytest.raises(TrainingError, match=r"diverged.*lower --learning-rate") as error:
        train(config)
    assert obs.read_run(out / "run")["status"] == "failed"
    folders = sorted((out / "steps").glob("*"))
    if folders:
        assert "still stands" in str(error.value)
        assert all(parameter.isfinite().all() for parameter in Transformer.load(out).parameters())
    else:
        assert "No checkpoint had been saved" in str(error.value)
        assert not (out / "model.safetensors").exists()


def test_an_infinite_weight_is_never_saved(tiny, tmp_path):
    trainer = Trainer(tiny(tmp_path / "m", steps=3, checkpoint_every=2))

    def spoil(status):
        if status.step == 2:
            with torch.no_grad():
                next(trainer.model.parameters())[0, 0] = float("inf")

    trainer.report = spoil
    with pytest.raises(TrainingError, match="a weight is not a number at step 2: the run has diverged"):
        trainer.train()
    assert not (tmp_path / "m" / "steps").exists() or not list((tmp_path / "m" / "steps").iterdir())


def test_a_context_longer_than_the_data_is_refused_before_anything_is_written(tiny, tmp_path):
    with pytest.raises(TrainingError, match="shorter --context"):
        train(tiny(tmp_path / "m", context=100_000))
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("name", ["tpu", "cuda:99", "cuda:first", ""])
def test_a_device_that_is_not_there(tiny, tmp_path, name):
    with pytest.raises(ModelError, match=r"wanted.*device"):
        Trainer(tiny(tmp_path / "m", device=name))


def test_a_validation_shows_what_the_model_writes(tiny, tmp_path):
    statuses, longer = [], tiny(tmp_path / "m", steps=10, context=64)
    train(longer, report=statuses.append)
    written = [status.sample for status in statuses if status.sample is not None]
    rows = obs.read_metrics(tmp_path / "m" / "run")
    assert [row["step"] for row in rows if "sample" in row] == [5, 10]
    assert [row["sample"] for row in rows if "sample" in row] == written
    assert all(written)
    assert train(tiny(tmp_path / "one", steps=5, context=1)).finished  # no room for one: that is no error


def test_a_shape_that_cannot_be_saved_is_refused_at_the_start(tiny, tmp_path):
    """GPT-2's family has as many key heads as heads; the first checkpoint would have been the first to say so."""
    with pytest.raises(TrainingError, match="could be trained but not saved: save: wanted a shape"):
        Trainer(tiny(tmp_path / "m", preset="gpt2", width=32, heads=4, kv_heads=2))
    assert not (tmp_path / "m").exists()
