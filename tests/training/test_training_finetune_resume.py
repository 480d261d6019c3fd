"""A fine-tuning loses nothing: Ctrl-C once and twice, kill -9, a damaged checkpoint; bit for bit an unbroken one."""

from __future__ import annotations

import json
import multiprocessing
import threading

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("jinja2")

from safetensors.numpy import load_file  # noqa: E402  # after importorskip

from tinylm import observability as obs  # noqa: E402
from tinylm.model import Transformer, TransformerConfig  # noqa: E402
from tinylm.tokenizer import Tokenizer  # noqa: E402
from tinylm.training import TrainingError  # noqa: E402
from tinylm.training.finetuning import FinetuneConfig, finetune  # noqa: E402

STEPS = 12
METHODS = {
    "sft": {"method": "sft", "optimizer": "muon"},
    "lora": {"method": "lora"},
    "dpo": {"method": "dpo"},
    "grpo": {"method": "grpo", "iterations": 2, "samples": 2, "max_tokens": 2, "kl": 0.1, "reward": "format"},
}
RECORDS = {
    "sft": [{"prompt": f"{n} + 1 =", "completion": f" {n + 1}"} for n in range(7)],
    "dpo": [{"prompt": f"{n} + 1 =", "chosen": f" {n + 1}", "rejected": f" {n}"} for n in range(7)],
    "grpo": [{"prompt": f"{n} + 1 =", "format": "[a-m0-4]"} for n in range(7)],
}
RECORDS["lora"] = RECORDS["sft"]
CHILD = """
import os, signal, sys
log = os.open({log!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.dup2(log, 1), os.dup2(log, 2)
sys.argv = {argv!r}
from tinylm.training import cli, _report
from tinylm.training.finetuning import resuming
{before}
cli.main()
"""
AT_STEP_SEVEN = """
shown = _report.Lines.report
def report(self, step, steps, figures):
    shown(self, step, steps, figures)
    if step == 7:
        {act}
_report.Lines.report = report
"""
ONCE, TWICE = "os.kill(os.getpid(), signal.SIGINT)", "[os.kill(os.getpid(), signal.SIGINT) for _ in range(2)]"
WHILE_WRITING = "resuming.publish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A checkpoint, and the data of every method."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = Tokenizer.train(["0 + 1 = 1 2 3 4 5 6 7"], vocab_size=262, special_tokens=["<|endoftext|>"])
    torch.manual_seed(0)
    config = TransformerConfig.preset("qwen3", vocab_size=tokenizer.vocab_size, depth=1, width=64, context=32)
    Transformer(config).save(folder / "model")
    tokenizer.save(folder / "model")
    for name, records in RECORDS.items():
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return folder


@pytest.fixture(scope="module")
def make(base):
    """make(out, method, **options) -> a run of 12 steps that saves after every third."""

    def options(out, method="sft", **more):
        given = {"steps": STEPS, "batch_size": 3, "checkpoint_every": 3, "device": "cpu", "data": str(base / method)}
        return FinetuneConfig(checkpoint=str(base / "model"), out=str(out), **{**given, **METHODS[method], **more})

    return options


@pytest.fixture(scope="module")
def unbroken(make, tmp_path_factory):
    """unbroken(method) -> where a run stands that nothing stopped."""
    made = {}

    def run(method="sft"):
        if method not in made:
            made[method] = tmp_path_factory.mktemp("unbroken") / method
            assert finetune(make(made[method], method)).finished
        return made[method]

    return run


def outcome(out) -> dict:
    """All that a run leaves but its times."""
    newest = max((out / "steps").iterdir(), key=lambda p: p.name)
    state = json.loads((newest / "state.json").read_text("utf-8"))
    tensors = {
        f"{path.relative_to(newest)}:{name}": value.tobytes()
        for path in newest.rglob("*.safetensors")
        for name, value in load_file(path).items()
    }
    assert (out / "model.safetensors").read_bytes() == (newest / "model.safetensors").read_bytes()
    rows = {
        row["step"]: {name: value for name, value in row.items() if name not in ("time", "attempt")}
        for row in obs.read_metrics(out / "run")
    }
    return {"tensors": tensors, "rows": rows, **{name: state[name] for name in ("step", "rng", "generator", "options")}}


def stopped(config, step):
    """The run until that step."""
    stop = threading.Event()
    return finetune(config, lambda done, steps, figures: stop.set() if done == step else None, lambda line: None, stop)


