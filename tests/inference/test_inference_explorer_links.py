"""Each panel of the explorer leads on: to a page of the documentation, a notebook and the source, and all are there."""

import importlib.resources
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = importlib.resources.files("tinylm.inference.explorer") / "page"
PANELS = ["tokens", "layers", "choice", "writing", "history", "arithmetic", "rungs"]


@pytest.mark.parametrize("panel", PANELS)
def test_a_panels_links_lead_somewhere(panel):
    (listed,) = re.findall(r"^  links: \[(.*)\],$", (PAGE / f"{panel}.js").read_text(encoding="utf-8"), re.MULTILINE)
    links = re.findall(r'(\w+)\("([^"]+)"\)', listed)
    assert {kind for kind, _ in links} == {"page", "notebook", "source"}
    for kind, path in links:
        file = {"page": f"docs/{path}.md", "notebook": f"experiments/{path}", "source": f"packages/{path}"}[kind]
        assert (ROOT / file).is_file(), file


def test_the_addresses_are_the_projects_own():
    text = (PAGE / "links.js").read_text(encoding="utf-8")
    docs, source = (re.search(rf'{name} = "([^"]+)"', text)[1] for name in ("DOCS", "SOURCE"))
    assert f"site_url: {docs}\n" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    repository = source.removesuffix("/blob/main")
    assert f'"{repository}"' in (ROOT / "packages" / "tinylm-infer" / "pyproject.toml").read_text(encoding="utf-8")
