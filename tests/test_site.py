"""The built site in site/ works offline and is whole: no page asks another host for a script, a style sheet, a font or
a picture; every page has a title and fits a phone's width; a search finds every public name; mathematics is MathML;
every page of Learn has all the parts that one is promised.

Run by `nox -s docs` after `mkdocs build --strict` and `zensical build --strict` (into build/zensical). Links that a
reader follows may lead elsewhere; what a browser loads by itself may not. What the pages say is not tested here.
"""

import ast
import importlib
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
SITE = ROOT / "site"
BUILDERS = [SITE, ROOT / "build" / "zensical"]
PHASES = ["tokenizer", "model", "training", "inference", "observability"]
LOADED_BY = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "link": "href",
}
NOT_LOADED = {"canonical", "alternate", "author", "license", "prev", "next", "edit"}  # relations that only name a page


class Loads(HTMLParser):
    """Collects the addresses that a browser fetches by itself while it shows a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "link" and values.get("rel") in NOT_LOADED:
            return
        address = values.get(LOADED_BY.get(tag, ""))
        if address:
            self.addresses.append(address)
        self.addresses += re.findall(r"url\(([^)]+)\)", values.get("style") or "")


def is_outside(address: str) -> bool:
    return bool(re.match(r"['\"]?(https?:)?//", address))


@pytest.mark.parametrize("site", BUILDERS, ids=["mkdocs", "zensical"])
def test_no_page_loads_from_another_host(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 40
    assert {str(page): bad for page in pages if (bad := [*filter(is_outside, Loads(page.read_text()).addresses)])} == {}


@pytest.mark.parametrize("site", BUILDERS, ids=["mkdocs", "zensical"])
def test_no_style_sheet_loads_from_another_host(site: Path) -> None:
    sheets = sorted(site.rglob("*.css"))
    assert sheets
    pattern = re.compile(r"(?:url\(|@import\s+)\s*([^)\s;]+)")
    assert {
        str(sheet): bad for sheet in sheets if (bad := [*filter(is_outside, pattern.findall(sheet.read_text()))])
    } == {}


@pytest.mark.parametrize("site", BUILDERS, ids=["mkdocs", "zensical"])
def test_no_script_of_the_theme_asks_github_for_stars(site: Path) -> None:
    assert [page.parent.name for page in site.rglob("*.html") if 'data-md-component="source"' in page.read_text()] == []


def test_zensical_builds_the_same_pages() -> None:
    ours, theirs = ({page.relative_to(site) for page in site.rglob("*.html")} for site in BUILDERS)
    assert ours == theirs


def index(site: Path) -> dict[str, Any]:
    """What a reader's browser is given to search in."""
    read: dict[str, Any] = json.loads(
        (site / ("search/search_index.json" if site == SITE else "search.json")).read_text()
    )
    return read


def searched(site: Path) -> list[dict[str, str]]:
    """What the search knows: a location, a title and a text for each heading of each page."""
    entries: list[dict[str, str]] = index(site)["docs" if site == SITE else "items"]
    return entries


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("site", BUILDERS, ids=["mkdocs", "zensical"])
def test_a_search_finds_every_public_name(site: Path, phase: str) -> None:
    page = f"reference/api/{phase}/#"
    words = re.compile(index(site)["config"]["separator"])  # where the search cuts: a name must be a word of a title
    found = {
        word for entry in searched(site) if entry["location"].startswith(page) for word in words.split(entry["title"])
    }
    assert [name for name in importlib.import_module(f"tinylm.{phase}").__all__ if name not in found] == []


@pytest.mark.parametrize("site", BUILDERS, ids=["mkdocs", "zensical"])
def test_markdown_takes_nothing_in_a_docstring_for_markup(site: Path) -> None:
    # blocks.<i>.mlp outside of `code` slants the rest of the page, and >>> is a quotation of a quotation of a quotation
    pages = {page.parent.name: page.read_text() for page in (site / "reference" / "api").rglob("*.html")}
    assert len(pages) == len(PHASES)
    assert {name: found for name, text in pages.items() if (found := re.findall("<(?:[bisu]|blockquote)>", text))} == {}


def test_examples_of_commands_are_in_the_type_of_code() -> None:
    pages = sorted((ROOT / "docs" / "reference" / "commands").glob("*.md"))
    assert len(pages) == len(PHASES)
    code = re.compile(r"```.*?```|`[^`]+`", re.DOTALL)
    left = {
        page.stem: re.findall(rf"(?:^|: ) *{page.stem} .*", code.sub("", page.read_text()), re.MULTILINE)
        for page in pages
    }
    assert {name: lines for name, lines in left.items() if lines} == {}


def test_every_page_has_a_title_of_its_own() -> None:
    titles = [entry["title"] for entry in searched(SITE) if "#" not in entry["location"]]
    assert len(titles) > 40
    assert sorted(title for title in titles if not title or titles.count(title) > 1) == []