@pytest.mark.parametrize("method", METHODS)
def test_a_stopped_run_goes_on_to_the_same_end(make, unbroken, tmp_path, method):
    result = stopped(make(tmp_path / "m", method), 5)
    assert not result.finished
    assert result.step == (6 if method == "grpo" else 5)  # drawn answers get both of their updates first
    assert Transformer.load(tmp_path / "m").config.depth == 1
    assert finetune(make(tmp_path / "m", method)).finished
    assert outcome(tmp_path / "m") == outcome(unbroken(method))
    assert len(outcome(tmp_path / "m")["rows"]) == STEPS


def start(config, log, before):
    argv = ["tinylm-train", "finetune", config.checkpoint]
    for name in ("data", "out", "method", "optimizer", "steps", "batch_size", "checkpoint_every", "device"):
        argv += [f"--{name.replace('_', '-')}", str(getattr(config, name))]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tinylm.training.finetuning.run", "tinylm.training.cli"])
    process = context.Process(target=exec, args=(CHILD.format(log=str(log), argv=argv, before=before), {}))
    process.start()
    process.join()
    return process.exitcode


@pytest.mark.parametrize(
    ("before", "code", "saved"),
    [
        (AT_STEP_SEVEN.format(act=ONCE), 130, 7),
        (AT_STEP_SEVEN.format(act=TWICE), 130, 6),
        (AT_STEP_SEVEN.format(act="os.kill(os.getpid(), signal.SIGKILL)"), -9, 6),
        (WHILE_WRITING, -9, 3),
    ],
    ids=["once", "twice", "killed", "killed while writing"],
)
def test_the_same_command_goes_on(make, unbroken, tmp_path, before, code, saved):
    config, log = make(tmp_path / "m"), tmp_path / "log"
    assert start(config, log, before) == code, log.read_text("utf-8")
    newest = max((tmp_path / "m" / "steps").glob("[0-9]*"), key=lambda p: p.name)
    assert int(newest.name) == saved
    if saved == 7:
        assert "The same command again goes on" in log.read_text("utf-8")
    assert start(config, log, "") == 0
    assert f"going on after step {saved}" in log.read_text("utf-8")
    assert outcome(tmp_path / "m") == outcome(unbroken())
    assert start(config, log, "") == 0
    assert "already finished: 12 of 12 steps" in log.read_text("utf-8")


def test_a_damaged_checkpoint_is_passed_over(make, unbroken, tmp_path):
    stopped(make(tmp_path / "m"), 7)
    path = tmp_path / "m" / "steps" / "00000007" / "state" / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    said: list[str] = []
    assert finetune(make(tmp_path / "m"), say=said.append).finished
    assert "state.safetensors: not what was written" in said[0]
    assert said[1] == "going on after step 6"
    assert outcome(tmp_path / "m") == outcome(unbroken())


def test_changed_options_are_refused_by_name(make, base, tmp_path):
    out = tmp_path / "m"
    stopped(make(out), 5)
    with pytest.raises(TrainingError, match=r"batch_size was 3, now 4.*--overwrite"):
        finetune(make(out, batch_size=4))
    data = tmp_path / "data"
    data.write_text((base / "sft").read_text("utf-8") + json.dumps(RECORDS["sft"][0]) + "\n", "utf-8")
    with pytest.raises(TrainingError, match="another data"):
        finetune(make(out, data=str(data)))


def test_overwriting_starts_again_only_what_is_another_run_or_at_its_end(make, unbroken, tmp_path):
    out, said = tmp_path / "m", []
    stopped(make(out, overwrite=True), 5)
    assert finetune(make(out, overwrite=True), say=said.append).finished
    assert said == ["going on after step 5"]
    assert outcome(out) == outcome(unbroken())
    finetune(make(out, overwrite=True, seed=1), say=said.append)
    assert len(said) == 1
    assert outcome(out)["options"]["seed"] == 1
    assert {row["attempt"] for row in obs.read_metrics(out / "run")} == {1}


def test_another_kind_of_run_is_not_taken_up(make, tiny, tmp_path):
    from tinylm.training import Trainer

    Trainer(tiny(tmp_path / "m", steps=1)).train()
    with pytest.raises(TrainingError, match="another kind of run stands at"):
        finetune(make(tmp_path / "m"))
