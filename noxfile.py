"""Every job of the house, one session each: `nox -l` lists them, `nox` runs the whole test, `nox -s quickstart` trains.

In the order in which plain `nox` runs them, the main job first. This file fetches, builds, installs and calls; it holds
no logic of the packages. How a wheel is made and a test is run: `.ci/house.py`.
"""

import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from shlex import quote

import nox

sys.path.insert(0, str(Path(__file__).parent / ".ci"))
from house import (
    CONSTRAINTS,
    FETCH_DATA,
    PEERS,
    PHASES,
    ROOT,
    SHAKESPEARE,
    SOURCES,
    benchmark_scripts,
    bits_per_character,
    build_wheel,
    check_wheel,
    chromium,
    constraints_with,
    copy_source,
    has_gpu,
    holds_another_text,
    install,
    install_fresh,
    is_pure,
    lower_bounds,
    next_release,
    pytest,
    say,
    wheels,
)

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "virtualenv"
nox.options.sessions = ["lint", "tests", "integration", "browser", "notebooks", "docs", "build", "minimums"]

DEVICES = {"cpu": "not cuda and not browser", "cuda": "cuda"}  # the device: the mark that picks its tests
COMPILED = ["tinylm-tokenizer", "tinylm-infer"]  # wheels that must hold kernels
PYTEST = ["pytest", "pytest-timeout", "pytest-xdist", "hypothesis"]
TEST_NEEDS = {  # what a phase's tests compare with, beyond pytest and what the package itself needs
    "tokenizer": ["jinja2", "protobuf", "sentencepiece", "tiktoken", "tokenizers", "transformers"],
    "model": ["gguf", "tokenizers", "transformers", "triton; sys_platform == 'linux'"],
    "observability": ["duckdb", "numpy", "psutil", "pyarrow", "tensorboard", "torch"],
    "training": ["matplotlib", "peft", "psutil", "pyarrow", "tokenizers", "transformers"],
    "inference": ["openai", "schemathesis", "tokenizers", "transformers"],
}
# Playwright drives an installed Chromium; the others are what the pages' packages need by their extras.
BROWSER_NEEDS = ["nicegui", "playwright"]
SITE = ["mkdocs", "mkdocs-material", "mkdocstrings[python]", "L2M4M", "zensical"]

# The main job, in one place.
VOCABULARY = "2048"
MINUTES = "3"
PROMPTS = ["ROMEO.", "FIRST CITIZEN."]  # the second so that several speak: a thing of chance after one prompt
SMOOTHED = 2.31  # bits per character of a 5-gram model, by packages/tinylm-train/benchmarks/ngram.py
FIVE_GRAM = f"2.42, or {SMOOTHED} with Witten-Bell smoothing"


