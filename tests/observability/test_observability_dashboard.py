"""The dashboard's data layer: rows as they arrive equal what the readers give; few points draw the picture of many."""

import json
import math
import socket
import subprocess
import sys
import warnings
from array import array
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylm import observability as obs
from tinylm.observability.dashboard.histograms import Histograms, over_time, rebinned
from tinylm.observability.dashboard.layers import heat, per_layer
from tinylm.observability.dashboard.metrics import Curve, Metrics
from tinylm.observability.dashboard.reduce import Smoothing, extremes, within
from tinylm.observability.dashboard.store import Store
from tinylm.observability.dashboard.tail import Tail

ROWS = st.lists(
    st.fixed_dictionaries(
        {"step": st.integers(0, 12), "attempt": st.integers(1, 3)},
        optional={"loss": st.floats(-9, 9), "bits": st.integers(0, 9), "sample": st.sampled_from(["a", "b"])},
    ),
    max_size=40,
)


def write_run(directory: Path, rows: list[dict[str, Any]], **record: Any) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    facts = {"format": 1, "name": "x", "status": "finished", "attempt": 3, "config": {}, "started": "2026-01-01"}
    (directory / "run.json").write_text(json.dumps(facts | record))
    text = "".join(json.dumps({"time": 1.5 * place, **row}) + "\n" for place, row in enumerate(rows))
    (directory / "metrics.jsonl").write_text(text)
    return directory


def as_rows(metrics: Metrics) -> list[dict[str, Any]]:
    """The curves as `read_metrics` gives them, without times."""
    found: dict[int, dict[str, Any]] = {
        step: {"step": step, "attempt": attempt} for step, attempt in zip(metrics.steps, metrics.attempts, strict=True)
    }
    for name, curve in metrics.curves.items():
        for step, value in zip(curve.steps, curve.values, strict=True):
            found[step][name] = value
    for name, texts in metrics.texts.items():
        for step, words in texts.items():
            found[step][name] = words
    return [found[step] for step in sorted(found)]


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, cuts=st.lists(st.integers(0, 3000), max_size=6))
def test_rows_in_any_pieces_equal_what_the_readers_give(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], cuts: list[int]
) -> None:
    run = write_run(tmp_path_factory.mktemp("run"), rows)
    path = run / "metrics.jsonl"
    whole = path.read_bytes()
    expected = [{k: v for k, v in row.items() if k != "time"} for row in obs.read_metrics(run)]
    path.write_bytes(b"")
    tail, metrics = Tail(path), Metrics()
    for end in [*sorted(cut for cut in cuts if cut < len(whole)), len(whole)]:
        path.write_bytes(whole[:end])  # what stood there stays, more follows
        while found := tail.poll(limit=100):
            for row in found:
                metrics.add(row)
        while tail.behind:
            for row in tail.poll(limit=100):
                metrics.add(row)
    assert as_rows(metrics) == expected
    assert tail.damaged == []


def test_a_half_written_line_waits_and_a_damaged_one_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert tail.poll() == []  # no file yet
    path.write_text('{"step": 1, "attempt": 1}\nrubbish\n{"step": 2, "att')
    assert [row["step"] for row in tail.poll()] == [1]
    assert tail.damaged == [2]
    with path.open("a") as file:
        file.write('empt": 1}')  # whole, but for its newline
    assert [row["step"] for row in tail.poll()] == [2]
    with path.open("a") as file:
        file.write('\n{"step": 3, "attempt": 1}\n')
    assert [row["step"] for row in tail.poll()] == [3]
    assert tail.damaged == [2]


def test_a_file_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [{"step": step, "attempt": 1, "loss": 1.0} for step in range(9)])
    store = Store(tmp_path)
    store.scan()
    store.poll({"run"})
    assert list(store.runs["run"].metrics.steps) == list(range(9))
    write_run(run, [{"step": 0, "attempt": 1, "loss": 2.0}])
    assert store.poll({"run"})
    assert list(store.runs["run"].metrics.curves["loss"].values) == [2.0]


