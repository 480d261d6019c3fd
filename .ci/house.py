"""What the sessions of noxfile.py are made of: wheels of our packages, environments with pinned versions, test runs.

A session installs our packages from wheels built from this checkout, never from an index, and runs outside the source
tree, so that what is tested is what a user would install. Every other version is pinned in tests/constraints.txt.
Not here: which jobs there are and what each of them does (noxfile.py).
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nox

if sys.version_info < (3, 11):  # noqa: UP036 - nox may run on an older Python than the packages do
    raise SystemExit(
        f"TinyLM needs Python 3.11 or newer, and nox runs on {sys.version.split()[0]}: install one of them"
    )
import tomllib

ROOT = Path(__file__).parents[1]
CONSTRAINTS = str(ROOT / "tests" / "constraints.txt")
PHASES = {  # the phase, as the import and tests/ name it: its distribution
    "tokenizer": "tinylm-tokenizer",
    "model": "tinylm-model",
    "observability": "tinylm-obs",
    "training": "tinylm-train",
    "inference": "tinylm-infer",
}
SOURCES = os.pathsep.join(f"packages/{name}/src" for name in PHASES.values())
SHAKESPEARE = ROOT / "data" / "raw" / "shakespeare" / "shakespeare.txt"
PEERS = str(ROOT / "packages" / "tinylm-tokenizer" / "benchmarks" / "peers.txt")  # what its benchmarks compare with
FETCH_DATA = str(ROOT / "packages" / "tinylm-tokenizer" / "benchmarks" / "fetch_data.py")

os.environ.pop("PYTHONPATH", None)  # nothing but installed packages is importable in a session
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # what is installed is compiled when it is first imported: see install
os.environ["PIP_BUILD_CONSTRAINT"] = CONSTRAINTS
os.environ["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
os.environ["TINYLM_DATA"] = str(ROOT / "data" / "raw")  # where fetch_data.py writes, and tests and benchmarks read


def say(line: str) -> None:
    """Print a paragraph for the reader of the quickstart."""
    print(f"\n{line}", flush=True)


def install(
    session: nox.Session, *what: str, constraints: str = CONSTRAINTS, silent: bool = True, log: bool = True
) -> None:
    """Install into the session's environment, every version as tests/constraints.txt (or another file) pins it.

    Where the test runs unwatched (CI is set) the environments of the sessions before go first: all together take 17 GB.
    The quickstart's stays, which people use. Nothing is compiled in advance: PyTorch and transformers would take half a
    minute an environment, and most of them is never imported.
    """
    if os.environ.get("CI"):
        for earlier in ROOT.glob(".nox/*/pyvenv.cfg"):
            if earlier.parent != Path(session.virtualenv.location) and earlier.parent.name != "quickstart":
                shutil.rmtree(earlier.parent, ignore_errors=True)
    session.install("--no-compile", "-c", constraints, *what, silent=silent, log=log)


def pytest(session: nox.Session, folder: str, *options: str) -> None:
    """Run tests/<folder> from an empty directory, so that `tinylm` can only be the installed one.

    A process for each core, four at most, takes the files by turns; one thread each, since models this small on several
    threads mostly wait for one another.
    """
    fixed = ["-q", "-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider", "--timeout", "300"]
    fixed += ["-n", str(min(4, os.cpu_count() or 1)), "--dist", "loadfile"]
    wanted = {"tokenizer": "--tests", "model": "smollm2"}.get(folder)
    if wanted:  # real vocabularies and weights; without a network the tests that read them are skipped by name
        session.run("python", FETCH_DATA, wanted, success_codes=[0, 1])
    with session.chdir(session.create_tmp()):
        tests = str(ROOT / "tests" / folder)
        session.run("python", "-m", "pytest", *fixed, *options, tests, env={"OMP_NUM_THREADS": "1"})


def has_gpu() -> bool:
    """Whether the driver's own tool lists an NVIDIA GPU."""
    tool = shutil.which("nvidia-smi")
    return tool is not None and "GPU 0" in subprocess.run([tool, "-L"], capture_output=True, text=True).stdout


def chromium() -> str | None:
    """The program that the browser tests drive: $CHROMIUM, or a Chromium or Chrome that is installed."""
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    return next(filter(None, (shutil.which(name) for name in names if name)), None)


def needs(name: str) -> list[str]:
    """What a package requires, extras included, as `name>=version` without brackets."""
    project = tomllib.loads((ROOT / "packages" / name / "pyproject.toml").read_text())["project"]
    optional = [need for extra in project.get("optional-dependencies", {}).values() for need in extra]
    return [re.sub(r"\[.*\]", "", need) for need in [*project["dependencies"], *optional]]


def wheels(session: nox.Session, *names: str) -> list[str]:
    """Wheels of the named packages (default: all) and of those of ours that they need, built anew when changed."""
    wanted = {*names, *(need.split(">=")[0] for name in names for need in needs(name))}
    chosen = [name for name in PHASES.values() if name in wanted or not names]
    with ThreadPoolExecutor() as pool:  # the compiler of one package works while the others wait for downloads
        return list(pool.map(lambda name: wheel_of(session, name), chosen))


def wheel_of(session: nox.Session, name: str) -> str:
    """The wheel of one package: an earlier one if its source and the compiler have not changed since."""
    source = copy_source(session, name)
    digest = hashlib.sha256(f"{sys.version} {os.environ.get('CXX')} {shutil.which('c++')}".encode())
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        digest.update(bytes(path.relative_to(source)) + path.read_bytes())
    folder = ROOT / ".nox" / "wheels" / f"{name}-{digest.hexdigest()[:12]}"
    if not any(folder.glob("*.whl")):
        wheel = build_wheel(session, source)
        folder.mkdir(parents=True, exist_ok=True)
        wheel.replace(folder / wheel.name)
    (built,) = folder.glob("*.whl")
    return str(built)


