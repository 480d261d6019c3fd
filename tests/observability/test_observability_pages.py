"""The self-contained pages in a real browser (`nox -s browser`): the profile's page opens from a file, offline.

The dashboard has tests of its own.
"""

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.browser


def test_the_profile_page_opens_from_a_file(page: Any, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from tinylm import observability as obs

    with obs.profile(tmp_path / "profile"):
        torch.ones(64, 64) @ torch.ones(64, 64)
    page.goto((tmp_path / "profile" / "profile.html").as_uri())
    assert page.title()
    assert "aten::" in page.inner_text("body")
