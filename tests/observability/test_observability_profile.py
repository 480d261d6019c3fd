"""Profiles: what is read from a trace, what is sampled, the files; the roofline and what operations cost."""

import importlib
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tinylm import observability as obs
from tinylm.observability import _cost, _sampler, _svg, _target, _trace, roofline

LIMIT = roofline.Roofline("cpu", 1, {1000: 1e9, 10**9: 1e8}, {"float32": 1e9, "bfloat16": 4e9}, {})


def event(name: str, start: float, length: float, **arguments: Any) -> dict[str, Any]:
    kind = "user_annotation" if name.startswith("module: ") else "cpu_op"
    return {
        **{"ph": "X", "cat": kind, "name": name, "pid": 1, "tid": 1},
        **{"ts": start, "dur": length, "args": {key.replace("_", " "): value for key, value in arguments.items()}},
    }


EVENTS = [
    event("module: blocks.0", 0, 100),
    event("aten::linear", 10, 60, Sequence_number=7, External_id=1),
    event("aten::addmm", 20, 40, Sequence_number=7, External_id=2)
    | {
        "args": {"Input Dims": [[8], [4, 16], [16, 8]], "Input type": ["float"] * 3, "External id": 2}
        | {"Sequence number": 7}
    },
    event("autograd::engine::evaluate_function: AddmmBackward0", 200, 50, Sequence_number=7),
    event("aten::mm", 210, 30, External_id=3),
    {"ph": "X", "cat": "kernel", "name": "gemm", "pid": 0, "tid": 7, "ts": 40, "dur": 500, "args": {"External id": 3}},
    {"ph": "i", "name": "[memory]", "ts": 30, "args": {"Bytes": 64, "Device Type": 0}},
    {"ph": "i", "name": "[memory]", "ts": 50, "args": {"Bytes": -100, "Device Type": 0}},
]


def test_a_trace_becomes_operations_modules_and_memory() -> None:
    spans, device = _trace.spans(EVENTS), _trace.device_seconds(EVENTS)
    own = {span.event["name"]: span.own * 1e6 for span in spans}
    assert own["module: blocks.0"] == pytest.approx(40)
    assert own["aten::linear"] == pytest.approx(20)
    assert own["aten::addmm"] == pytest.approx(40)
    rows = {row["operation"]: row for row in _trace.operations(spans, device, LIMIT)}
    assert "autograd::engine::evaluate_function: AddmmBackward0" not in rows
    addmm = rows["aten::addmm"]
    assert (addmm["calls"], addmm["flops"]) == (1, 2 * 4 * 16 * 8)
    assert addmm["bytes"] == 4 * (8 + 4 * 16 + 16 * 8 + 4 * 8)
    assert addmm["fraction of roofline"] == pytest.approx((2 * 4 * 16 * 8 / 1e9) / 40e-6)
    assert addmm["bound"] == "compute"
    assert rows["aten::mm"]["gpu"] == pytest.approx(500e-6)
    assert next(iter(rows)) == "aten::mm"  # the most time first, the GPU's included
    (module,) = _trace.modules(spans, device)
    assert module["module"] == "blocks.0"
    assert module["forward"] == pytest.approx(100e-6)
    assert module["backward"] == pytest.approx(50e-6)  # by the sequence number of its forward operation
    assert _trace.memory(EVENTS) == {"cpu": [(2e-05, 100), (4e-05, 0)]}  # freed from before: it starts higher


def test_operations_cost_what_their_shapes_say() -> None:
    two = ["float", "float"]
    assert _cost.cost("aten::mm", [[2, 3], [3, 5]], two) == (60, 4 * (6 + 15 + 10))
    assert _cost.cost("aten::bmm", [[7, 2, 3], [7, 3, 5]], two) == (420, 4 * 7 * (6 + 15 + 10))
    assert _cost.cost("aten::add", [[4, 4], [4]], ["c10::BFloat16"] * 2) == (16, 2 * (16 + 4 + 16))
    for name in ("aten::view", "aten::resolve_conj", "aten::to", "AddBackward0", "detach"):
        assert _cost.cost(name, [[4, 4]], ["float"]) == (0, 0)
    assert _cost.cost("aten::embedding", [[9000, 8], [2, 3]], ["float", "long int"]) == (48, 4 * 48 + 8 * 6 + 4 * 48)
    assert _cost.cost("aten::gather", [[6, 9000], [6, 1]], ["float", "long int"]) == (6, 8 * 6 + 8 * 6)
    assert _cost.cost("aten::add", [[], []], ["Scalar", ""]) == (0, 0)
    attention = [[1, 2, 8, 4]] * 3
    assert _cost.cost("aten::scaled_dot_product_attention", attention, ["float"] * 3)[0] == 2 * 2 * 64 * 8
    backward = _cost.cost("aten::_scaled_dot_product_flash_attention_for_cpu_backward", attention * 2, ["float"] * 6)
    assert backward[0] == 5 * 2 * 64 * 8
    assert _cost.kind(["", "Scalar", "c10::BFloat16", "float"]) == "bfloat16"


