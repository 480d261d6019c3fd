"""Two processes over gloo compute what one does: DDP, FSDP2 and tensor parallel, and two of them together."""

from __future__ import annotations

import json

import pytest
from safetensors.numpy import load_file

from tinylm import observability as obs
from tinylm.training import Trainer

# every option whose work is shared out: parts of a batch, the average, clipping, decay of both kinds of parameters
SHARED = {
    "depth": 2,
    "heads": 4,
    "kv_heads": 2,
    "batch_size": 8,
    "accumulate": 2,
    "average": 0.9,
    "clip": 0.5,
    "warmup_steps": 2,
    "weight_decay": 0.1,
    "embedding_weight_decay": 0.1,
    "process_timeout": 120.0,
    "validate_every": 10,  # on some windows; at the end on the whole split
    "checkpoint_every": 10,
}
GPT2 = {"preset": "gpt2", "optimizer": "adamw", "learning_rate": 1e-3, "width": 128, "heads": 2, "mlp_width": 512}
FIGURES = ("loss", "gradient_norm", "learning_rate", "tokens", "validation_bits_per_character")
WAYS = {
    "ddp": (2, 20, {}),
    "fsdp": (2, 20, {"data_parallel": "fsdp"}),
    "tensor": (2, 4, {"tensor_parallel": 2}),  # on a CPU it is slow, and 4 steps tell
    "fsdp and tensor": (4, 4, {"data_parallel": "fsdp", "tensor_parallel": 2}),
}


def figures(out) -> dict[int, dict[str, float]]:
    rows = obs.read_metrics(out / "run")
    return {row["step"]: {name: row[name] for name in FIGURES if name in row} for row in rows}


def samples(out) -> list[str]:
    return [row["sample"] for row in obs.read_metrics(out / "run") if "sample" in row]


def assert_equal(out, wanted, within=1e-5) -> None:
    """The rows and the published weights of two runs agree."""
    ours, theirs = figures(out), figures(wanted)
    assert list(ours) == list(theirs)
    for step, row in ours.items():
        assert row == pytest.approx(theirs[step], abs=within, rel=0), step
    assert samples(out) == samples(wanted)
    left, right = load_file(out / "model.safetensors"), load_file(wanted / "model.safetensors")
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert value == pytest.approx(right[name], abs=10 * within), name


@pytest.fixture(scope="module")
def options(tiny):
    return lambda out, **more: tiny(out, **{**SHARED, **more})


@pytest.fixture(scope="module")
def alone(options, tmp_path_factory):
    """What one process comes to, by what else is asked for."""
    done = {}

    def of(**more):
        key = json.dumps(more)
        if key not in done:
            done[key] = tmp_path_factory.mktemp("alone") / "m"
            Trainer(options(done[key], **more)).train()
        return done[key]

    return of


@pytest.mark.parametrize("way", WAYS)
def test_losses_are_those_of_one_process(options, alone, together, tmp_path, way):
    number, steps, how = WAYS[way]
    run = together(options(tmp_path / "m", steps=steps, **how), tmp_path, number)
    assert run.wait() == [0] * number, run.said
    assert_equal(tmp_path / "m", alone(steps=steps))
    assert len(figures(tmp_path / "m")) == steps
    assert obs.read_run(tmp_path / "m" / "run")["config"]["processes"] == number
    first, *others = [log.read_text() for log in run.logs]
    assert f"{number} processes" in first
    assert f"finished: {steps} steps" in first
    assert others == [""] * (number - 1)  # one speaks for all
    assert not list((tmp_path / "m").rglob(".*"))


@pytest.mark.parametrize("way", ["fsdp", "tensor"])
def test_so_are_they_with_biases_and_adamw(options, alone, together, tmp_path, way):
    number, _, how = WAYS[way]
    run = together(options(tmp_path / "m", steps=4, **GPT2, **how), tmp_path, number)
    assert run.wait() == [0] * number, run.said
    assert_equal(tmp_path / "m", alone(steps=4, **GPT2))