@nox.session(reuse_venv=True)
def quickstart(session: nox.Session) -> None:
    """Raw text -> tokenizer -> data set -> trained model -> generated text: Shakespeare, or `-- path/to/my.txt`."""
    mine = session.posargs[0] if session.posargs else None
    text = Path(session.invoked_from, mine).resolve() if mine else SHAKESPEARE
    if not mine:
        session.run("python", FETCH_DATA, "shakespeare", log=False)
    elif not text.is_file():
        session.error(f"wanted a text file, found none at {text}; give its path: nox -s quickstart -- path/to/my.txt")

    out = f"data/processed/{text.stem}"
    if holds_another_text(ROOT / out, text):
        session.error(
            f"{out} was made from another text called {text.name}, or from this one before it changed: "
            "move that folder away, or rename the text"
        )

    say("Installing the five packages and PyTorch into .nox/quickstart (a minute; longer where PyTorch is downloaded)")
    watched = sys.stdout.isatty() and not Path(session.bin, "tinylm-infer").exists()  # show a first, long download
    made = wheels(session)
    watching = [f"{wheel}[ui,system]" for wheel in made if Path(wheel).name.startswith("tinylm_obs")]
    install(session, *made, *watching, silent=not watched, log=False)
    install(session, *made, "--no-deps", "--force-reinstall", log=False)  # a newer source, perhaps

    name = str(text.relative_to(ROOT) if text.is_relative_to(ROOT) else text)
    prompts = [text.read_text(encoding="utf-8", errors="replace").strip().split("\n")[0][:80]] if mine else PROMPTS
    say("To repeat a command yourself: source .nox/quickstart/bin/activate")
    for command in (
        f"tinylm-tokenizer train {quote(name)} --vocab-size {VOCABULARY} --head 0.9 --out {out}/tokenizer",
        f"tinylm-train prepare {quote(name)} --tokenizer {out}/tokenizer --validation tail:0.1 --out {out}/tokens",
        f"tinylm-train pretrain --data {out}/tokens --out {out}/model --minutes {MINUTES}",
        *(
            f"tinylm-infer generate {out}/model {quote(prompt)} --max-tokens 240 --temperature 0.5 --top-p 0.9"
            for prompt in prompts
        ),
    ):
        say(f"$ {command}")
        try:
            session.run(*shlex.split(command), log=False, interrupt_timeout=None)  # pretrain saves first on Ctrl-C
        except nox.command.CommandFailed as failure:
            stopped = "130" in str(failure.reason)  # Ctrl-C
            session.error("stopped; the same command goes on from here" if stopped else "the message above says why")
    if not mine:
        figure = bits_per_character(ROOT / out / "model")
        say(f"Validation: {figure:.2f} bits per character, lower is better (a 5-gram model: {FIVE_GRAM})")
        if figure > SMOOTHED:
            longer = f"tinylm-train pretrain --data {out}/tokens --out {out}/longer --minutes 30"
            say(f"Too few steps fitted into {MINUTES} minutes to beat it. With more, after `source`: {longer}")
    say(
        "Next: source .nox/quickstart/bin/activate\n"
        f"      tinylm-infer chat {out}/model\n"
        f"      tinylm-infer explore {out}/model\n"
        f"      tinylm-obs ui {out}\n"
        "      .venv/bin/nox -s quickstart -- path/to/my.txt"
    )


@nox.session
def lint(session: nox.Session) -> None:
    """Style, types, the borders between the packages, GitHub's files, and the tables in the documents."""
    typed = ["matplotlib", "nicegui", "types-regex"]  # what packages use by an extra; what brings no types
    install(session, *wheels(session), *PYTEST, *typed, "ruff", "mypy", "import-linter", "nox", "check-jsonschema")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy", *[word for phase in PHASES for word in ("-p", f"tinylm.{phase}")])
    session.run("mypy", "noxfile.py", ".ci/house.py", ".ci/pages.py", ".ci/overview.py")
    source = {"PYTHONPATH": SOURCES}
    session.run("lint-imports", env=source)
    session.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_house.py", env=source)
    workflows = map(str, sorted(ROOT.glob(".github/workflows/*.yml")))
    session.run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *workflows)
    session.run("check-jsonschema", "--builtin-schema", "vendor.dependabot", ".github/dependabot.yml")
    session.run("check-jsonschema", "--builtin-schema", "vendor.citation-file-format", "CITATION.cff")
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
    install(session, *wheels(session), *PYTEST, *TEST_NEEDS["inference"], "duckdb", "scipy")
    pytest(session, "integration", *session.posargs)
    for name in ("tinylm-obs", "tinylm-model"):
        session.run("python", "-m", "pip", "install", "-q", "--no-index", "--no-deps", next_release(session, name))
        session.run("python", "-m", "pip", "check")
        pytest(session, "integration", "-k", "five_commands")


@nox.session
def browser(session: nox.Session) -> None:
    """The pages in real headless Chromium: they load, work without a network, and say what is wrong."""
    if not chromium():
        session.skip("browser needs Chromium, and finds none: apt-get install chromium, or set CHROMIUM to a program")
    install(session, *wheels(session), *PYTEST, *BROWSER_NEEDS)
    for file in sorted(ROOT.glob("tests/*/test_*_pages*.py")):
        pytest(session, str(file.relative_to(ROOT / "tests")), "-m", "browser", *session.posargs)


@nox.session
def notebooks(session: nox.Session) -> None:
    """Every notebook of experiments/ runs from its first cell to its last; how long each took stands at the end."""
    install(session, *wheels(session), "pytest", "nbmake", "ipykernel", "matplotlib")
    session.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbmake", "--durations=0", "experiments")