@settings(max_examples=150, deadline=None)
@given(
    values=st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=300),
    buckets=st.integers(1, 40),
    window=st.tuples(st.integers(0, 300), st.integers(0, 300)),
)
def test_few_points_lose_no_peak_and_no_trough(values: list[float], buckets: int, window: tuple[int, int]) -> None:
    low, high = sorted(min(place, len(values)) for place in window)
    places = extremes(array("d", values), low, high, buckets)
    finite = [place for place in range(low, high) if math.isfinite(values[place])]
    assert places == sorted(set(places))
    assert set(places) <= set(finite)
    assert len(places) <= 2 * buckets + 2
    if finite:
        kept = [values[place] for place in places]
        assert min(kept) == min(values[place] for place in finite)
        assert max(kept) == max(values[place] for place in finite)
    if high - low > 2 * buckets:  # every bucket's own extremes are there
        for part in range(buckets):
            start, end = (low + (high - low) * edge // buckets for edge in (part, part + 1))
            own = [values[place] for place in finite if start <= place < end]
            if own:
                assert {min(own), max(own)} <= {values[place] for place in places if start <= place < end}


@given(values=st.lists(st.floats(-5, 5) | st.just(math.nan), max_size=200), cut=st.integers(0, 200))
def test_smoothing_goes_on_where_it_stopped(values: list[float], cut: int) -> None:
    whole, gone_on = Smoothing(10).of(array("d", values)), Smoothing(10)
    gone_on.of(array("d", values[:cut]))
    parts = gone_on.of(array("d", values))
    assert list(parts) == pytest.approx(list(whole), nan_ok=True)
    mean, weight = 0.0, 0.0  # by the definition: a mean with weights that fall by 0.9 a step
    for value, smoothed in zip(values, whole, strict=True):
        if math.isnan(value):
            assert math.isnan(smoothed)
            continue
        mean, weight = 0.9 * mean + 0.1 * value, 0.9 * weight + 0.1
        assert smoothed == pytest.approx(mean / weight)


def test_long_smoothing_equals_its_definition() -> None:
    """In blocks, and what is left over one by one; with a gap, and from where an earlier call stopped."""
    values = array("d", [math.sin(place) + (place == 5000) * 100 for place in range(6000)])
    gone_on = Smoothing(10)
    gone_on.of(values[:3000])
    with_gap = array("d", values)
    with_gap[4000] = math.nan
    mean, expected = 0.0, []
    for place, value in enumerate(values, start=1):
        mean = 0.9 * mean + 0.1 * value
        expected.append(mean / (1 - 0.9**place))
    assert list(gone_on.of(values)) == pytest.approx(expected)
    assert list(Smoothing(10).of(with_gap))[:4000] == pytest.approx(expected[:4000])
    assert math.isnan(Smoothing(10).of(with_gap)[4000])
    assert Smoothing(10).of(with_gap)[-1] == pytest.approx(expected[-1])


def test_smoothing_is_computed_anew_after_a_change_in_the_past() -> None:
    curve = Curve()
    for step in range(50):
        curve.put(step, 1.0)
    assert list(curve.smoothed(10)) == pytest.approx([1.0] * 50)
    curve.put(10, 5.0)
    assert curve.smoothed(10)[10] > 1.1


def test_the_axes_count_training_time_and_tokens() -> None:
    metrics = Metrics()
    for attempt, step, time in [(1, 0, 100.0), (1, 1, 101.0), (2, 2, 900.0), (2, 3, 902.0)]:
        metrics.add({"step": step, "attempt": attempt, "time": time, "tokens": 10})
    assert list(metrics.axis("time")) == [0.0, 1.0, 1.0, 3.0]  # the pause between two attempts is no training
    assert list(metrics.axis("tokens")) == [10.0, 20.0, 30.0, 40.0]
    metrics.add({"step": 2, "attempt": 3, "time": 950.0, "tokens": 5})  # a resumed run repeats step 2
    assert list(metrics.axis("tokens")) == [10.0, 20.0, 25.0, 35.0]
    assert within([0.0, 1.0, 2.0, 3.0, 4.0], 1.5, 2.5) == (1, 4)  # one more on each side


def test_a_heat_map_keeps_spikes_and_names_layers_in_the_models_order() -> None:
    curves: dict[str, Curve] = {}
    for name in ("gradient_norm/b", "gradient_norm/a", "activation_rms/a", "activation_rms/b", "loss"):
        curves[name] = Curve()
        for step in range(0, 1000, 10):
            curves[name].put(step, 50.0 if (name, step) == ("gradient_norm/a", 430) else 1.0)
    curves["gradient_norm/b"].put(700, math.nan)
    assert per_layer(curves) == {"gradient_norm": ["a", "b"], "activation_rms": ["a", "b"]}
    found = heat(curves, "gradient_norm", columns=10)
    assert len(found.steps) == 10
    assert found.layers == ["a", "b"]
    assert [cell for cell in found.cells if cell[2] == 50.0] == [(4, 0, 50.0)]
    assert [cell[:2] for cell in found.cells if math.isnan(cell[2])] == [(7, 1)]


@given(counts=st.lists(st.integers(0, 99), min_size=1, max_size=20), width=st.floats(0.01, 100))
def test_rebinning_keeps_the_numbers(counts: list[int], width: float) -> None:
    edges = [width * (place - len(counts) / 2) for place in range(len(counts) + 1)]
    onto = [edges[0] + (edges[-1] - edges[0]) * place / 7 for place in range(8)]
    assert sum(rebinned(counts, edges, onto)) == pytest.approx(sum(counts))


def test_histograms_over_time_share_their_edges() -> None:
    histograms = Histograms()
    assert histograms.add({"step": 0, "attempt": 1, "name": "w", "counts": [1, 3], "edges": [-1, 0, 1]})
    assert histograms.add({"step": 5, "attempt": 1, "name": "w", "counts": [8, 0], "edges": [-2, 0, 2]})
    assert not histograms.add({"step": 6, "attempt": 1, "name": "w", "counts": [8], "edges": [0]})
    assert not histograms.add({"step": 6, "attempt": 1, "name": "w", "counts": ["x"], "edges": [0, 1]})
    assert not histograms.add({"step": 6, "attempt": 1, "name": "w", "counts": [1], "edges": [0, math.inf]})
    assert not histograms.add({"step": 6, "attempt": 1, "name": "w", "counts": [10**400], "edges": [0, 1]})
    found = over_time(histograms.named["w"], bins=4)
    assert found.steps == [0, 5]
    assert found.edges == [-2, -1, 0, 1, 2]
    assert found.shares == [[0, 1 / 3, 1, 0], [1, 1, 0, 0]]


def test_what_cannot_be_read_becomes_words(tmp_path: Path) -> None:
    write_run(tmp_path / "good", [{"step": 0, "attempt": 1, "loss": 1.0}])
    write_run(tmp_path / "newer", [], format=2)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "run.json").write_text('{"format": 1, "na')
    (tmp_path / "stray").mkdir()
    (tmp_path / "stray" / "metrics.jsonl").write_text("")
    with (tmp_path / "good" / "metrics.jsonl").open("a") as file:
        file.write('garbage\n{"step": 1, "attempt": 1, "loss": 0.5}\n')
    store = Store(tmp_path)
    store.scan()
    store.poll(set(store.runs))
    assert {label: run.status for label, run in store.runs.items()} == {
        "good": "finished",
        "half": "unreadable",
        "newer": "unreadable",
    }
    assert "upgrade tinylm-obs" in str(store.runs["newer"].problem)
    assert "half-written" in str(store.runs["half"].problem)
    assert "1 damaged line is passed over, the first is line 2" in store.runs["good"].notes[0]
    assert list(store.runs["good"].metrics.curves["loss"].values) == [1.0, 0.5]
    assert "without a run.json" in store.strays[0]


