"""What a user sees: the live panel, plain lines, the plan, the file that repeats a run, accepted changes."""

from __future__ import annotations

import dataclasses
import io
import re
import tomllib

import pytest
import torch
from rich.console import Console

from tinylm import observability as obs
from tinylm.model import Transformer
from tinylm.training import TrainConfig, Trainer, TrainingError, planning
from tinylm.training._report import Display, Lines, duration, sparkline
from tinylm.training.compiling import compiled
from tinylm.training.device import pick_threads
from tinylm.training.optimizers import optimizers_for
from tinylm.training.status import Status


def status(**changes):
    facts = {"step": 7, "total_steps": 20, "fraction": 0.35, "loss": 2.5, "bits_per_character": 1.8}
    facts |= {
        "bits_per_byte": 1.7,
        "gradient_norm": 0.71,
        "learning_rate": 0.02,
        "tokens_per_second": 12345.6,
        "mfu": 0.31,
    }
    facts |= {"memory": 1_230_000_000, "seconds": 3.0, "seconds_left": 65.0, "validation_bits_per_character": None}
    return Status(**{**facts, "sample": None, **changes})


def test_the_panel_shows_every_figure_and_the_curve():
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    display = Display(console)
    for loss in (4.0, 3.0, 2.5):
        display.report(status(loss=loss))
    console.print(display._panel())
    shown = console.file.getvalue()
    for word in ("step 7/20", "loss 2.500", "bits/character 1.800", "tokens/s 12,346", "MFU 31%", "norm 0.71"):
        assert word in shown
    for word in ("bits/byte 1.700", "rate 2.00e-02", "memory 1.23 GB", "left 1:05", "loss █▃▁"):
        assert word in shown


def test_elsewhere_a_line_now_and_then_and_each_validation(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("tinylm.training._report.time.monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), force_terminal=False, width=400)
    with Display(console) as display:
        for second in range(25):
            now[0] = float(second)
            display.report(status(step=second + 1, total_steps=None))
        display.report(status(sample="to be\nor", validation_bits_per_character=2.345, loss=None))
    lines = console.file.getvalue().splitlines()
    assert [line.split(" · ")[0] for line in lines[:2]] == ["step 11", "step 21"]
    assert "MFU 31%" in lines[0]
    assert lines[2] == "step 7/20: validation 2.345 bits per character, and it writes: to be or"
    assert len(lines) == 3


def test_what_is_said_of_a_fine_tuning_stands_below_the_line_that_is_written_over(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("tinylm.training._report.time.monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), force_terminal=True, width=30, highlight=False)
    lines = Lines(console)
    now[0] = 1.0
    lines.report(1, 3, {"loss": 2.5})
    lines.say("stopping")
    now[0] = 2.0
    lines.report(2, 3, {"loss": 2.25})
    lines.report(3, 3, {"loss": 2.0})
    lines.say("stopped")
    steps = [f"step {n}/3 · loss {loss}".ljust(29) for n, loss in ((1, "2.5"), (2, "2.25"), (3, "2"))]
    assert console.file.getvalue() == f"{steps[0]}\r\nstopping\n{steps[1]}\r{steps[2]}\nstopped\n"


def test_curve_and_duration():
    assert sparkline([], 8) == ""
    assert sparkline([1.0], 8) == "▁"
    assert sparkline([float(n) for n in range(80)], 8) == "▁▂▃▄▅▆▇█"
    assert (duration(65), duration(3725)) == ("1:05", "1:02:05")


def test_a_dry_run_prints_the_plan_and_writes_nothing(run, house, tmp_path):
    words = ("--data", house.data, "--out", tmp_path / "m", "--depth", 2, "--width", 64, "--context", 16)
    words += ("--batch-size", 4, "--steps", 50, "--threads", 1, "--device", "cpu", "--dtype", "float32")
    code, out, err = run("pretrain", *words, "--dry-run")
    assert (code, err) == (0, "")
    _, shape = TrainConfig(data="d", out="o", depth=2, width=64, context=16).resolve(320)
    for word in (
        "2 layers of width 64",
        f"{shape.parameter_count():,} parameters",
        "4 windows of 16: 64 tokens",
    ):
        assert word in out
    assert "50 steps, 3,200 tokens" in out
    assert "a step without the optimiser" in out
    assert "peak " in out
    assert "validates: each tenth of the run on some windows, at the end on the whole split" in out
    saves = "saves:     each tenth of the run, every 1,000 steps, at each best validation and at the end"
    assert f"{saves}; keeps the newest 2 and the best" in out
    words += ("--validate-every", 7, "--checkpoint-every", 1, "--keep", 3, "--no-keep-best")
    _, out, _ = run("pretrain", *words, "--dry-run")
    assert "validates: every 7 steps on some windows" in out
    assert "saves:     every step and at the end; keeps the newest 3\n" in out
    assert not (tmp_path / "m").exists()


def test_a_dry_run_says_what_it_would_go_on_from_or_be_refused_for(run, tiny, tmp_path):
    stopped(tiny, tmp_path / "m")
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "m").rglob("*"))
    config = tmp_path / "m" / "run" / "config.toml"
    words = ("pretrain", "--config", config, "--out", tmp_path / "m", "--validate-every", 5, "--dry-run")
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    assert f"continues: after step 4, which stands in {tmp_path / 'm'}" in out
    code, _, err = run(*words, "--seed", 1)
    assert code == 1
    assert "seed was 0, now 1" in err
    assert sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "m").rglob("*")) == before


