"""The ladder: what is measured on which work, what is refused; tables: rendered, checked, refused."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tinylm.observability import ObservabilityError, climb, plot, roofline, tables, timing


@pytest.fixture
def fake() -> Callable[..., dict[str, Any]]:
    """A rung that squares numbers, with whatever the test wants different."""

    def make(rung: str, equals: str | None = None, **different: Any) -> dict[str, Any]:
        return {
            "component": "fake",
            "ladder": "squares",
            "rung": rung,
            "module": "tests",
            "change": f"why {rung}",
            "equals": equals,
            "make": lambda size: list(range(size)),
            "run": lambda work: [number**2 for number in work],
            "compare": lambda ours, theirs: float(ours != theirs),
            "amount": len,
            "unit": "numbers",
            "size": 50,
        } | different

    return make


def slowly(work: list[int]) -> list[int]:
    time.sleep(0.02)
    return [number**2 for number in work]


def test_both_sides_of_a_ratio_are_measured_on_the_same_work(fake: Callable[..., dict[str, Any]]) -> None:
    seen: list[tuple[str, int]] = []

    def recording(name: str) -> Callable[[list[int]], list[int]]:
        return lambda work: (seen.append((name, len(work))), slowly(work))[1]

    rungs = [
        climb.Rung(**fake("low", run=recording("low"), size=10)),
        climb.Rung(**fake("high", "low", run=recording("high"), size=1000)),
    ]
    low, high = climb.climb(rungs, repeats=3)
    assert (low["size"], high["size"], high["compared at size"]) == (10, 1000, 10)
    turns = [("low", 10), ("high", 1000), ("high", 10)]
    assert seen[:9] == turns * 3  # taking turns
    assert seen[9:] == [("low", 10)]  # the profile of the rung below
    assert low["× rung below"] is None
    assert low["hotspots of the rung below"] is None
    assert high["error"] == 0.0
    assert high["repeats"] == 3
    assert high["per second"] == pytest.approx(1000 / high["time (s)"])
    assert "sleep" in high["hotspots of the rung below"].split(";")[0]
    assert "/" not in high["hotspots of the rung below"]
    assert [row["size"] for row in climb.climb(rungs, size=20, repeats=1)] == [20, 20]


def test_a_rung_that_differs_fails_loudly(fake: Callable[..., dict[str, Any]]) -> None:
    low = fake("low")
    for error in (1.0, float("nan")):
        wrong = fake("high", "low", compare=lambda ours, theirs, error=error: error)
        with pytest.raises(ObservabilityError, match=r"wanted 'high' to equal 'low' within 1e-05, work of size 50"):
            climb.climb([climb.Rung(**low), climb.Rung(**wrong)], repeats=1)
    near = fake("high", "low", compare=lambda ours, theirs: 1e-7)
    assert climb.climb([climb.Rung(**low), climb.Rung(**near)], repeats=1)[1]["error"] == 1e-7
    with pytest.raises(ObservabilityError, match="within 0, work of size 50"):
        climb.climb([climb.Rung(**low), climb.Rung(**near | {"tolerance": 0})], repeats=1)
    with pytest.raises(ObservabilityError, match="wanted the rung 'none' below 'high' in 'squares', got no such rung"):
        climb.climb([climb.Rung(**fake("high", "none"))], repeats=1)


def test_the_fraction_of_the_roofline_and_the_error_against_float64(fake: Callable[..., dict[str, Any]]) -> None:
    limit = roofline.Roofline("cpu", 1, {10**9: 1e6}, {"float32": 1e9, "float64": 1e3}, {})
    facts = {"cost": lambda work: (2.0, 4.0 * len(work), "float64"), "exact": lambda work: [n**2 for n in work]}
    facts |= {"compare": lambda ours, theirs: float(max(abs(a - b) for a, b in zip(ours, theirs, strict=True)))}
    near = fake("high", "low", run=lambda work: [n + 1e-7 for n in slowly(work)], **facts)
    rungs = [climb.Rung(**fake("low", run=slowly, **facts)), climb.Rung(**near)]
    low, high = climb.climb(rungs, size=500, repeats=1, limit=limit)
    assert low["% of roofline"] == pytest.approx(100 * 2e-3 / low["time (s)"])  # 2 FLOPs, 2,000 bytes: the same time
    assert low["error against float64"] == 0.0
    assert high["error against float64"] == pytest.approx(1e-7, rel=0.1)
    assert climb.climb(rungs[:1], size=5, repeats=1)[0]["% of roofline"] is None
    drawn = plot.ladders({"rows": [low, high]})
    assert drawn.count("<rect") == 2
    assert "squares" in drawn
    with pytest.raises(ObservabilityError, match="wanted the rows of a ladder"):
        plot.ladders({"rows": [["not", "a", "ladder"]]})


def test_rungs_are_found_in_this_package_and_unknown_components_refused() -> None:
    rungs, _ = climb.find_rungs("logging")
    assert [rung.rung for rung in rungs] == ["buffered CSV", "JSONL append"]
    rows = climb.climb(rungs, size=50, repeats=1)
    assert rows[1]["error"] == 0.0
    with pytest.raises(ObservabilityError, match=r"wanted a component of .*logging.*, got 'nothing'"):
        climb.find_rungs("nothing")


def test_a_phase_without_a_ladder_or_a_dependency_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tinylm

    for phase, text in (("quiet", None), ("needy", "import a_module_that_is_not_there\n")):
        package = tmp_path / "tinylm" / phase
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        if text is not None:
            (package / "ladder.py").write_text(text)
    monkeypatch.setattr(tinylm, "__path__", [str(tmp_path / "tinylm")])
    rungs, notes = climb.find_rungs()
    assert rungs == []
    assert notes == [
        "tinylm.needy: needs a_module_that_is_not_there: install it to climb its ladder",
        "tinylm.quiet: has no ladder yet",
    ]


def test_samples_measure_time_cpu_and_memory() -> None:
    figures = timing.interleaved({"sleep": lambda: time.sleep(0.05), "block": lambda: bytearray(64 * 2**20)}, repeats=3)
    assert figures["sleep"].seconds >= 0.05
    assert figures["sleep"].cpu_seconds < figures["sleep"].seconds
    assert timing.sample(lambda: 7)[1] == 7
    if sys.platform == "linux":
        peak = figures["block"].peak_bytes
        assert peak is not None
        assert peak >= 60 * 2**20
    assert timing.middle([timing.Sample(s, s, s, None) for s in (3, 1, 2)]) == (2, 2, 3, None)


TABLE = {
    "format": 1,
    "title": "t",
    "command": "measure",
    "machine": {"cpu": "C", "cores": 2},
    "versions": {"python": "3.11"},
    "date": "2026-11-22",
    "columns": ["rung", "time (s)", "n"],
    "rows": [{"rung": "a|b <c> __d__", "time (s)": 0.012345, "raw": 1}, ["c", None, 12345]],
}
RENDERED = """\
| rung | time (s) | n |
| --- | --- | --- |
| a\\|b &lt;c> \\_\\_d\\_\\_ | 0.0123 | – |
| c | – | 12,345 |

