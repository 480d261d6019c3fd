"""Writes the pages of the site that are made from the code: `python .ci/pages.py`, and by itself before `mkdocs build`.

Made here, ignored by git: what each command's --help says, every notebook as a page, a picture of every ladder, the map
of the modules, the list of error messages, how to contribute, and copies of the sources in which a document can name a
function:

    --8<-- "tinylm/model/scalar/autograd.py:Value-backward"

Not here: the API pages (mkdocstrings reads the docstrings itself) and the look of the site (mkdocs.yml).
"""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
REPOSITORY = "https://github.com/thataverageguy/TinyLM/blob/main"
COPIES = ROOT / "build" / "source"  # mkdocs.yml names it as the place of snippets
PACKAGES = {  # distribution: phase, in the order in which text goes through them
    "tinylm-tokenizer": "tokenizer",
    "tinylm-model": "model",
    "tinylm-train": "training",
    "tinylm-infer": "inference",
    "tinylm-obs": "observability",
}
ERRORS = ("TokenizerError", "ModelError", "TrainingError", "InferenceError", "ParameterError", "ObservabilityError")
SOURCES = [str(ROOT / "packages" / name / "src") for name in PACKAGES]


def write(path: Path, content: str | bytes) -> None:
    """Write a file unless it says so already, so that `mkdocs serve` does not build for ever."""
    data = content.encode() if isinstance(content, str) else content
    if not path.is_file() or path.read_bytes() != data:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def modules(name: str) -> Iterator[tuple[Path, str]]:
    """The files of one package, and their paths as a reader says them: tinylm/model/rope.py."""
    source = ROOT / "packages" / name / "src"
    for path in sorted(source.glob("tinylm/**/*.py")):
        yield path, path.relative_to(source).as_posix()


def marked(source: str) -> str:
    """A source with a line before and after every function and class, by which a snippet is found.

    `Value-backward` for a method, and without a leading underscore: the extension wants such names.
    """
    lines = source.split("\n")
    marks: list[tuple[int, str]] = []  # before the line of this number

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                first = min([child.lineno, *(one.lineno for one in child.decorator_list)]) - 1
                indent = " " * (len(lines[first]) - len(lines[first].lstrip()))
                name = (prefix + child.name).lstrip("_")
                marks.append((first, f"{indent}# --8<-- [start:{name}]"))
                visit(child, f"{prefix}{child.name}-")
                marks.append((child.end_lineno or first, f"{indent}# --8<-- [end:{name}]"))

    visit(ast.parse(source), "")
    marks.sort(key=lambda one: one[0])
    for line, mark in reversed(marks):  # from below, so that it moves none that is to come
        lines.insert(line, mark)
    return "\n".join(lines)


def sources() -> None:
    """Copies of every module, with the marks of snippets."""
    for name in PACKAGES:
        for path, written in modules(name):
            write(COPIES / written, marked(path.read_text(encoding="utf-8")))


def commands() -> None:
    """One page a command: what its --help says, of every subcommand."""
    for name, phase in PACKAGES.items():
        ask = [sys.executable, "-m", "typer", f"tinylm.{phase}.cli", "utils", "docs", "--name", name]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(SOURCES)}
        text = subprocess.run(ask, capture_output=True, text=True, check=True, env=environment).stdout
        write(DOCS / "reference" / "commands" / f"{name}.md", in_full(name, text))


def in_full(name: str, text: str) -> str:
    """A command's page with what typer shortens in the list of subcommands, and its examples in the type of code."""

    def sentence(listed: re.Match[str]) -> str:
        section = text.partition(f"## `{name} {listed[1]}`\n\n")[2]
        return f"* `{listed[1]}`: {' '.join(section.partition(chr(10) * 2)[0].split())}"

    text = re.sub(r"^\* `([a-z]+)`: .*\.\.\.$", sentence, text, flags=re.MULTILINE)
    example = re.compile(rf"^ *((?:[a-z]+ +|[A-Z][a-z]+: |or: )?)({name} .+?)(?=\. [A-Z]|$| · |   )", re.MULTILINE)
    text = example.sub(r"\1`\2`", text)
    text = re.sub(r"(?<=`) +(or|then|several): ([^`\n]+)$", r" \1: `\2`", text, flags=re.MULTILINE)
    return re.sub(rf" · ({name} .+?|--.+?)(?=$| · )", r" · `\1`", text, flags=re.MULTILINE)


