"""On a GPU: device memory, CUDA timings against events, CUDA scalars logged without an extra synchronisation."""

import subprocess
import sys
from pathlib import Path

import pytest

from tinylm import observability as obs
from tinylm.observability import timing

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


def test_device_memory_sees_what_is_allocated() -> None:
    torch.zeros(1, device="cuda")
    before = timing.device_memory()
    block = torch.zeros(64 * 2**20, dtype=torch.uint8, device="cuda")
    after = timing.device_memory()
    assert before is not None
    assert after is not None
    assert after["allocated"] - before["allocated"] == block.numel()
    assert after["peak"] >= after["allocated"]
    assert 0 < after["free"] < after["total"]
    assert after["total"] == pytest.approx(torch.cuda.get_device_properties(0).total_memory, rel=0.02)
    assert obs.machine()["gpus"][0]["name"] == torch.cuda.get_device_name(0)


def test_device_time_agrees_with_events_around_the_same_work() -> None:
    cycles = 50_000_000

    def work() -> None:
        torch.cuda._sleep(cycles)  # spins for a known number of clock cycles

    work()
    torch.cuda.synchronize()
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    work()
    last.record()
    torch.cuda.synchronize()
    expected = first.elapsed_time(last) / 1000
    figures = timing.interleaved({"once": work, "twice": lambda: [work(), work()]}, repeats=5)
    once, twice = figures["once"], figures["twice"]
    assert once.device_seconds == pytest.approx(expected, rel=0.5)
    assert twice.device_seconds == pytest.approx(2 * expected, rel=0.5)
    assert once.seconds >= once.device_seconds * 0.9  # the wall clock waited for the device


def test_cuda_scalars_are_logged_without_a_synchronisation(tmp_path: Path) -> None:
    values = [torch.full((), float(step), device="cuda", requires_grad=True) for step in range(5)]
    torch.cuda.synchronize()
    mode = torch.cuda.get_sync_debug_mode()
    run = obs.init(tmp_path)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):
            values[0].item()  # the mode works: this is what log must not do
        for step, value in enumerate(values):
            run.log({"loss": value * 2, "learning_rate": 0.5}, step=step)
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    run.finish()
    rows = obs.read_metrics(tmp_path)
    assert [(row["step"], row["loss"], row["learning_rate"]) for row in rows] == [(s, 2.0 * s, 0.5) for s in range(5)]


def test_log_returns_while_the_device_still_computes(tmp_path: Path) -> None:
    run = obs.init(tmp_path)
    # Loading a kernel and allocating pinned memory happen once, and may wait for the device: they happen here.
    torch.cuda._sleep(1)
    run.log({"warm": torch.ones((), device="cuda") + 1}, step=0)
    torch.cuda.synchronize()
    run.log({"plain": 0.0}, step=0)  # writes the held row, which gives its pinned memory back for the next
    torch.cuda.synchronize()
    value = torch.ones((), device="cuda")
    torch.cuda._sleep(2_000_000_000)  # about a second
    run.log({"loss": value + 1}, step=1)
    done = torch.cuda.Event()
    done.record()
    assert not done.query()  # log came back before the device had finished
    run.log({"plain": 1.0}, step=2)  # ordinary rows do not wait either
    assert not done.query()
    assert [row["step"] for row in obs.read_metrics(tmp_path)] == [0, 2]
    torch.cuda.synchronize()
    run.log({"plain": 2.0}, step=3)  # finds the held row arrived and writes it
    rows = obs.read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert rows[1]["loss"] == 2.0
    run.finish()


def test_cuda_values_that_are_not_finite_or_not_scalars(tmp_path: Path) -> None:
    with obs.init(tmp_path) as run:
        run.log({"loss": torch.tensor(float("inf"), device="cuda"), "count": torch.tensor([3], device="cuda")}, step=0)
        with pytest.raises(obs.ObservabilityError, match=r"wanted one number for 'loss', got a tensor of shape \(2,\)"):
            run.log({"loss": torch.zeros(2, device="cuda")}, step=1)
    assert [(row["loss"], row["count"]) for row in obs.read_metrics(tmp_path)] == [(float("inf"), 3)]


def test_held_rows_are_written_when_the_program_ends_without_finish(tmp_path: Path) -> None:
    code = (
        "import sys, torch\nfrom tinylm import observability as obs\nrun = obs.init(sys.argv[1])\n"
        "run.log({'loss': torch.tensor(4.0, device='cuda')}, step=7)\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)
    assert [(row["step"], row["loss"]) for row in obs.read_metrics(tmp_path)] == [(7, 4.0)]


def test_a_profile_gives_the_gpus_time_to_operations_and_modules(tmp_path: Path) -> None:
    model = torch.nn.Linear(1024, 1024, device="cuda")
    x = torch.randn(1024, 1024, device="cuda")
    model(x).sum().backward()
    with obs.profile(tmp_path, roofline=False) as profile:
        model(x).sum().backward()
        torch.cuda.synchronize()
    spent = {row["operation"]: row["gpu"] for row in profile.results["operations"]}
    assert spent["aten::addmm"] > 0
    assert spent["aten::mm"] > 0  # in the backward pass
    assert next(row["gpu"] for row in profile.results["modules"] if row["module"] == "Linear") > 0
    assert any(name.startswith("cuda") for name in profile.results["memory"])


def test_watching_a_model_on_the_gpu_equals_the_cpu(tmp_path: Path) -> None:
    rows = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
        x = torch.randn(8, 16).to(device)
        optimizer = torch.optim.SGD(model.to(device).parameters(), lr=0.1)
        with obs.init(tmp_path / device) as run, obs.watch(model, run, [optimizer]) as watch:
            watch.begin(0)
            model(x).square().mean().backward()
            optimizer.step()
            watch.end(1.0)
        rows.append(obs.read_metrics(tmp_path / device)[0])
    ours, theirs = ({name: value for name, value in row.items() if "/" in name} for row in rows)
    assert ours.keys() == theirs.keys()
    assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-6)