def test_the_file_in_the_run_repeats_it(tiny, tmp_path, run):
    Trainer(tiny(tmp_path / "m", steps=6, learning_rate=0.01)).train()
    path = tmp_path / "m" / "run" / "config.toml"
    assert path.read_text("utf-8").startswith(f"# The same run again: tinylm-train pretrain --config {path} --out ")
    code, _, err = run("pretrain", "--config", path, "--out", tmp_path / "again")
    assert code == 0, err
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("m", "again")]
    assert weights[0] == weights[1]


def test_minutes_become_steps_in_that_file(tiny, tmp_path):
    result = Trainer(tiny(tmp_path / "m", steps=None, minutes=0.005, validate_every=1000)).train()
    stored = tomllib.loads((tmp_path / "m" / "run" / "config.toml").read_text("utf-8"))
    assert stored["steps"] == result.total_steps
    assert "minutes" not in stored


def stopped(tiny, out, **options):
    trainer = Trainer(tiny(out, **options))
    trainer.report = lambda status: trainer.request_stop() if status.step == 4 else None
    trainer.train()


def test_changes_are_accepted_only_when_told(tiny, tmp_path):
    stopped(tiny, tmp_path / "m")
    changed = {"learning_rate": 0.001, "steps": 8}
    with pytest.raises(TrainingError, match=r"learning_rate was 0\.02, now 0\.001.*--accept-changes"):
        Trainer(tiny(tmp_path / "m", **changed)).train()
    said = []
    result = Trainer(tiny(tmp_path / "m", **changed, accept_changes=True), say=said.append).train()
    assert (result.finished, result.step) == (True, 8)
    (line,) = (line for line in said if "as accepted" in line)
    assert "steps was 12, now 8" in line
    rates = {row["step"]: row["learning_rate"] for row in obs.read_metrics(tmp_path / "m" / "run")}
    assert rates[5] < 0.001 < rates[4]
    options = (tmp_path / "m" / "run" / "config.toml").read_text("utf-8")
    assert options.startswith("# These options from the start: tinylm-train pretrain --config")
    assert re.search(r"^# after step 4: .*learning_rate was 0\.02, now 0\.001", options, re.M)
    assert Trainer(tiny(tmp_path / "m", **changed)).train().finished  # they are its options now


@pytest.mark.parametrize("changed", [{"depth": 2}, {"optimizer": "adamw"}, {"seed": 1}, {"average": 0.5}])
def test_what_cannot_change_is_refused_all_the_same(tiny, tmp_path, changed):
    stopped(tiny, tmp_path / "m")
    (name,) = changed
    with pytest.raises(TrainingError, match=rf"{name} cannot change in mid-run|{name} and .*cannot change"):
        Trainer(tiny(tmp_path / "m", **changed, accept_changes=True)).train()


def test_a_batch_that_does_not_fit_names_one_that_does(tiny, tmp_path, monkeypatch):
    config = tiny(tmp_path / "m", batch_size=64, dtype="float32")
    resolved, shape = config.resolve(320)
    whole, quarter = (planning.memory(resolved, shape, windows)["peak"] for windows in (64, 16))
    assert quarter < whole
    monkeypatch.setattr(planning, "memory_free", lambda device: quarter)
    with pytest.raises(TrainingError, match=r"wanted .* for a step over 64 windows.*--accumulate 4 computes the same"):
        Trainer(config)
    monkeypatch.setattr(planning, "memory_free", lambda device: 1000)
    with pytest.raises(TrainingError, match="the model is too large: try a smaller --depth and --width"):
        Trainer(config)
    monkeypatch.setattr(planning, "memory_free", lambda device: None)
    Trainer(config)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "adam", "lion", "sgd"])