def test_the_roofline_takes_the_tighter_limit() -> None:
    assert LIMIT.bandwidth_at(10) == 1e9
    assert LIMIT.bandwidth_at(1001) == LIMIT.bandwidth_at(1e12) == 1e8
    assert LIMIT.seconds(1e6, 100) == (1e-3, "compute")
    assert LIMIT.seconds(1e6, 100, "bfloat16") == (0.25e-3, "compute")
    assert LIMIT.seconds(10, 1e6) == (1e-2, "memory")


def test_the_roofline_is_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(roofline, "_FOOTPRINTS", [2**15, 2**18])
    monkeypatch.setattr(roofline, "_SIDE", {"float32": 64, "bfloat16": 64, "no such type": 8})
    monkeypatch.setattr(roofline, "_SECONDS", 0.001)
    with pytest.raises(AttributeError):
        roofline.measured()
    monkeypatch.setattr(roofline, "_SIDE", {"float32": 64, "bfloat16": 64})
    first = roofline.measured()
    assert sorted(first.bandwidth) == [2**15, 2**18]
    assert sorted(first.peak) == ["bfloat16", "float32"]
    assert all(value > 0 for value in [*first.bandwidth.values(), *first.peak.values()])
    (file,) = tmp_path.glob("tinylm/roofline-cpu-*.json")
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"peak": {"float32": 123.0}}))
    assert roofline.peak() == 123.0  # the cache's
    with pytest.raises(obs.ObservabilityError, match="wanted a type of float32 on cpu, got 'int3'"):
        roofline.peak("int3")
    assert roofline.measured(again=True).peak["float32"] != 123.0
    file.write_text("{}")
    with pytest.raises(obs.ObservabilityError, match="wanted a JSON object"):
        roofline.measured()


def test_what_a_larger_footprint_reached_a_smaller_one_can(monkeypatch: pytest.MonkeyPatch) -> None:
    reached = {2**15: 5.0, 2**17: 2.0, 2**19: 3.0}  # a busy machine, while the second was measured
    monkeypatch.setattr(roofline, "_FOOTPRINTS", list(reached))
    monkeypatch.setattr(roofline, "_bandwidth", lambda torch, device, size: reached[size])
    assert roofline._bandwidths(None, "cpu") == {2**15: 5.0, 2**17: 3.0, 2**19: 3.0}


def test_what_the_profiler_itself_does_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sampler.Sampler, "_work", lambda self: None)  # samples are taken here, by hand
    sampler = _sampler.Sampler()
    sampler.start(sys._getframe())  # what called this test is left out
    with sampler.paused():
        sampler._take()
    assert sampler.timeline == []
    sampler._take()
    ((_, _, stack),) = sampler.timeline
    assert stack[0].endswith("test_what_the_profiler_itself_does_is_not_counted")
    sampler.stop()