@nox.session
def docs(session: nox.Session) -> None:
    """The site builds into site/ without a broken link, by MkDocs and by Zensical, and asks no other host."""
    install(session, *SITE, "nbconvert", "typer", "rich", "pytest", "playwright")
    # With -q, --strict would pass broken links. The variable silences an advertisement of MkDocs 2.
    session.run("mkdocs", "build", "--strict", "--clean", env={"NO_MKDOCS_2_WARNING": "1"})
    session.run("zensical", "build", "--strict", "--clean", env={"SITE_DIR": "build/zensical"}, silent=True)
    session.run(
        "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_site.py", env={"PYTHONPATH": SOURCES}
    )


def build_all(session: nox.Session) -> None:
    """Wheel and sdist of each package into an empty dist/."""
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    for name in PHASES.values():  # the wheel is made from the sdist, which proves the sdist whole
        session.run("python", "-m", "build", "--outdir", "dist", f"packages/{name}", silent=True)
        (wheel,) = ROOT.glob(f"dist/{name.replace('-', '_')}-*.whl")
        check_wheel(session, wheel, holds_kernels=name in COMPILED)


@nox.session
def build(session: nox.Session) -> None:
    """Wheel and sdist of each package into dist/; kernels where they belong; and a wheel built without a compiler."""
    install(session, "build")
    build_all(session)
    pure = [
        build_wheel(session, copy_source(session, name), CC="/nonexistent", CXX="/nonexistent") for name in COMPILED
    ]
    for wheel in pure:
        if not is_pure(wheel):
            session.error(f"{wheel.name} was built without a compiler and is not pure")
    siblings = wheels(session, "tinylm-model", "tinylm-obs")
    install(session, *siblings, *map(str, pure), *PYTEST, *TEST_NEEDS["tokenizer"])
    pytest(session, "tokenizer", "-m", DEVICES["cpu"])
    pytest(session, "inference", "-m", DEVICES["cpu"], "-k", "quantization")  # no other test asks for the kernels


@nox.session
def minimums(session: nox.Session) -> None:
    """The oldest versions that the packages' metadata admit pass the tests of every phase (torch keeps its pin)."""
    oldest = lower_bounds(session)
    session.log(f"lower bounds: {' '.join(sorted(oldest.values()))}")
    install(session, *wheels(session), *oldest.values(), *PYTEST, constraints=constraints_with(session, oldest))
    for phase, name in PHASES.items():
        session.run(name, "--help", silent=True)
        pytest(session, phase, "-m", DEVICES["cpu"])


@nox.session
def release(session: nox.Session) -> None:
    """What is built can be published: every wheel and sdist checked, and installed alone and together, with the lowest
    and with the newest versions of what it needs. Not in plain `nox`: some twenty environments with PyTorch."""
    install(session, "build", "twine")
    build_all(session)
    files = sorted(map(str, ROOT.glob("dist/tinylm*")))
    session.run("twine", "check", "--strict", *files)
    torch = [line for line in Path(CONSTRAINTS).read_text().splitlines() if line.startswith("torch==")]
    newest = Path(session.create_tmp(), "newest.txt")
    newest.write_text("\n".join(torch))
    lowest = constraints_with(session, lower_bounds(session))
    cache = tempfile.mkdtemp(dir=session.create_tmp())
    for constraints in (str(newest), lowest):
        for suffix in (".whl", ".tar.gz"):
            these = [file for file in files if file.endswith(suffix)]
            for wanted in (*([file] for file in these), these):
                install_fresh(session, wanted, constraints, cache)


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Run the packages' benchmarks, or those with a word in their path: `-- [--quick] ngram`. Not in plain `nox`."""
    options = [word for word in session.posargs if word.startswith("-")]
    if unknown := {*options} - {"--quick"}:
        session.error(f"wanted --quick, got {', '.join(sorted(unknown))}: run the script itself with its other options")
    install(session, *wheels(session), *TEST_NEEDS["tokenizer"], *TEST_NEEDS["model"], "-r", PEERS)
    session.run("python", FETCH_DATA, "--all")
    for script in benchmark_scripts({*session.posargs} - {*options}):
        session.run("python", script, *options)
