"""Rows: what is logged is what is read, whatever it is; and no bytes make a reader crash."""

import json
import tempfile
import warnings
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tinylm import observability as obs

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
