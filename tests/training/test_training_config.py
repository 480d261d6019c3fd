"""Options: file < flags, everything checked, the dial fills in the rest; and the learning rate's schedule."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinylm.model import ModelError
from tinylm.training import TrainConfig, TrainingError
from tinylm.training.finetuning import FinetuneConfig
from tinylm.training.schedule import learning_rate_factor


def test_flags_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('data = "d"\nout = "o"\ndepth = 2\nlearning_rate = 1\nkeep = 5\n')
    config = TrainConfig.load(file, depth=3, out="other", seed=None)
    assert (config.data, config.out, config.depth, config.keep) == ("d", "other", 3, 5)
    assert (config.learning_rate, type(config.learning_rate)) == (1.0, float)  # TOML's 1 is meant as a number
    assert config.seed == TrainConfig(data="d", out="o").seed
    assert TrainConfig.load(data="d", out="o") == TrainConfig(data="d", out="o")


def test_a_length_as_a_flag_takes_the_place_of_the_files(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('data = "d"\nout = "o"\nminutes = 3\n')
    assert TrainConfig.load(file, steps=5).steps == 5
    assert TrainConfig.load(file, steps=5).minutes is None
    assert TrainConfig.load(file, depth=2).minutes == 3
    with pytest.raises(TrainingError, match="got steps and tokens"):  # two flags are still two
        TrainConfig.load(file, steps=5, tokens=100)
    file.write_text("steps = 5\n")
    tuned = FinetuneConfig.load(file, checkpoint="c", data="d", out="o", epochs=2.0)
    assert (tuned.steps, tuned.epochs) == (None, 2.0)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("dept = 2", "unknown dept"),
        ("depth = 2.5", "depth to be int"),
        ('depth = "2"', "depth to be int"),
        ("depth = true", "depth to be int"),
        ("seed = [1]", "seed to be int"),
        ("learning_rate = 'high'", "learning_rate to be float"),
        ("preset = 7", "preset to be str"),
        ("optimizer = 'sophia'", "optimizer.*muon, adamw.*sophia"),
        ("optimizer = 7", "optimizer.*muon, adamw.*7"),
        ("dtype = 'int8'", "dtype.*float32.*int8"),
        ("accumulate = 0", "accumulate > 0"),
        ("average = 1.0", "average between 0"),
        ("spike = -1", "spike >= 0"),
        ("embedding_weight_decay = -1", "embedding_weight_decay >= 0"),
        ("keep_best = 1", "keep_best to be bool, got 1"),
        ("compile = 'yes'", "compile.*auto, always, never.*yes"),
        ("on_divergence = 'pray'", "on_divergence.*stop, skip, rollback.*pray"),
        ("schedule = 'cosine'", "steps or tokens with the schedule cosine"),
        ("schedule = 'linear'\nminutes = 2", "steps or tokens with the schedule linear"),
        ("schedule = 'stairs'", "schedule.*wsd, cosine, linear.*stairs"),
        ("depth = 0", "depth > 0"),
        ("steps = -1", "steps > 0"),
        ("learning_rate = nan", "learning_rate > 0"),
        ("learning_rate = inf", "learning_rate > 0"),
        ("clip = inf", "clip > 0"),
        ("minutes = inf", "minutes > 0"),
        ("minutes = 0", "minutes > 0"),
        ("weight_decay = -0.1", "weight_decay >= 0"),
        ("decay_fraction = 0.95", "decay_fraction between 0 and 0.9"),
        ("warmup_steps = -1", "warmup_steps >= 0"),
        ("seed = -1", "seed between 0"),
        ("seed = 9223372036854775808", "seed between 0"),
        ("batch_size = 0", "batch_size > 0"),
        ("keep = 0", "keep > 0"),
        ("threads = 0", "threads between 1 and 1024"),
        ("threads = 1000000", "threads between 1 and 1024, got 1000000"),
        ("minutes = 1\nsteps = 5", "one of minutes, steps and tokens, got minutes and steps"),
        ("this is not TOML", "TOML"),
    ],
)
def test_bad_options_are_refused_by_name(tmp_path, line, said):
    file = tmp_path / "run.toml"
    file.write_text(line + '\ndata = "d"\nout = "o"\n')
    with pytest.raises(TrainingError, match=said):
        TrainConfig.load(file)


def test_a_file_that_cannot_be_read_and_folders_that_are_missing(tmp_path):
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    for file in (tmp_path / "nowhere.toml", tmp_path, tmp_path / "bytes.toml"):
        with pytest.raises(TrainingError, match="TOML file"):
            TrainConfig.load(file, data="d", out="o")
    with pytest.raises(TrainingError, match="data and out"):
        TrainConfig.load(depth=2)


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "lion"])
@pytest.mark.parametrize("preset", ["qwen3", "llama", "gpt2"])
@pytest.mark.parametrize("depth", [1, 4, 12])
def test_the_dial_sets_everything(preset, depth, optimizer):
    config, shape = TrainConfig(data="d", out="o", depth=depth, preset=preset, optimizer=optimizer).resolve(2048)
    open_ends = {
        "steps",
        "tokens",
        "validate_every",
        "checkpoint_every",
        "threads",
    }  # the run's length decides, or torch
    assert {name for name, value in config.description().items() if value is None} <= open_ends
    assert config.minutes == 3.0
    assert config.weight_decay == (0.1 if optimizer == "muon" else 0.0)
    assert (shape.depth, shape.vocab_size, shape.context) == (depth, 2048, config.context)
    assert (config.width, config.heads, config.kv_heads, config.mlp_width) == (
        shape.width,
        shape.heads,
        shape.kv_heads,
        shape.mlp_width,
    )
    assert config.resolve(2048) == (config, shape)  # what is stored repeats the run


def test_beyond_a_width_of_128_rates_fall_as_the_width_grows():
    def rates(optimizer, width):
        config, _ = TrainConfig(data="d", out="o", preset="gpt2", optimizer=optimizer, width=width).resolve(300)
        return config.learning_rate, config.embedding_learning_rate

    for optimizer, falling in (("adamw", (0, 1)), ("muon", (1,))):
        narrow, base, wide = (rates(optimizer, width) for width in (64, 128, 512))
        assert narrow == base
        for kind in (0, 1):
            assert wide[kind] == pytest.approx(base[kind] / (4 if kind in falling else 1))


def test_everything_can_be_set_one_by_one():
    chosen = {
        "width": 96,
        "heads": 4,
        "kv_heads": 2,
        "mlp_width": 100,
        "context": 48,
        "batch_size": 3,
        "learning_rate": 0.5,
        "embedding_learning_rate": 0.25,
        "weight_decay": 0.0,
        "steps": 9,
    }
    config, shape = TrainConfig(data="d", out="o", depth=2, **chosen).resolve(300)
    assert chosen.items() <= config.description().items()
    assert config.minutes is None
    assert (shape.width, shape.heads, shape.kv_heads, shape.mlp_width, shape.context) == (96, 4, 2, 100, 48)


def test_tokens_become_steps():
    def steps(tokens):
        return TrainConfig(data="d", out="o", tokens=tokens, batch_size=4, context=32).resolve(300)[0].steps

    assert (steps(1280), steps(1407), steps(1408), steps(1)) == (10, 10, 11, 1)


def test_shapes_that_contradict_themselves_are_refused():
    for options in ({"preset": "gpt9"}, {"width": 100}, {"heads": 3, "kv_heads": 2}):
        with pytest.raises(ModelError, match="wanted"):
            TrainConfig(data="d", out="o", **options).resolve(300)


def test_options_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig(data="d", out="o").depth = 3


def test_the_rate_warms_up_holds_and_goes_down_to_zero():
    factors = [learning_rate_factor(step, 100, 10, 0.4) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert factors[9:61] == [1.0] * 52
    assert factors[60:] == pytest.approx([(100 - step) / 40 for step in range(60, 100)])
    assert learning_rate_factor(100, 100, 10, 0.4) == 0.0
    assert learning_rate_factor(0, 100, 0, 0.0) == learning_rate_factor(99, 100, 0, 0.0) == 1.0


def test_a_cosine_and_a_line_go_down_from_the_warm_up_to_zero():
    cosine = [learning_rate_factor(step, 110, 10, 0.6, "cosine") for step in range(111)]
    line = [learning_rate_factor(step, 110, 10, 0.6, "linear") for step in range(111)]
    for step in range(10, 111):
        assert cosine[step] == pytest.approx((1 + math.cos(math.pi * (step - 10) / 100)) / 2)
        assert line[step] == pytest.approx(1 - (step - 10) / 100)
    for factors in (cosine, line):
        assert factors[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
        assert factors[110] == 0.0
    assert learning_rate_factor(2, 3, 20, 0.6, "cosine") > 0  # a run shorter than its warm-up


@given(
    total=st.integers(1, 10_000),
    warmup=st.integers(0, 2000),
    fraction=st.floats(0, 0.9),
    part=st.floats(0, 1, exclude_max=True),
)
def test_until_the_decay_the_rate_does_not_depend_on_the_length(total, warmup, fraction, part):
    step = int(part * total)
    factor = learning_rate_factor(step, total, warmup, fraction)
    assert 0 < factor <= 1
    if total - step >= fraction * total:
        assert factor == learning_rate_factor(step, None, warmup, fraction)
    else:
        assert factor <= learning_rate_factor(step, None, warmup, fraction)
