"""The table of benchmarks/table.py: what stands is taken, what is missing is measured, a row holds all of it."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

tables = pytest.importorskip("tinylm.observability.tables")

SCRIPT = Path(__file__).parents[2] / "packages/tinylm-infer/benchmarks/table.py"
pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="needs the checkout's benchmarks")
COUNTS = [f"{drawing}: {column}" for drawing in ("greedy", "seeded") for column in ("texts", "differ", "ties")]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("table", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def results(tmp_path: Path) -> Path:
    def write(name: str, columns: list[str], *rows: object) -> None:
        tables.write_table(tables.new_table(name, name, columns, rows), tmp_path / f"{name}.json")

    climbed = {"rung": "C++ pass", "per second": 50.0, "time (s)": 4.0, "CPU (s)": 2.0}
    write("ladder_decoding", ["ladder", "rung"], {"ladder": "decoding", **climbed})
    write(
        "decode", ["engine", "decode", "of the roofline"], ["tinylm float32", 30.0, 0.8], ["llama.cpp q4_0", 9.0, None]
    )
    write("batch_and_prefill", ["engine", "batch 8", "prefill 512"], ["tinylm int4", 400.0, 500.0])
    exact = ["C++ pass", "the lowest rung", 1000, 2, 2, 1000, 3, 3, ""]
    invariant = ["batch_invariant, bfloat16", "itself alone", 9, 0, 0, 9, 0, 0, "1.40 ×"]
    write("exactness", ["way", "compared with", *COUNTS, "CPU-s"], exact, invariant)
    quality = [["a", 0, "+0.02 %", "+0.72 %"], ["a", 1, "-0.01 %", "+0.80 %"], ["foreign", None, "+9.00 %", "+9.00 %"]]
    write("quantization_quality", ["model", "seed", "int8", "int4"], *quality)
    return tmp_path


def test_a_rung_has_its_speed_its_exactness_and_its_quality(script: ModuleType, results: Path) -> None:
    rows = {(row[0], row[1]): dict(zip(script.COLUMNS, row, strict=True)) for row in script.join(results)}
    row = rows["C++ pass", "float32"]
    assert [row["ladder's texts"], row["GPT-2, one text"], row["of the roofline"]] == [100.0, 30.0, 0.8]
    assert row["greedy: texts / differ / ties"] == "1,000 / 2 / 2"
    assert rows["C++ kernels", "int4"]["eight texts"] == 400.0
    assert rows["C++ kernels", "int4"]["perplexity"] == "+0.80 %"
    assert rows["batch_invariant, 1.40 × the CPU time", "bfloat16"]["seeded: texts / differ / ties"] == "9 / 0 / 0"
    assert rows["llama.cpp", "q4_0"]["GPT-2, one text"] == 9.0


def test_only_what_is_missing_is_measured(script: ModuleType, results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    exactness = (results / "exactness.json").read_text()

    def run(command: list[str], **_: object) -> Any:
        asked.append(Path(command[1]).name)
        Path(command[command.index("--json") + 1]).write_text(exactness)
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(script.subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["table.py", "--results", str(results)])
    script.main()
    assert asked == []
    (results / "exactness.json").unlink()
    script.main()
    assert asked == ["exactness.py"]
    assert len(tables.read_table(results / "table.json")["rows"]) == len(script.RUNGS) + 1