def copy_source(session: nox.Session, name: str) -> Path:
    """Copy a package's source without what earlier builds left in it, so that a build is a first build."""
    copy = Path(tempfile.mkdtemp(dir=session.create_tmp()), name)
    leftovers = shutil.ignore_patterns("__pycache__", "build", "dist", "*.so")
    return shutil.copytree(ROOT / "packages" / name, copy, ignore=leftovers)


def build_wheel(session: nox.Session, source: Path, **environment: str) -> Path:
    """Build one package's wheel."""
    folder = tempfile.mkdtemp(dir=session.create_tmp())
    command = ["python", "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, str(source)]
    session.run(*command, env=environment, silent=True)
    (wheel,) = Path(folder).glob("*.whl")
    return wheel


def next_release(session: nox.Session, name: str) -> str:
    """Build the wheel that a package's next release would be."""
    copy = copy_source(session, name)
    project = copy / "pyproject.toml"
    project.write_text(re.sub(r'\nversion = "(\d+)\.(\d+)\.\d+"', r'\nversion = "\1.\2.999"', project.read_text()))
    return str(build_wheel(session, copy))


def is_pure(wheel: Path) -> bool:
    """Whether a wheel holds no compiled module."""
    return wheel.name.endswith("-none-any.whl")


def bits_per_character(checkpoint: Path) -> float:
    """The last validation figure of a run, from its metrics."""
    rows = [json.loads(line) for line in (checkpoint / "run" / "metrics.jsonl").read_text().splitlines()]
    figures = [row["validation_bits_per_character"] for row in rows if "validation_bits_per_character" in row]
    return float(figures[-1])


def holds_another_text(folder: Path, text: Path) -> bool:
    """Whether a quickstart folder was made from another text than this one, as the sha256 in its data set says."""
    made = folder / "tokens" / "data.json"
    if not made.is_file():
        return False
    sums = {source["sha256"] for source in json.loads(made.read_text(encoding="utf-8"))["sources"]}
    return hashlib.sha256(text.read_bytes()).hexdigest() not in sums


def install_fresh(session: nox.Session, files: list[str], constraints: str, cache: str) -> None:
    """Install these files of dist/, and their siblings from there, into a fresh environment; commands answer.

    `cache` is pip's: it keeps the wheel of a source archive by the archive's path, so that of an earlier dist/ as well.
    """
    with tempfile.TemporaryDirectory(dir=session.create_tmp()) as folder:
        session.run("python", "-m", "venv", folder, silent=True)
        bin = Path(folder, "Scripts" if os.name == "nt" else "bin")
        options = ["-q", "--no-compile", "--find-links", str(ROOT / "dist"), "-c", constraints]
        command = [str(bin / "python"), "-m", "pip", "install", *options, *files]
        session.run(*command, external=True, silent=True, env={"PIP_CACHE_DIR": cache})
        for file in files:
            name = Path(file).name.split("-")[0].replace("_", "-")
            session.run(str(bin / name), "--version", external=True)


def lower_bounds(session: nox.Session) -> dict[str, str]:
    """package -> `package==bound` for every lower bound that our packages state; a few are left out."""
    # torch keeps its pin (older builds are gigabytes), and with it its Triton; nicegui, of which no phase's own tests
    # ask anything, wants newer versions of others than we do.
    kept = ("torch", "triton", "tinylm", "nicegui")
    every = [need for name in PHASES.values() for need in needs(name) if ">=" in need and not need.startswith(kept)]
    stated = {need.partition(">=")[::2] for need in every}
    bounds = dict(stated)
    if len(bounds) < len(stated):
        session.error(f"the packages state different lower bounds for one dependency: {sorted(stated)}")
    return {package: f"{package}=={bound}" for package, bound in bounds.items()}


def constraints_with(session: nox.Session, replaced: dict[str, str]) -> str:
    """A copy of tests/constraints.txt in which `replaced` stands for what it pins of these packages."""
    pins = [line for line in Path(CONSTRAINTS).read_text().splitlines() if line.split("==")[0].lower() not in replaced]
    path = Path(session.create_tmp(), "constraints.txt")
    path.write_text("\n".join([*pins, *replaced.values()]))
    return str(path)


def check_wheel(session: nox.Session, wheel: Path, holds_kernels: bool) -> None:
    """End the session if a wheel claims the shared namespace, or is pure where it should hold kernels."""
    session.log(f"built {wheel.name}")
    if "tinylm/__init__.py" in zipfile.ZipFile(wheel).namelist():
        session.error(f"{wheel.name} holds tinylm/__init__.py, but five packages share that namespace: remove it")
    if holds_kernels and is_pure(wheel):
        session.error(f"{wheel.name} should hold kernels and is pure: nox -s build -v shows the compiler's output")


def benchmark_scripts(words: Collection[str]) -> list[str]:
    """The packages' benchmarks with one of the words in their path; without words all of them, each once: of a folder
    with a run.py, which runs the others, that one. A benchmark is a script with an option --quick."""
    scripts = [
        path
        for path in sorted(ROOT.glob("packages/*/benchmarks/*.py"))
        if 'add_argument("--quick"' in path.read_text(encoding="utf-8")
        and (words or not path.with_name("run.py").is_file())
    ]
    whole = [] if words else sorted(ROOT.glob("packages/*/benchmarks/run.py"))
    found = [path for path in scripts if not words or any(word in str(path.relative_to(ROOT)) for word in words)]
    return [str(path) for path in (*found, *whole)]
