"""The house holds: no package reaches into another's private names, and a planted breach of each border is caught.

Run by `nox -s lint` over the sources of the checkout. What import-linter checks stands in the root pyproject.toml;
that it would notice is tested here. The private names are read from the syntax tree, because import-linter sees modules
only, and `from tinylm.model.transformer import _helper` is as much a breach as `from tinylm.model import _errors`.
What the packages do is tested in tests/<phase>/, never here.
"""

import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PHASES = ["tokenizer", "model", "observability", "training", "inference"]


def private_imports(source: Path) -> list[str]:
    """Every import below a src/ folder of an underscore name that belongs to another package, as `file:line name`."""
    found = []
    for path in sorted(source.rglob("*.py")):
        own = path.relative_to(source).parts[1]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for name in names:
                root, _, rest = name.partition(".")
                phase, _, inner = rest.partition(".")
                if root == "tinylm" and phase != own and any(part.startswith("_") for part in inner.split(".")):
                    found.append(f"{path.name}:{node.lineno} {name}")
    return found


def sources() -> list[Path]:
    return sorted(ROOT.glob("packages/*/src"))


def test_no_package_uses_anothers_private_names() -> None:
    assert len(sources()) == 5
    assert [breach for source in sources() for breach in private_imports(source)] == []


@pytest.mark.parametrize(
    "line",
    [
        "from tinylm.tokenizer import _errors",
        "import tinylm.tokenizer._errors",
        "from tinylm.tokenizer._errors import TokenizerError",
        "from tinylm.tokenizer.byte_bpe import _helper",
    ],
)
def test_a_planted_private_import_is_found(tmp_path: Path, line: str) -> None:
    module = tmp_path / "tinylm" / "training" / "planted.py"
    module.parent.mkdir(parents=True)
    module.write_text(f"def f() -> None:\n    {line}\n")
    assert len(private_imports(tmp_path)) == 1


@pytest.fixture
def copied_house(tmp_path: Path) -> Path:
    """A copy of the sources and of the configuration, to plant breaches in."""
    for source in sources():
        shutil.copytree(source, tmp_path / source.relative_to(ROOT), ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint_imports(house: Path) -> tuple[int, str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, house.glob("packages/*/src")))}
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as main; main()", "--no-cache"]
    done = subprocess.run(command, cwd=house, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("phase", "line", "contract"),
    [
        ("tinylm-tokenizer/src/tinylm/tokenizer", "import tinylm.observability", "Two floors"),
        ("tinylm-model/src/tinylm/model", "import tinylm.training", "Two floors"),
        ("tinylm-train/src/tinylm/training", "import tinylm.inference", "Two floors"),
        ("tinylm-obs/src/tinylm/observability", "import rich", "typer and rich"),
    ],
)
def test_import_linter_catches_a_planted_breach(copied_house: Path, phase: str, line: str, contract: str) -> None:
    (copied_house / "packages" / phase / "planted.py").write_text(f"{line}\n")
    code, output = lint_imports(copied_house)
    assert code == 1, output
    broken = [row for row in output.splitlines() if "BROKEN" in row]
    assert len(broken) == 1, output
    assert contract in broken[0]


def test_two_texts_of_one_name_do_not_share_a_quickstart_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())  # house.py sets variables for the sessions
    monkeypatch.syspath_prepend(ROOT / ".ci")
    from house import holds_another_text

    text = tmp_path / "my.txt"
    text.write_text("one")
    assert not holds_another_text(tmp_path, text)  # nothing was made there yet
    (tmp_path / "tokens").mkdir()
    digest = hashlib.sha256(b"one").hexdigest()
    (tmp_path / "tokens" / "data.json").write_text(json.dumps({"sources": [{"name": "my.txt", "sha256": digest}]}))
    assert not holds_another_text(tmp_path, text)
    text.write_text("another")
    assert holds_another_text(tmp_path, text)


def test_every_set_that_is_fetched_is_described_with_its_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "packages" / "tinylm-tokenizer" / "benchmarks")
    from sources import VOCABULARIES

    described = (ROOT / "data" / "raw" / "README.md").read_text(encoding="utf-8")
    assert len(VOCABULARIES) > 10
    for name, vocabulary in VOCABULARIES.items():
        (row,) = [line for line in described.splitlines() if line.startswith(f"| `{name}` |")]
        package = f"`{vocabulary.package.name}` {vocabulary.package.version}"
        for wanted in (package, vocabulary.licence, *(file.sha256 for file in vocabulary.files)):
            assert wanted in row


def test_a_readmes_picture_of_a_ladder_is_that_of_its_table() -> None:
    from tinylm.observability import plot, tables

    results = sorted(ROOT.glob("packages/*/benchmarks/results/ladder_*.json"))
    assert len(results) > 5
    drawn = {path.with_suffix(".svg"): plot.ladders(tables.read_table(path)) for path in results}
    stale = [path.name for path, svg in drawn.items() if path.read_text(encoding="utf-8") != svg]
    assert stale == [], (
        "`tinylm-obs ladder` draws with --plot FILE.svg; or write plot.ladders(tables.read_table(json)) there"
    )


def test_the_namespace_belongs_to_no_package() -> None:
    assert [path for source in sources() for path in source.glob("tinylm/__init__.py")] == []


@pytest.mark.parametrize("phase", PHASES)
def test_the_import_costs_no_torch_and_no_terminal_library(phase: str) -> None:
    program = f"import sys, tinylm.{phase}; print(*sorted({{'torch', 'numpy', 'typer', 'rich'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