def code_map() -> None:
    """Every module and the first sentence of its docstring."""
    lines = ["# Where each line lives", "", "Every module of the five packages, in its own words.", ""]
    for name in PACKAGES:
        lines += [f"## {name}", "", "| module | lines | what it is |", "|---|---:|---|"]
        for path, written in modules(name):
            text = path.read_text(encoding="utf-8")
            opening = " ".join((ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0].split())
            short = written.removeprefix(f"tinylm/{PACKAGES[name]}/")
            link = f"[`{short}`]({REPOSITORY}/{path.relative_to(ROOT).as_posix()})"
            opening = re.sub(r"\|(?=[^`]*(?:`[^`]*`[^`]*)*$)", r"\|", opening)  # within `code` it stands as it is
            lines.append(f"| {link} | {text.count(chr(10))} | {opening} |")
        lines.append("")
    write(DOCS / "reference" / "modules.md", "\n".join(lines))


def messages() -> None:
    """Every error message, as it stands in the source: where it is raised, and what it says."""
    lines = ["# Messages", "", "Every error that the packages raise; `…` stands for what depends on the case.", ""]
    for name in PACKAGES:
        lines += [f"## {name}", ""]
        for path, written in modules(name):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ERRORS and node.args:
                    said = spoken(node.args[0])
                    if any(map(str.isalpha, said)):
                        link = f"{REPOSITORY}/{path.relative_to(ROOT).as_posix()}#L{node.lineno}"
                        lines.append(f"- {said.replace('<', '&lt;')} [`{written.split('/')[-1]}`]({link})")
        lines.append("")
    write(DOCS / "reference" / "messages.md", "\n".join(lines))


def spoken(node: ast.expr) -> str:
    """A message as a reader meets it: the constant parts, an ellipsis for each other one."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(spoken(part) for part in node.values)
    return "…"


def contributing() -> None:
    """GitHub's file on how to contribute, as a page."""
    text = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
    write(DOCS / "contributing.md", text.replace("](../docs/", "]("))


def pictures() -> None:
    """A picture of every ladder, from its committed results."""
    from tinylm.observability import plot, tables

    for path in sorted(ROOT.glob("packages/*/benchmarks/results/ladder_*.json")):
        write(DOCS / "pictures" / "ladders" / f"{path.stem}.svg", plot.ladders(tables.read_table(path)))


def notebooks() -> None:
    """Every notebook of experiments/ as a page, pictures beside it, and a page that lists them."""
    nbconvert: Any = import_module("nbconvert")  # without types, and not where this file is only checked
    lines = [
        "# Notebooks",
        "",
        "Each asks a question, tries it in the plainest code, profiles, changes one thing, measures again.",
    ]
    folder = ""
    phases = list(PACKAGES.values())

    def in_order(path: Path) -> tuple[int, int]:
        """The order in which they are read: by package, and by the number that a name begins with."""
        number = re.match(r"\d+", path.stem)
        return phases.index(path.relative_to(ROOT / "experiments").parts[0]), int(number[0]) if number else 0

    for path in sorted((ROOT / "experiments").rglob("*.ipynb"), key=in_order):
        place = path.relative_to(ROOT / "experiments").with_suffix("")
        text, made = nbconvert.MarkdownExporter().from_filename(str(path))
        for picture, data in made["outputs"].items():
            text = text.replace(f"({picture})", f"({path.stem}/{picture})")
            write(DOCS / "notebooks" / place / picture, data)
        text = re.sub(r"\]\((?!http)([^)]+)\.ipynb\)", r"](\1.md)", text)
        # Markdown takes two backslashes for one before the formula is read; \\cr ends a matrix's row as well.
        text = re.sub(r"\$\\begin[^$\n]+\$", lambda formula: formula[0].replace("\\\\", r"\cr"), text)
        source = f"experiments/{place}.ipynb"
        every = f"[All notebooks]({'../' * (len(place.parts) - 1)}index.md)"
        note = f"*This page is the notebook [{source}]({REPOSITORY}/{source}), as it was run. {every}.*"
        title, _, rest = text.lstrip().partition("\n")
        head = "---\nhide: [navigation]\n---\n"  # that column is empty here, and lines of code need the room
        write(DOCS / "notebooks" / f"{place}.md", f"{head}{title}\n\n{note}\n{rest}")
        if place.parts[0] != folder:
            folder = place.parts[0]
            lines += ["", f"## {folder.capitalize()}", ""]
        lines.append(f"- [{re.sub('^#+ *', '', title)}]({place}.md)")
    write(DOCS / "notebooks" / "index.md", "\n".join(lines) + "\n")


def main() -> None:
    """Make everything."""
    sys.path += SOURCES  # here, because MkDocs puts sys.path back after it has read a hook
    for make in (sources, commands, code_map, messages, contributing, pictures, notebooks):
        make()


def on_config(config: object) -> None:
    """MkDocs calls it before it looks for pages (mkdocs.yml, hooks)."""
    main()


if __name__ == "__main__":
    main()
