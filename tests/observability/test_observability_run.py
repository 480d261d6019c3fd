"""Runs: what is written, what survives a kill, what a second attempt does, what is refused."""

import dataclasses
import enum
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tinylm import observability as obs

ENDLESS = """
import sys
from tinylm import observability as obs
run = obs.init(sys.argv[1])
for step in range(10**9):
    run.log({"loss": 1 / (step + 1), "rate": 0.5}, step=step)
    print(step, flush=True)
"""


def lines(directory: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_a_run_is_written_and_read_back(tmp_path: Path) -> None:
    run = obs.init(directory=tmp_path / "runs" / "first", config={"depth": 4})
    run.log({"loss": 1.25}, step=3)
    run.log({"loss": 1.0, "note": "lower", "warm": True})
    assert obs.read_run(run.directory)["status"] == "running"
    run.finish()
    record = obs.read_run(run.directory)
    assert (record["format"], record["name"], record["status"], record["attempt"]) == (1, "first", "finished", 1)
    assert record["config"] == {"depth": 4}
    assert record["created"] == record["started"] <= record["finished"]
    rows = obs.read_metrics(run.directory)
    assert [(row["step"], row["loss"], row["attempt"]) for row in rows] == [(3, 1.25, 1), (4, 1.0, 1)]
    assert rows[1]["note"] == "lower"
    assert rows[1]["warm"] is True
    assert obs.find_runs(tmp_path) == [run.directory]


def test_run_json_holds_no_host_user_or_directory(tmp_path: Path) -> None:
    code = "import sys; from tinylm import observability as obs; obs.init(sys.argv[1], name='n').finish()"
    script = tmp_path / "secret-place" / "script.py"
    script.parent.mkdir()
    script.write_text(code)
    environment = os.environ | {"USER": "secret-user", "HOSTNAME": "secret-host", "TOKEN": "secret-token"}
    subprocess.run([sys.executable, script, "run"], check=True, env=environment, cwd=tmp_path)
    text = (tmp_path / "run" / "run.json").read_text()
    assert "secret" not in text
    assert json.loads(text)["command"] == ["script.py", "run"]
    package = tmp_path / "program"
    package.mkdir()
    shutil.copy(script, package / "__main__.py")
    subprocess.run([sys.executable, "-m", "program", "again"], check=True, cwd=tmp_path)
    assert json.loads((tmp_path / "again" / "run.json").read_text())["command"] == ["python", "-m", "program", "again"]


def test_context_manager_records_how_it_ended(tmp_path: Path) -> None:
    for error, status in ((None, "finished"), (RuntimeError, "failed"), (KeyboardInterrupt, "interrupted")):
        directory = tmp_path / status
        try:
            with obs.init(directory):
                if error is not None:
                    raise error
        except (RuntimeError, KeyboardInterrupt) as caught:
            assert type(caught) is error  # noqa: PT017  (what comes out is what was raised)
        assert obs.read_run(directory)["status"] == status


def test_module_level_verbs_use_the_last_run(tmp_path: Path) -> None:
    obs.init(tmp_path)
    obs.log({"loss": 2.0}, step=1)
    obs.finish("failed")
    assert obs.read_run(tmp_path)["status"] == "failed"
    assert obs.read_metrics(tmp_path)[0]["loss"] == 2.0


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_every_acknowledged_row_survives_sigkill(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ENDLESS, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= 500:
                break
        assert obs.read_run(tmp_path)["status"] == "running"
        process.kill()
        rest = process.stdout.read().split("\n")[:-1]  # what stood before the last newline was acknowledged
    acknowledged = int(rest[-1]) if rest else 500
    steps = [row["step"] for row in obs.read_metrics(tmp_path)]
    assert steps[: acknowledged + 1] == list(range(acknowledged + 1))
    assert obs.read_run(tmp_path)["status"] == "unfinished"


def test_a_second_attempt_appends_and_wins_where_steps_meet(tmp_path: Path) -> None:
    with obs.init(tmp_path, config={"lr": 1}, name="mine") as run:
        for step in range(6):
            run.log({"loss": float(step)}, step=step)
            run.log({"validation": step * 10}, step=step)
    before = lines(tmp_path)
    with obs.init(tmp_path) as run:
        assert run.attempt == 2
        run.log({"loss": -1.0}, step=4)
    assert lines(tmp_path)[:12] == before
    record = obs.read_run(tmp_path)
    assert (record["attempt"], record["name"], record["config"]) == (2, "mine", {"lr": 1})
    rows = obs.read_metrics(tmp_path)
    assert [row["loss"] for row in rows] == [0, 1, 2, 3, -1, 5]
    assert [row.get("validation") for row in rows] == [0, 10, 20, 30, None, 50]
    with obs.init(tmp_path) as run:
        run.log({"loss": 9.0})
    assert obs.read_metrics(tmp_path)[-1]["step"] == 6


def test_an_older_attempt_does_not_close_a_newer_one(tmp_path: Path) -> None:
    old, new = obs.init(tmp_path), obs.init(tmp_path)
    old.finish("failed")
    assert (obs.read_run(tmp_path)["attempt"], obs.read_run(tmp_path)["status"]) == (2, "running")
    new.finish()


@pytest.mark.parametrize("torn", [b'{"step": 1, "time": 1.0, "attem', b"\x00\x00\x00", b"{"])
def test_a_torn_last_row_is_skipped_and_not_glued_to_the_next(tmp_path: Path, torn: bytes) -> None:
    with obs.init(tmp_path) as run:
        run.log({"loss": 1.0}, step=0)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + torn)
    assert [row["step"] for row in obs.read_metrics(tmp_path)] == [0]
    with obs.init(tmp_path) as run:
        run.log({"loss": 2.0}, step=1)
        run.log({"loss": 3.0}, step=2)
    with pytest.warns(UserWarning, match="skipped 1 unreadable lines, first line 2"):
        assert [row["loss"] for row in obs.read_metrics(tmp_path)] == [1.0, 2.0, 3.0]


def test_threads_share_a_run(tmp_path: Path) -> None:
    with obs.init(tmp_path) as run:
        threads = [
            threading.Thread(target=lambda k=k: [run.log({"x": k}, step=1000 * k + i) for i in range(300)])
            for k in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(lines(tmp_path)) == 1200
    assert all(row["step"] // 1000 == row["x"] for row in obs.read_metrics(tmp_path))


def test_processes_share_a_directory(tmp_path: Path) -> None:
    script = "import sys\nfrom pathlib import Path\nfrom tinylm import observability as obs\n"
    script += "run = obs.init(sys.argv[1])\n"
    script += "for step in range(300):\n    run.log({'w': int(sys.argv[2])}, step=1000 * int(sys.argv[2]) + step)\n"
    script += "run.finish()\n"
    writers = [subprocess.Popen([sys.executable, "-c", script, tmp_path, str(number)]) for number in range(4)]
    assert [writer.wait() for writer in writers] == [0, 0, 0, 0]
    assert len(obs.read_metrics(tmp_path)) == 1200
    by_writer: dict[object, set[object]] = {}
    for row in lines(tmp_path):
        by_writer.setdefault(row["w"], set()).add(row["attempt"])
    assert sorted(attempt for attempts in by_writer.values() for attempt in attempts) == [1, 2, 3, 4]
    assert obs.read_run(tmp_path)["attempt"] == 4


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_said(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    run = obs.init(tmp_path)
    with pytest.raises(obs.ObservabilityError, match=r"append a row to .*metrics\.jsonl, got No space left on device"):
        run.log({"loss": 1.0}, step=0)  # without a step it would read the file, which never ends


def test_what_is_no_scalar_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    run = obs.init(tmp_path)
    for values, message in (
        ({"loss": [1, 2]}, "wanted a number, boolean, string or None for 'loss', got list"),
        ({"loss": {"a": 1}}, "got dict"),
        ({"loss": numpy.zeros((2, 3))}, r"wanted one number for 'loss', got ndarray of shape \(2, 3\)"),
        ({"time": 1.0}, "wanted other names than step, time, attempt, nonfinite"),
        ({"nonfinite": 1.0}, "got 'nonfinite'"),
    ):
        with pytest.raises(obs.ObservabilityError, match=message):
            run.log(values)
    for step in (-1, 1.5, True, "3"):
        with pytest.raises(obs.ObservabilityError, match="wanted a step that is an integer >= 0"):
            run.log({"loss": 1.0}, step=step)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(obs.ObservabilityError, match="wanted a status"):
        run.finish("done")
    run.finish()
    with pytest.raises(obs.ObservabilityError, match="wanted a running run"):
        run.log({"loss": 1.0})
    assert lines(tmp_path) == []


def test_scalars_of_numpy_and_torch_are_taken(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    with obs.init(tmp_path) as run:
        run.log({"a": numpy.float32(0.5), "b": numpy.int64(3), "c": numpy.array([2.0]), "d": numpy.float64("nan")}, 0)
    row = obs.read_metrics(tmp_path)[0]
    assert (row["a"], row["b"], row["c"]) == (0.5, 3, 2.0)
    assert row["d"] != row["d"]
    torch = pytest.importorskip("torch")
    with obs.init(tmp_path) as run:
        run.log({"a": torch.tensor(1.5, requires_grad=True), "b": torch.tensor([7]), "c": torch.tensor(True)}, 1)
    row = obs.read_metrics(tmp_path)[1]
    assert (row["a"], row["b"], row["c"]) == (1.5, 7, True)


def test_configurations_become_json(tmp_path: Path) -> None:
    class Kind(enum.Enum):
        MUON = "muon"

    @dataclasses.dataclass(frozen=True)
    class Inner:
        path: Path
        betas: tuple[float, float]

    @dataclasses.dataclass(frozen=True)
    class Config:
        inner: Inner
        kind: Kind
        limit: float
        names: frozenset[str]
        kinds: type = int

    config = Config(Inner(Path("a/b"), (0.9, 0.95)), Kind.MUON, float("inf"), frozenset({"y", "x"}))
    obs.init(tmp_path, config=config).finish()
    assert json.loads((tmp_path / "run.json").read_text())["config"] == {
        "inner": {"path": str(Path("a/b")), "betas": [0.9, 0.95]},
        "kind": "muon",
        "limit": None,
        "names": ["x", "y"],
        "kinds": "<class 'int'>",
        "nonfinite": {"limit": "inf"},
    }
    with pytest.raises(obs.ObservabilityError, match="wanted a mapping or dataclass as config, got list"):
        obs.init(tmp_path, config=[1, 2])
    endless: dict[str, object] = {"depth": 4}
    endless["self"] = [endless]
    with pytest.raises(obs.ObservabilityError, match="got one that contains itself"):
        obs.init(tmp_path, config=endless)
    assert obs.read_run(tmp_path)["attempt"] == 1


def test_foreign_and_newer_directories_are_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    for text, message in (
        ('{"format": 2, "name": "later"}', "wanted format 1 or lower in .*, got 2; upgrade tinylm-obs"),
        ('{"name": "somebody else\'s"}', 'wanted a JSON object with "format": 1'),
        ("[1, 2]", 'wanted a JSON object with "format": 1'),
        ('{"format": 1, "name"', "wanted JSON in .*half-written"),
        ("", "wanted JSON in"),
        ('{"format": 1, "name": "n", "status": "finished", "attempt": "1", "config": {}}', "wanted 'attempt' .int."),
    ):
        path.write_text(text)
        for function in (obs.init, obs.read_run, obs.read_metrics):
            with pytest.raises(obs.ObservabilityError, match=message):
                function(tmp_path)
        assert path.read_text() == text
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(obs.ObservabilityError, match="wanted to read"):
        obs.read_run(tmp_path)
    (tmp_path / "file").touch()
    for where, message in ((tmp_path / "none", "does not exist"), (tmp_path / "file", "which is a file")):
        with pytest.raises(obs.ObservabilityError, match=message):
            obs.read_run(where)
    with pytest.raises(obs.ObservabilityError, match="wanted a directory for the run at"):
        obs.init(tmp_path / "file")
    with pytest.raises(obs.ObservabilityError, match="wanted a directory to look for runs in"):
        obs.find_runs(tmp_path / "file")


def test_histograms_and_profiles_have_their_places(tmp_path: Path) -> None:
    with obs.init(tmp_path) as run:
        run.histogram("weights", counts=[1, 2], edges=[0.0, 0.5, 1.0], step=4)
        assert run.profile_directory == tmp_path / "profile"
        with pytest.raises(obs.ObservabilityError, match="wanted one edge more than counts"):
            run.histogram("weights", counts=[1, 2], edges=[0.0, 1.0], step=4)
    row = json.loads((tmp_path / "histograms.jsonl").read_text())
    assert (row["name"], row["step"], row["counts"], row["edges"]) == ("weights", 4, [1, 2], [0.0, 0.5, 1.0])
    assert (tmp_path / "profile").is_dir()


def test_writing_a_run_imports_nothing_heavy(tmp_path: Path) -> None:
    code = """
import sys
from tinylm import observability as obs
with obs.init(sys.argv[1]) as run:
    run.log({"loss": 1.0})
print([name for name in ("numpy", "torch", "typer", "rich", "inspect", "dataclasses") if name in sys.modules])
"""
    answer = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"


def test_a_program_that_changes_its_directory_keeps_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with obs.init("run") as run:
        monkeypatch.chdir("/")
        run.log({"loss": 1.0})
        run.histogram("weights", [1], [0.0, 1.0])
    assert obs.read_run(tmp_path / "run")["status"] == "finished"
    assert len(obs.read_histograms(tmp_path / "run")) == 1


def test_names_that_are_no_utf8_are_kept(tmp_path: Path) -> None:
    with obs.init(tmp_path, name="caf\udce9", config={"path": "\udce9"}) as run:
        run.log({"loss": 1.0})
    record = obs.read_run(tmp_path)
    assert (record["name"], record["config"]) == ("caf\udce9", {"path": "\udce9"})


def test_steps_are_integers_of_any_kind_and_of_64_bits(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    with obs.init(tmp_path) as run:
        run.log({"loss": 1.0}, step=numpy.int64(7))
        for step in (2**63, 10**5000, True, 1.0, "1"):
            with pytest.raises(obs.ObservabilityError, match="wanted a step that is an integer"):
                run.log({"loss": 1.0}, step=step)
        with pytest.raises(obs.ObservabilityError, match="thousands of digits"):
            run.log({"loss": 10**5000})
        with pytest.raises(obs.ObservabilityError, match="wanted a name that is a string"):
            run.log({(1, 2): 1.0})  # type: ignore[dict-item]
        with pytest.raises(obs.ObservabilityError, match="finite numbers"):
            run.histogram("h", [1], [0.0, float("nan")])
        run.log({"loss": 2.0})
    assert [row["step"] for row in obs.read_metrics(tmp_path)] == [7, 8]
    with pytest.raises(obs.ObservabilityError, match="wanted a name that is a string"):
        obs.init(tmp_path / "other", name=3)  # type: ignore[arg-type]
