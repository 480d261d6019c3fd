"""The built site in site/ works offline: no page asks another host for a script, a style sheet, a font or a picture.

Run by `nox -s docs` after `mkdocs build --strict`. Links that a reader follows may lead elsewhere; what a browser loads
by itself may not. What the pages say is not tested here.
"""

import re
from html.parser import HTMLParser
from pathlib import Path

SITE = Path(__file__).parent.parent / "site"
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


def test_no_page_loads_from_another_host() -> None:
    pages = sorted(SITE.rglob("*.html"))
    assert len(pages) > 5
    assert {str(page): bad for page in pages if (bad := [*filter(is_outside, Loads(page.read_text()).addresses)])} == {}


def test_no_style_sheet_loads_from_another_host() -> None:
    sheets = sorted(SITE.rglob("*.css"))
    assert sheets
    pattern = re.compile(r"(?:url\(|@import\s+)\s*([^)\s;]+)")
    assert {
        str(sheet): bad for sheet in sheets if (bad := [*filter(is_outside, pattern.findall(sheet.read_text()))])
    } == {}


def test_the_check_would_notice() -> None:
    assert Loads('<script src="https://cdn.example/x.js"></script>').addresses == ["https://cdn.example/x.js"]
    assert is_outside("//fonts.example/a.woff2")
    assert not is_outside("assets/x.js")