def test_the_plan_knows_what_the_optimizer_keeps(tiny, tmp_path, optimizer):
    config, shape = tiny(tmp_path / "m", optimizer=optimizer, average=0.9).resolve(320)
    model = Transformer(shape)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    kept = 0
    for made in optimizers_for(model, config).values():
        made.step()
        kept += sum(x.nbytes for state in made.state.values() for x in state.values() if torch.is_tensor(x) and x.ndim)
    plan = planning.memory(config, shape)
    gains = sum(parameter.nbytes for parameter in model.parameters() if parameter.ndim < 2)
    assert abs(plan[f"optimiser ({optimizer})"] - kept) <= gains  # which Muon gives to AdamW, too
    assert plan["average of the weights"] == sum(parameter.nbytes for parameter in model.parameters())
    without = planning.memory(dataclasses.replace(config, average=0.0), shape)
    assert plan["peak"] - without["peak"] == plan["average of the weights"]


@pytest.mark.parametrize(
    ("free", "names"),
    [
        (30e9, ["accumulate"]),
        (5e9, ["activation_checkpointing", "accumulate"]),
        (2.25e9, ["context", "batch_size", "accumulate"]),
        (2e9, ["depth"]),
    ],
)
def test_what_is_suggested_fits(free, names):
    """24 windows of 4,096 tokens and 24 layers, on machines that are ever smaller."""
    options = {"data": "d", "out": "o", "depth": 24, "context": 4096, "batch_size": 24, "dtype": "float32"}
    config, shape = TrainConfig(**options).resolve(2048)
    assert planning.memory(config, shape)["peak"] > free
    words = planning.suggestion(config, shape, int(free))
    flags = {name.replace("-", "_"): number for name, number in re.findall(r"--([a-z-]+)(?: (\d+))?", words)}
    assert [name for name, number in flags.items() if number or name.startswith("activation")] == names
    changed = {name: int(number) if number else True for name, number in flags.items() if name in names}
    context = {} if "depth" not in names else {"context": 16, "batch_size": 1}
    config, shape = TrainConfig(**{**options, **changed, **context}).resolve(2048)
    assert planning.memory(config, shape)["peak"] <= free


def test_threads_are_what_is_faster():
    before = torch.get_num_threads()
    try:
        for fast, many in ((1, 4), (4, 4)):
            torch.set_num_threads(many)
            took = {fast: 1.0}
            assert pick_threads(lambda took=took: took.get(torch.get_num_threads(), 2.0)) == fast
            assert torch.get_num_threads() == fast
        torch.set_num_threads(4)
        assert pick_threads(lambda: 1.0) == 1  # a tie goes to one
        assert pick_threads(lambda: pytest.fail("one thread: nothing to measure")) == 1
    finally:
        torch.set_num_threads(before)


class TestCompiling:
    """With a torch.compile that the test gives, since the real one takes a minute."""

    @pytest.fixture(autouse=True)
    def _cache(self, monkeypatch, tmp_path):
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
        monkeypatch.setattr("tinylm.training.compiling.shutil.which", lambda name: "/usr/bin/" + name)
        monkeypatch.setattr("torch.compile", lambda loss, dynamic: "fast")

    def ask(self, choice="auto", run_seconds=3600.0, seconds=None):
        said = []
        times = seconds or {"fast": 0.5, "plain": 1.0}
        device = torch.device("cpu")
        result = compiled("plain", {"a": 1}, device, choice, run_seconds, lambda loss: times[loss], said.append)
        return result, " ".join(said)

    def test_it_is_used_where_it_pays_and_the_note_lets_a_short_run_use_it(self, monkeypatch):
        assert self.ask(run_seconds=60.0) == (None, "")  # it would not be worth while
        result, said = self.ask()
        assert (result, "0.500 s a gradient, 1.000 s without" in said) == ("fast", True)
        assert self.ask(run_seconds=60.0)[0] == "fast"  # measured now: half of a step, and no time from the cache

    def test_it_is_not_used_where_it_does_not_pay(self):
        result, said = self.ask(seconds={"fast": 0.99, "plain": 1.0})
        assert (result, "does not pay" in said) == (None, True)
        assert self.ask() == (None, "")  # it is known now
        assert self.ask("always", seconds={"fast": 0.99, "plain": 1.0})[0] == "fast"
        assert self.ask("never") == (None, "")

    def test_a_failure_is_one_line(self, monkeypatch):
        def fails(loss, dynamic):
            raise RuntimeError("Inductor: \nlots of lines")

        monkeypatch.setattr("torch.compile", fails)
        result, said = self.ask("always")
        assert (result, said) == (None, "torch.compile failed (Inductor:): going on without")

    def test_without_a_compiler_it_says_so(self, monkeypatch):
        monkeypatch.setattr("tinylm.training.compiling.shutil.which", lambda name: None)
        result, said = self.ask("always")
        assert (result, "needs a C++ compiler" in said) == (None, True)