def test_recording_does_not_begin_within_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "within_an_import.py").write_text(
        "import sys\nfrom tinylm.observability._target import _importing\nFOUND = _importing(sys._getframe())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.import_module("within_an_import").FOUND
    assert not _target._importing(sys._getframe())


def test_samples_that_reach_into_one_another_are_spans_within_spans() -> None:
    sampler = _sampler.Sampler()
    sampler.timeline = [(0.0, 1.2, ("a", "b")), (1.0, 1.0, ("a", "c", "d"))]  # the first ends after the second begins
    spans = {str(one["name"]): (float(str(one["ts"])), float(str(one["dur"]))) for one in sampler.events(0)}
    assert spans == {"b": (0.0, 1e6), "d": (1e6, 1e6), "c": (1e6, 1e6), "a": (0.0, 2e6)}


def test_the_sampler_finds_where_the_time_goes() -> None:
    sampler = _sampler.Sampler()

    def slow() -> None:
        until = time.perf_counter() + 0.2
        while time.perf_counter() < until:
            pass

    sampler.start()
    slow()
    sampler.stop()
    name, own, whole = next(row for row in sampler.functions() if row[0].endswith("slow"))
    assert re.fullmatch(r"test_observability_profile\.py:\d+ .*slow", name)
    assert 0.1 < own <= whole
    (event,) = [one for one in sampler.events(0) if str(one["name"]).endswith("slow")]
    assert float(str(event["dur"])) > 1e5


def test_a_profile_of_torch_names_operations_and_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr("tinylm.observability.profiling.measured", lambda device: LIMIT)
    model = torch.nn.ModuleDict({"first": torch.nn.Linear(64, 32), "second": torch.nn.Linear(32, 8)})
    with obs.profile(tmp_path / "profile", title="a <b> step") as profile:
        model["second"](model["first"](torch.randn(16, 64)).relu()).sum().backward()
    operations = {row["operation"]: row for row in profile.results["operations"]}
    assert operations["aten::addmm"]["calls"] == 2
    assert operations["aten::addmm"]["flops"] == 2 * 16 * 64 * 32 + 2 * 16 * 32 * 8
    modules = {row["module"]: row for row in profile.results["modules"]}
    assert modules["first"]["calls"] == modules["second"]["calls"] == 1
    assert modules["first"]["forward"] > 0
    assert modules["second"]["backward"] > 0
    assert max(size for _, size in profile.results["memory"]["cpu"]) >= 4 * 16 * 32
    assert not any(module._forward_hooks for module in model.values())
    assert json.loads((tmp_path / "profile" / "profile.json").read_text())["format"] == 1
    trace = json.loads((tmp_path / "profile" / "trace.json").read_text())
    assert "host_name" not in trace
    assert any(one["name"] == "module: first" for one in trace["traceEvents"])
    page = (tmp_path / "profile" / "profile.html").read_text()
    assert "a &lt;b&gt; step" in page
    assert "aten::addmm" in page
    assert "<!--" not in page.replace("<!doctype", "")
    assert not re.search(r"(src|href)\s*=|@import|url\(|https?://(?!www\.w3\.org/2000/svg)", page)  # opens offline
    assert sorted(path.name for path in (tmp_path / "profile").iterdir()) == [
        *("profile.html", "profile.json", "trace.json")
    ]


def test_the_command_profiles_a_program_and_keeps_its_exit_code(tmp_path: Path) -> None:
    script = tmp_path / "work.py"
    script.write_text(
        "import sys, time\nnow = time.process_time\ndef busy():\n    end = now() + 0.5\n    while now() < end: pass\n"
        "busy()\nprint('said', *sys.argv[1:])\nsys.exit(3)\n"
    )
    words = [sys.executable, "-m", "tinylm.observability", "profile", "--out", str(tmp_path / "p")]
    done = subprocess.run([*words, "--", str(script), "--seed", "1"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "said --seed 1\n"), done.stderr
    results = json.loads((tmp_path / "p" / "profile.json").read_text())
    assert results["title"] == "work.py --seed 1"
    assert any(row["function"].endswith("busy") and row["own"] > 0.1 for row in results["functions"])
    assert results["operations"] == []  # no torch in this program
    done = subprocess.run([*words, "--", "ls"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: wanted a Python program")
    assert len(done.stderr.splitlines()) == 1


def test_charts_hold_their_points() -> None:
    near = [_svg.Point(1.5, 2, "p & q", "first"), _svg.Point(1.5, 2.01, "r", "second")]
    drawn = _svg.chart([("a", [(1, 1), (2, 4)])], near, "x", "y")
    assert (drawn.count(">first<"), drawn.count(">second<")) == (1, 1)  # one on each side of their dots
    assert drawn.count("<polyline") == 1
    assert "p &amp; q" in drawn
    assert drawn.startswith("<svg")
    assert _svg.chart([], [], "x", "y") == ""
    logarithmic = _svg.chart([("a", [(0.01, 1), (1000, 1e6)])], [], "x", "y", logarithmic=True)
    assert ">1 k<" in logarithmic
    assert _svg.bars([("low", 1.0, "1 s"), ("high", 0.01, "0.01 s")], "t").count("<rect") == 2


def test_a_program_that_changes_its_directory_and_a_cache_that_cannot_be_written_cost_no_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tinylm.observability.roofline._bandwidths", lambda *_: {1: 1.0})
    monkeypatch.setattr("tinylm.observability.roofline._peaks", lambda *_: {"float32": 1.0})
    monkeypatch.chdir(tmp_path)
    profile = obs.profile("profile")
    profile.__enter__()
    torch.ones(3).sum()
    monkeypatch.chdir("/")
    with pytest.warns(UserWarning, match="without a roofline: wanted a cache at"):
        profile.__exit__(None, None, None)
    assert {path.name for path in (tmp_path / "profile").iterdir()} == {"profile.html", "profile.json", "trace.json"}
