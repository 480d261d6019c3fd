"""The command as a user meets it: output, exit codes, one clear line for what goes wrong."""

import contextlib
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tinylm import observability as obs
from tinylm.observability import ladder


def command(*arguments: object, **more: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "tinylm.observability", *map(str, arguments)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": os.environ | {"NO_COLOR": "1"}, **more}
    return subprocess.run(words, text=True, **options)  # type: ignore[call-overload]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name, depth in (("a", 4), ("b", 6)):
        with obs.init(
            tmp_path / name / "run", config={"model": {"depth": depth}, "seed": 0}, name=f"run-{name}"
        ) as run:
            for step in range(50):
                run.log({"loss": depth + 1 / (step + 1), "validation_bits_per_character": 2.5}, step=step)
    return tmp_path


def test_help_and_version_are_quick_to_ask_and_import_no_torch() -> None:
    assert "Every run below a directory" in command("--help").stdout
    for name in ("list", "compare", "export", "ladder", "profile", "roofline"):
        assert "Try: tinylm-obs" in command(name, "--help").stdout
    assert command("--version").stdout.startswith("tinylm-obs ")
    code = "import sys, tinylm.observability.cli; print('torch' in sys.modules, 'rich.table' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False False\n"


def test_list_shows_runs_and_names_the_unreadable(runs: Path) -> None:
    (runs / "later").mkdir()
    (runs / "later" / "run.json").write_text('{"format": 9}')
    obs.init(runs / "empty")
    answer = command("list", runs)
    assert answer.returncode == 0
    lines = [line.split() for line in answer.stdout.splitlines() if line.strip()]
    assert lines[0][:7] == ["run", "name", "status", "attempt", "step", "loss", "bits/char"]
    assert lines[2][:7] == ["a/run", "run-a", "finished", "1", "49", "4.02", "2.5"]
    assert ["empty", "empty", "running", "1", "–", "–", "–"] in [line[:7] for line in lines]
    assert answer.stderr.startswith("unreadable: wanted format 1 or lower")


def test_compare_shows_what_differs(runs: Path) -> None:
    answer = command("compare", runs / "a", runs / "b" / "run")
    assert answer.returncode == 0
    lines = [line.split() for line in answer.stdout.splitlines() if line.strip()]
    assert ["model.depth", "4", "6"] in lines
    assert not any("seed" in line for line in lines)
    assert ["loss", "4.02", "(lowest", "4.02)", "6.02", "(lowest", "6.02)"] in lines
    assert any("█" in word and word.endswith("▁") for line in lines for word in line)
    assert "configurations are equal" in command("compare", runs / "a", runs / "a").stdout


def test_alerts_are_shown_by_list_and_compare(runs: Path) -> None:
    with obs.init(runs / "a" / "run") as run:
        run.alert("nan", "blocks.3.mlp.up", "its output is not finite", step=17)
        run.alert("spike", "blocks.0", "the loss is 9", step=30)
    (line,) = [line for line in command("list", runs).stdout.splitlines() if "a/run" in line]
    assert line.rstrip().endswith("nan blocks.3.mlp.up step 17 (+1)")
    shown = command("compare", runs / "a", runs / "b").stdout
    assert "nan, step 17, blocks.3.mlp.up: its output is not finite" in shown
    assert "spike, step 30, blocks.0: the loss is 9" in shown


def test_export_writes_csv(runs: Path) -> None:
    printed = command("export", runs / "a").stdout
    rows = list(csv.DictReader(printed.splitlines()))
    assert len(rows) == 50
    assert (rows[9]["step"], float(rows[9]["loss"])) == ("9", 4.1)
    assert command("export", runs / "a", "--out", runs / "a.csv").returncode == 0
    assert (runs / "a.csv").read_text() == printed


def test_ladder_prints_and_writes_without_paths(tmp_path: Path) -> None:
    names = [rung["rung"] for rung in ladder.rungs()]
    answer = command(
        *("ladder", "logging", "--size", "50", "--repeats", "1", "--no-roofline"),
        *("--json", tmp_path / "l.json", "--plot", tmp_path / "l.svg"),
    )
    assert (tmp_path / "l.svg").read_text().count("<rect") == len(names)
    assert answer.returncode == 0, answer.stderr
    assert "because the time below went to" in answer.stdout
    text = (tmp_path / "l.json").read_text()
    table = json.loads(text)
    assert table["command"] == "tinylm-obs ladder logging --size 50 --repeats 1"
    assert [row["rung"] for row in table["rows"]] == names
    assert str(tmp_path) not in text
    assert str(Path(sys.prefix)) not in text


def test_bad_input_is_one_line_and_an_exit_code(runs: Path) -> None:
    (runs / "nothing").mkdir()
    for arguments, message in (
        (["list", runs / "missing"], "which does not exist"),
        (["list", runs / "nothing"], "wanted runs at or below"),
        (["compare", runs / "a"], "wanted two runs or more"),
        (["compare", runs, runs / "a"], "wanted one run at or below"),
        (["export", runs / "nothing"], "got 0"),
        (["export", runs / "a", "--out", runs / "missing" / "a.csv"], "No such file or directory"),
        (["ladder", "nothing"], "wanted a component of"),
    ):
        answer = command(*arguments)
        assert answer.returncode == 1, arguments
        assert answer.stderr.startswith("error: wanted ")
        assert message in answer.stderr
        assert answer.stderr.count("\n") == 1
    for arguments in (["list", "--unknown"], ["nonsense"], ["ladder", "--size", "0"], ["export"]):
        assert command(*arguments).returncode == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_at_the_other_end_is_said(runs: Path) -> None:
    with Path("/dev/full").open("w") as full:
        answer = command("export", runs / "a", stdout=full)
    assert (answer.returncode, answer.stderr.count("\n")) == (1, 1)
    assert answer.stderr.startswith("error: wanted to write the output, got No space left")


def on_a_terminal(*arguments: object) -> str:
    """What a command shows on a terminal of 80 columns that knows no control sequences."""
    pty = pytest.importorskip("pty", reason="needs a pseudo-terminal")
    terminal, inside = pty.openpty()
    environment = os.environ | {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "80"}
    words = [sys.executable, "-m", "tinylm.observability", *map(str, arguments)]
    with subprocess.Popen(words, stdout=inside, stderr=inside, env=environment):
        os.close(inside)
        text = b""
        with os.fdopen(terminal, "rb", buffering=0) as shown, contextlib.suppress(OSError):  # Linux' end of a terminal
            while part := shown.read(65536):
                text += part
    return text.decode().replace("\r\n", "\n")


def test_list_on_a_terminal_of_80_columns_breaks_no_word(runs: Path) -> None:
    assert on_a_terminal("list", runs).split()[:4] == ["run", "name", "status", "step"]
    for name in ("a", "b"):
        obs.init(runs / name / "run", name=name).finish()
    with obs.init(runs / "quickstart-600-0" / "run", name="run") as run:
        run.log({"loss": 4.5, "bits_per_character": 2.2, "validation_bits_per_character": 2.4}, step=123_456)
        run.alert("nan", "blocks.3.mlp.up", "its output is not finite", step=17)
    text = on_a_terminal("list", runs)
    lines = [line.split() for line in text.splitlines() if line.strip()]
    assert lines[0] == ["run", "status", "step", "loss", "validation", "alerts"]
    assert lines[2] == ["a/run", "finished", "49", "4.02", "2.5", "–"]
    assert lines[4] == ["quickstart-600-0/run", "finished", "123456", "4.5", "2.4", "nan", "blocks.3.mlp.up"]
    assert text.rstrip().endswith("A wider terminal also shows: duration, bits/char, started, attempt, name")


def test_no_control_character_of_a_run_reaches_the_terminal(tmp_path: Path) -> None:
    evil = "\x1b[2J\x1b]0;title\x07\r\x9b31m\n\u202e."
    for name in ("a", "b"):
        with obs.init(tmp_path / name, config={evil: evil + name}, name=evil + name) as run:
            run.log({"loss": 2.0, f"{evil} loss": 1.0, "note": evil})
            run.alert(evil, evil, evil)
    (tmp_path / "\x1b[1mc").mkdir()
    (tmp_path / "\x1b[1mc" / "run.json").write_text("{")
    (tmp_path / "b" / "metrics.jsonl").open("a").write("torn\n{}\n")
    for arguments in (
        ["list", tmp_path],
        ["list", tmp_path / "\x1b[1mc"],
        ["compare", tmp_path / "a", tmp_path / "b"],
        ["export", tmp_path / "b"],
        ["export", tmp_path / "b", "--to", "prometheus"],
        ["sql", f'select layer as "{evil}" from alerts', tmp_path],
    ):
        if arguments[0] == "sql":
            pytest.importorskip("duckdb")
        text = on_a_terminal(*arguments)
        assert "\\x1b" in text, text
        assert not {*text} & {*evil} - {*"\n[]02Jtitle;31m."}, text
    assert {*"\x1b\x9b"} < {*command("export", tmp_path / "a").stdout}  # into a file it goes as it is