def test_runs_appear_change_and_go(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert not store.scan()
    run = obs.init(directory=tmp_path / "a")
    run.log({"loss": 1.0}, step=0)
    assert store.scan()
    assert store.runs["a"].status == "running"
    assert store.poll({"a"})
    assert not store.poll({"a"})
    run.log({"loss": math.nan, "sample": "To be"}, step=1)
    run.alert("nan", "blocks.3.mlp", "output is not finite", 1)
    run.system({"cpu (%)": 5.0})
    assert store.poll({"a"})
    assert math.isnan(store.runs["a"].metrics.curves["loss"].values[-1])
    assert store.runs["a"].metrics.texts == {"sample": {1: "To be"}}
    assert store.runs["a"].alerts[0]["layer"] == "blocks.3.mlp"
    assert list(store.runs["a"].system.curves["cpu (%)"].values) == [5.0]
    run.finish()
    assert store.scan()
    assert store.runs["a"].status == "finished"
    for path in list((tmp_path / "a").iterdir()):
        path.unlink()
    assert store.scan()
    assert store.runs == {}


def test_only_wanted_runs_are_read(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / name, [{"step": 0, "attempt": 1, "loss": 1.0}])
    store = Store(tmp_path)
    store.scan()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.poll({"b"})
    assert len(store.runs["a"].metrics.steps) == 0
    assert len(store.runs["b"].metrics.steps) == 1


def ui(*arguments: object) -> subprocess.CompletedProcess[str]:
    """`tinylm-obs ui` where NiceGUI is not installed."""
    program = "import sys; sys.modules['nicegui'] = None; from tinylm.observability.cli import main; main()"
    command = [sys.executable, "-c", program, "ui", *map(str, arguments), "--no-browser"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_what_keeps_it_from_starting_is_one_line(tmp_path: Path) -> None:
    done = ui(tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    wanted = "error: wanted nicegui for the dashboard, got no such package: "
    assert done.stderr == wanted + 'pip install "tinylm-obs[ui]"\n'
    done = ui(tmp_path / "nowhere")
    assert done.returncode == 1
    assert done.stderr == f"error: wanted a directory with runs, got {tmp_path / 'nowhere'}, which is none\n"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = ui(tmp_path, "--port", taken.getsockname()[1])
    assert done.returncode == 1
    assert done.stderr.startswith("error: wanted port ")
    assert done.stderr.count("\n") == 1
    assert "--port" in done.stderr


def test_a_command_that_is_no_list_is_none(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [{"step": 0, "attempt": 1}])
    store = Store(tmp_path)
    for command, words in ((7, []), (["a", 1], ["a", "1"])):
        record = json.loads((run / "run.json").read_text()) | {"command": command}
        (run / "run.json").write_text(json.dumps(record))
        store.scan()
        assert store.runs["run"].command == words


@pytest.mark.parametrize("edges", [[0.0, 5e-324], [1.0, 1 + 2.0**-52], [1e17, 1e17 + 16], [-1e299, 1e299], [0.0, 0.0]])
def test_any_edges_are_drawn(edges: list[float]) -> None:
    histograms = Histograms()
    assert histograms.add({"step": 0, "attempt": 1, "name": "w", "counts": [3], "edges": edges})
    found = over_time(histograms.named["w"])
    assert max(found.shares[0]) == 1
    assert found.edges == sorted(found.edges)
