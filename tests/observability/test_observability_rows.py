"""Rows: what is logged is what is read, whatever it is; and no bytes make a reader crash."""

import json
import tempfile
import warnings
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tinylm import observability as obs
from tinylm.observability.cli import app
from tinylm.observability.dashboard.store import Store

NAMES = st.text(max_size=20).filter(lambda name: name not in ("step", "time", "attempt", "nonfinite"))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
RUN = {"format": 1, "name": "n", "status": "finished", "attempt": 1, "config": {}}


@settings(max_examples=200, deadline=None)
@given(st.lists(st.dictionaries(NAMES, SCALARS, max_size=6), max_size=4))
@example([{"loss": float("nan"), "a\nb": "\u2028\n", "\ud800": -0.0}])
def test_rows_come_back_as_they_were_logged(rows: list[dict[str, object]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        with obs.init(folder) as run:
            for row in rows:
                run.log(row)
        for line in (Path(folder) / "metrics.jsonl").read_bytes().splitlines():
            json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
        read = obs.read_metrics(folder)
    assert [row["step"] for row in read] == list(range(len(rows)))
    for was, now in zip(rows, read, strict=True):
        logged = {name: value for name, value in now.items() if name not in ("step", "time", "attempt")}
        assert repr(logged) == repr(was)  # repr: nan equals nan, 1 differs from 1.0 and True, -0.0 from 0.0


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.binary(max_size=40)
        | st.sampled_from(
            [
                b'{"step": 1, "attempt": 1, "time": 1.0, "loss": 2}\n',
                b'{"step": true, "attempt": 1}\n',
                b'{"step": 2, "attempt": 2, "nonfinite": {"loss": "nan", "x": 3}}\n',
                b'{"step": 3, "attempt": 1, "nonfinite": 7}\n',
                b"[" * 100_000 + b"\n",
                b"1" * 5000 + b"\n",
                b"null\n",
            ]
        ),
        max_size=6,
    )
)
def test_no_bytes_crash_the_reader(pieces: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "run.json").write_text(json.dumps(RUN))
        (Path(folder) / "metrics.jsonl").write_bytes(b"".join(pieces))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                rows = obs.read_metrics(folder)
            except obs.ObservabilityError:
                return
        assert all(type(row["step"]) is int and type(row["attempt"]) is int for row in rows)


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=60)
    | st.recursive(
        st.none() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*RUN]), inner)
    ).map(lambda data: json.dumps(data).encode())
)
def test_no_bytes_crash_the_reader_of_run_json(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "run.json").write_bytes(data)
        with pytest.raises(obs.ObservabilityError):
            obs.read_run(folder)


def test_a_file_that_holds_no_row_at_all_is_said(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(RUN))
    assert obs.read_metrics(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text("a,b\n1,2\n")
    with pytest.raises(obs.ObservabilityError, match="got 2 lines and none is one; is it ours"):
        obs.read_metrics(tmp_path)


HOSTILE = {
    "huge numbers": b'{"step": 1, "time": 1.0, "attempt": 1, "loss": 1%s, "x": 1e300}' % (b"0" * 400),
    "a step of 70 bits": b'{"step": 1180591620717411303424, "time": 1.0, "attempt": 1, "loss": 1.0}',
    "an attempt of 70 bits": b'{"step": 1, "time": 1.0, "attempt": 1180591620717411303424, "loss": 1.0}',
    "a step below 0": b'{"step": -5, "time": 1.0, "attempt": 1, "loss": 1.0}',
    "no time": b'{"step": 1, "attempt": 1, "loss": 1.0}',
    "words as time": b'{"step": 1, "time": "x", "attempt": 1, "loss": 1.0}',
    "no number as time": b'{"step": 1, "time": NaN, "attempt": 1, "loss": 1.0}',
    "names of the row's own": b'{"step": 1, "time": 1.0, "attempt": 1, "nonfinite": {"step": "nan", "time": "inf"}}',
    "half a pair": rb'{"step": 1, "time": 1.0, "attempt": 1, "s\udc00": "\ud800", "\ud800": 1.0}',
}


@pytest.mark.parametrize("row", HOSTILE.values(), ids=HOSTILE.keys())
def test_no_row_makes_a_command_or_the_dashboard_end_in_a_traceback(row: bytes, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text(json.dumps(RUN))
    (tmp_path / "run/metrics.jsonl").write_bytes(b'{"step": 0, "time": 1.0, "attempt": 1, "loss": 2.0}\n' + row + b"\n")
    (tmp_path / "run/histograms.jsonl").write_bytes(
        b'{"step": 1, "attempt": 1, "name": "h", "counts": [1], "edges": 3}\n'
    )
    run = str(tmp_path / "run")
    commands = [["list", run], ["compare", run, run], ["sql", "select * from metrics", run]]
    for kind in ("csv", "prometheus", "tensorboard", "parquet"):
        commands.append(["export", run, "--to", kind, "--out", str(tmp_path / kind)])
    for words in commands:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answer = CliRunner().invoke(app, words)
        assert answer.exit_code == 0 or answer.stderr.startswith("error: wanted"), words
    store = Store(tmp_path)
    store.scan()
    store.poll(list(store.runs))
    metrics = store.runs["run"].metrics
    json.dumps([store.runs["run"].record, [*metrics.curves], metrics.texts], ensure_ascii=False).encode()
    for kind in ("step", "time", "tokens"):
        assert len(metrics.axis_of(metrics.curves["loss"], kind)) == len(metrics.curves["loss"].values)


def test_a_run_json_of_endless_digits_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(RUN)[:-1] + ', "x": 1' + "0" * 5000 + "}")
    with pytest.raises(obs.ObservabilityError, match="wanted JSON"):
        obs.read_run(tmp_path)