`measure` · C, 2 cores · python 3.11 · 2026-11-22
"""


def test_blocks_are_rendered_and_stale_ones_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results").mkdir()
    tables.write_table(TABLE, tmp_path / "results" / "r.json")
    document = tmp_path / "README.md"
    text = "before\n<!-- table: results/r.json -->\nold\n<!-- /table -->\nafter\n"
    document.write_text(text)
    assert tables.main(["--check", str(document)]) == 1
    assert "stale: results/r.json" in capsys.readouterr().out
    assert document.read_text() == text
    assert tables.main([str(document)]) == 0
    assert document.read_text() == text.replace("old\n", f"\n{RENDERED}\n")
    assert tables.main(["--check", str(document)]) == 0
    command = [sys.executable, "-m", "tinylm.observability.tables", "--check", str(document)]
    assert subprocess.run(command, capture_output=True).returncode == 0


def test_a_part_of_a_table_is_rendered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables.write_table(TABLE, tmp_path / "r.json")
    document = tmp_path / "README.md"

    def rendered(choice: str) -> list[str]:
        document.write_text(f"<!-- table: r.json{choice} -->\n<!-- /table -->\n")
        assert tables.main([str(document)]) == 0
        assert tables.main(["--check", str(document)]) == 0
        return [line for line in document.read_text().splitlines() if line.startswith("| ")]

    assert rendered(" | rows: c | columns: n; rung") == ["| n | rung |", "| --- | --- |", "| 12,345 | c |"]
    assert rendered(" | rows: 0.0123")[2:] == ["| a\\|b &lt;c> \\_\\_d\\_\\_ | 0.0123 | – |"]
    assert rendered(" | columns: time (s)") == ["| time (s) |", "| --- |", "| 0.0123 |", "| – |"]
    for choice, message in (("rows: d", "got 'd'"), ("columns: rung; z", "got 'z'"), ("only: c", "got 'only: c'")):
        document.write_text(f"<!-- table: r.json | {choice} -->\n<!-- /table -->\n")
        assert tables.main([str(document)]) == 1
        assert message in capsys.readouterr().err


def test_tables_that_cannot_be_rendered_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = tmp_path / "README.md"
    document.write_text("<!-- table: r.json -->\n<!-- /table -->\n")
    result = tmp_path / "r.json"
    for text, message in (
        (None, "got no file"),
        ("{", "wanted JSON"),
        ("[]", "it is not ours"),
        (json.dumps(TABLE | {"format": 2}), "got 2; upgrade"),
        (json.dumps(TABLE | {"columns": "rung"}), 'wanted "columns"'),
        (json.dumps(TABLE | {"rows": [["too", "short"]]}), "wanted 3 cells in row 0"),
    ):
        if text is not None:
            result.write_text(text)
        assert tables.main(["--check", str(document)]) == 1
        assert message in capsys.readouterr().err
    document.write_text("<!-- table: r.json -->\nnever closed\n")
    assert tables.main([str(document)]) == 1
    assert "wanted <!-- /table -->" in capsys.readouterr().err
    assert tables.main([str(tmp_path / "none.md")]) == 1


def test_cells_read_well() -> None:
    values = [None, True, 7, 12345, 0.0, 0.00001234, 0.012345, 123.456, 98765.4, "text"]
    assert [tables.cell(value) for value in values] == [
        *("–", "True", "7", "12,345", "0", "1.2e-05", "0.0123", "123", "98,765", "text")
    ]