@pytest.mark.parametrize("site", BUILDERS, ids=["mkdocs", "zensical"])
def test_mathematics_is_mathml(site: Path) -> None:
    pages = {page: page.read_text() for page in (site / "learn").rglob("*.html")}
    assert sum(text.count("<math") for text in pages.values()) > 50
    code = re.compile(r"<(code|pre|script|annotation)\b.*?</\1>", re.DOTALL)
    assert [page.parent.name for page, text in pages.items() if "$" in code.sub("", text)] == []


@pytest.mark.parametrize("site", BUILDERS, ids=["mkdocs", "zensical"])
def test_sources_stand_where_a_page_names_them(site: Path) -> None:
    left = [str(page) for page in (site / "learn").rglob("*.html") if re.search(r"--8|8&lt;", page.read_text())]
    assert left == []
    assert "linear_backward" in (site / "learn" / "gradients" / "index.html").read_text()


@pytest.mark.parametrize("site", BUILDERS, ids=["mkdocs", "zensical"])
def test_no_formula_holds_a_mark_of_the_converters(site: Path) -> None:
    mark = re.compile("klzzwxh|<mi>k</mi><mi>l</mi><mi>z</mi>")  # what Markdown puts for an escaped character meanwhile
    assert [str(page) for page in site.rglob("*.html") if mark.search(page.read_text())] == []


def test_a_named_piece_of_a_source_is_the_whole_of_it() -> None:
    copies = ROOT / "build" / "source"
    for copy in sorted(copies.rglob("*.py")):
        lines = copy.read_text().splitlines()
        (path,) = ROOT.glob(f"packages/*/src/{copy.relative_to(copies)}")
        source = path.read_text()
        wanted = {
            "\n".join(
                source.splitlines()[min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1 : node.end_lineno]
            )
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
        }
        shown = set()
        for first, line in enumerate(lines):
            if name := re.search(r"# --8<-- \[start:(.+)\]", line):
                last = next(n for n in range(first, len(lines)) if lines[n].endswith(f"[end:{name[1]}]"))
                shown.add("\n".join(line for line in lines[first:last] if "# --8<-- [" not in line))
        assert shown <= wanted, copy  # not marked: what stands inside of an `if` or a loop


LEARN = re.findall(r"learn/([a-z-]+)\.md$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
PATH = [name for name in LEARN if name not in ("index", "words")]
PARTS = ["**You will run**", "**The idea.**", '--8<-- "tinylm/', "<!-- table: ", "\n## Run it\n", "](../notebooks/"]
PARTS += ["\n## Exercises\n", '??? success "Answers"\n', "$"]  # the last: a derivation


@pytest.mark.parametrize("name", PATH)
def test_a_page_of_the_path_has_every_part_and_leads_to_the_next(name: str) -> None:
    text = (ROOT / "docs" / "learn" / f"{name}.md").read_text()
    assert [part for part in PARTS if part not in text] == []
    assert text.startswith(f"# {PATH.index(name) + 1} · ")
    asked, answered = text.split("\n## Exercises\n")[1].split('??? success "Answers"')
    numbers = [re.findall(r"^ *(\d+)\. ", part, re.MULTILINE) for part in (asked, answered)]
    assert numbers[0] == numbers[1] == [str(n + 1) for n in range(len(numbers[0]))]
    following = PATH[PATH.index(name) + 1 :][:1]
    ending = text.rstrip().split("\n\n")[-1]
    assert [f"({other}.md)" for other in following if f"({other}.md)" not in ending] == []


def test_the_path_is_found() -> None:
    assert PATH[0] == "tokenizer"
    assert PATH[-1] == "hardware"
    assert len(PATH) > 10


@pytest.fixture
def phone(chromium: Any) -> Iterator[Any]:
    """A page as wide as a phone."""
    context = chromium.new_context(viewport={"width": 390, "height": 844})
    context.set_default_timeout(0)  # on a busy machine a page takes as long as it takes
    yield context.new_page()
    context.close()


def test_every_page_fits_a_phone_and_shows_its_pictures_and_formulas(phone: Any) -> None:
    wrong = {}
    for path in sorted(SITE.rglob("*.html")):
        phone.goto(path.as_uri())
        width = phone.evaluate("document.documentElement.scrollWidth")
        pictures = phone.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)")
        formulas = phone.evaluate("document.querySelectorAll('math merror').length")
        if width > 390 or pictures or formulas:
            wrong[path.parent.name] = (width, pictures, formulas)
    assert wrong == {}


def test_the_check_would_notice() -> None:
    assert Loads('<script src="https://cdn.example/x.js"></script>').addresses == ["https://cdn.example/x.js"]
    assert is_outside("//fonts.example/a.woff2")
    assert not is_outside("assets/x.js")
