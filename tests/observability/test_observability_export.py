"""Export, SQL and significance: what other tools read back, and Welch's test against an integral."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tinylm import observability as obs
from tinylm.observability import _significance, _summary, export, sql


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "tinylm.observability", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, env=os.environ | {"NO_COLOR": "1"})


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name, seed, loss in (("a", 0, 2.0), ("b", 1, 2.1), ("c", 0, 1.0), ("d", 1, 1.1)):
        config = {"depth": 4 if name in "ab" else 8, "seed": seed}
        with obs.init(tmp_path / name, config=config) as run:
            for step in range(3):
                run.log({"loss": loss + 1 / (step + 1), "gradient_norm/blocks.0": 0.5, "sample": f"text {step}"}, step)
            run.log({"loss": loss}, 3)
            run.histogram("weight/head", [1, 3], [-1.0, 0.0, 1.0], step=2)
            run.alert("spike", "blocks.0", "the loss is 9", step=1)
    return tmp_path


def test_prometheus_text_has_the_newest_values(tmp_path: Path) -> None:
    with obs.init(tmp_path, name='a "b"') as run:
        run.log({"loss": 2.0, "validation loss": float("nan")}, step=1)
        run.log({"loss": 1.5, "gradient_norm/blocks.0": 3.0, "fraction": float("-inf"), "note": "text"}, step=2)
    answer = command("export", tmp_path, "--to", "prometheus")
    lines = [line.rsplit(" ", 1)[0] for line in answer.stdout.splitlines()]
    assert "# TYPE tinylm_loss" in lines
    assert 'tinylm_loss{run="a \\"b\\""} 1.5' in lines
    assert 'tinylm_gradient_norm{run="a \\"b\\"",layer="blocks.0"} 3.0' in lines
    assert 'tinylm_fraction{run="a \\"b\\""} -Inf' in lines
    assert 'tinylm_validation_loss{run="a \\"b\\""} NaN' in lines
    assert not any("note" in line for line in lines)


def test_tensorboard_reads_our_event_file(runs: Path) -> None:
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert command("export", runs / "a", "--to", "tensorboard", "--out", runs / "events").returncode == 0
    events = loader.EventAccumulator(str(runs / "events"))
    events.Reload()
    assert [(one.step, one.value) for one in events.Scalars("loss")] == [
        *((0, 3.0), (1, 2.5), (2, pytest.approx(2 + 1 / 3)), (3, 2.0))
    ]
    (histogram,) = events.Histograms("weight/head")
    value = histogram.histogram_value
    assert (histogram.step, value.min, value.max, value.num) == (2, -1.0, 1.0, 4.0)
    assert (list(value.bucket_limit), list(value.bucket)) == ([0.0, 1.0], [1.0, 3.0])
    texts = [one.tensor_proto.string_val[0] for one in events.Tensors("sample")]
    assert texts == [b"text 0", b"text 1", b"text 2"]


def test_the_event_file_is_framed_by_known_checksums(tmp_path: Path) -> None:
    assert export._masked_crc(b"123456789") == (
        (0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8 & 0xFFFFFFFF
    ).to_bytes(4, "little")  # CRC-32C's check value
    first = export.tensorboard([], [], tmp_path, "n").read_bytes()
    assert export.tensorboard([], [], tmp_path, "n").read_bytes() == first
    assert b"brain.Event:2" in first


def test_parquet_holds_a_column_per_name(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = pytest.importorskip("pyarrow.parquet")
    assert command("export", runs / "a", "--to", "parquet", "--out", runs / "a.parquet").returncode == 0
    table = files.read_table(runs / "a.parquet").to_pydict()
    assert table["step"] == [0, 1, 2, 3]
    assert table["loss"] == [3.0, 2.5, 2 + 1 / 3, 2.0]
    assert table["sample"] == ["text 0", "text 1", "text 2", None]
    with pytest.raises(obs.ObservabilityError, match="wanted one type of value per name"):
        export.parquet([{"step": 0, "x": 1.0}, {"step": 1, "x": "one"}], runs / "b.parquet")
    assert not (runs / "b.parquet").exists()


def test_sql_sees_all_runs_and_nothing_else(runs: Path) -> None:
    pytest.importorskip("duckdb")
    columns, rows = sql.query(
        runs,
        "select r.run, min(value) as lowest from metrics m join runs r using (run) "
        "where m.name = 'loss' and cast(r.config->>'depth' as int) = 4 group by r.run order by r.run",
    )
    assert (columns, rows) == (["run", "lowest"], [("a", 2.0), ("b", 2.1)])
    assert sql.query(runs, "select count(*) from metrics")[1] == [(4 * (4 + 3),)]
    assert sql.query(runs, "select distinct layer from alerts")[1] == [("blocks.0",)]
    assert sql.query(runs, "select text from texts where run = 'a' and step = 2")[1] == [("text 2",)]
    for statement in ("", "/* nothing */"):
        with pytest.raises(obs.ObservabilityError, match="alerts, got none"):
            sql.query(runs, statement)
    (runs / "secret.csv").write_text("a\n1\n")
    for statement in (f"select * from '{runs / 'secret.csv'}'", "set enable_external_access = true", "selec"):
        with pytest.raises(obs.ObservabilityError, match="wanted SQL over the tables runs, metrics"):
            sql.query(runs, statement)
    shown = command("sql", "select run, name from runs where run = 'c'", runs)
    assert [line.split() for line in shown.stdout.splitlines() if line.strip()][-1] == ["c", "c"]


def test_missing_extras_and_formats_are_one_line(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("duckdb", "pyarrow"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(obs.ObservabilityError, match=r'pip install "tinylm-obs\[sql\]"'):
        sql.query(runs, "select 1")
    with pytest.raises(obs.ObservabilityError, match=r'pip install "tinylm-obs\[parquet\]"'):
        export.parquet([], runs / "x")
    for arguments, message in ((["--to", "xml"], "got 'xml'"), (["--to", "parquet"], "wanted --out")):
        answer = command("export", runs / "a", *arguments)
        assert (answer.returncode, answer.stderr.count("\n")) == (1, 1)
        assert message in answer.stderr


def test_compare_says_what_seeds_explain(runs: Path) -> None:
    shown = command("compare", *(runs / name for name in "abcd")).stdout
    lines = [line.split() for line in shown.splitlines()]
    (row,) = [line for line in lines if line[:1] == ["loss"] and "±" in line]
    assert row[1:7] == ["2.05", "±", "0.0707", "1.05", "±", "0.0707"]
    assert float(row[7]) == pytest.approx(0.00493, rel=0.01)
    assert "Welch's t-test" in shown
    assert "spike, step 1, blocks.0" in shown
    assert "gradient_norm/blocks.0" not in shown
    assert "Welch" not in command("compare", runs / "a", runs / "c").stdout  # one seed each: nothing to say


def test_welch_equals_an_integral_of_students_density() -> None:
    first, second = [2.1, 2.5, 1.9, 2.2, 2.8], [1.7, 1.2, 2.0, 1.5]
    found = _significance.welch(first, second)
    assert found is not None
    t, freedom, p = found
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    steps, width = 200_000, 0.001  # to t + 200, by trapezoids
    density = [scale * (1 + (abs(t) + i * width) ** 2 / freedom) ** (-(freedom + 1) / 2) for i in range(steps + 1)]
    assert p == pytest.approx(2 * width * (sum(density) - (density[0] + density[-1]) / 2), rel=1e-4)
    assert _significance.welch([1.0], [1.0, 2.0]) is None
    assert _significance.welch([1.0, 1.0], [1.0, 1.0]) == (0.0, math.inf, 1.0)
    assert _significance.welch([2.0, 2.0], [1.0, 1.0]) == (math.inf, math.inf, 0.0)
    same = _significance.welch([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert same is not None
    assert same[2] == pytest.approx(1.0)


def test_groups_differ_in_more_than_the_seed() -> None:
    configs = [{"a": 1, "seed": s, "data": {"seed": s}} for s in (0, 1)] + [{"a": 2, "seed": 0, "data": {"seed": 0}}]
    assert _summary.groups(configs) == [[0, 1], [2]]
    written = [config | {"out": f"runs/{number}", "peak_flops": number} for number, config in enumerate(configs)]
    assert _summary.groups(written) == [[0, 1], [2]]  # where a run stands, and how fast its machine is, is no setting
    assert json.dumps(_summary.significance(configs, {"loss": [[1.0], [2.0], [3.0]]}))
    assert _summary.significance(configs, {"loss": [[1.0], [2.0], [3.0]]})[0][2] is None


def test_prometheus_tells_odd_names_apart(tmp_path: Path) -> None:
    with obs.init(tmp_path, name="r") as run:
        run.log({"a.b": 1.0, "a_b": 2.0, 'norm/"x"\n\\': 3.0}, step=1)
    lines = [line.rsplit(" ", 1)[0] for line in command("export", tmp_path, "--to", "prometheus").stdout.splitlines()]
    assert 'tinylm_a_b{run="r",name="a.b"} 1.0' in lines
    assert 'tinylm_a_b{run="r",name="a_b"} 2.0' in lines
    assert r'tinylm_norm{run="r",layer="\"x\"\n\\"} 3.0' in lines


def test_runs_that_ended_in_nan_are_compared_over_seeds(tmp_path: Path) -> None:
    for name, rate, seed, loss in (("a", 1, 0, 1.0), ("b", 1, 1, float("nan")), ("c", 2, 0, 1e308), ("d", 2, 1, 1.0)):
        with obs.init(tmp_path / name, config={"rate": rate, "seed": seed}) as run:
            run.log({"loss": 1e308}, 0)
            run.log({"loss": loss}, 1)
    answer = command("compare", *(tmp_path / name for name in "abcd"))
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "nan (lowest 1" in answer.stdout
