"""The explorer's page in a real browser (`nox -s browser`): every panel draws, and text is never read as HTML."""

import re
import shutil
import threading
from collections.abc import Iterator
from typing import Any

import pytest

pytestmark = pytest.mark.browser

HARD = "<script>window.broken = 1</script><img src=x onerror='window.broken = 1'>\u202e\x07 你好"


@pytest.fixture(scope="module")
def address(make_checkpoint: Any, tmp_path_factory: Any) -> Iterator[str]:
    """An explorer of a run with two steps, one of them damaged, and of a second model."""
    import uvicorn

    from tinylm.inference import server
    from tinylm.inference.explorer.app import build_app
    from tinylm.inference.explorer.library import Library

    folder = tmp_path_factory.mktemp("run") / "shakespeare"
    shutil.copytree(make_checkpoint(depth=2), folder)
    for step in (20, 100):
        shutil.copytree(make_checkpoint(depth=2, seed=step), folder / "steps" / f"{step:08}")
    (folder / "steps" / "00000020" / "model.safetensors").write_bytes(b"half")
    library = Library([make_checkpoint("gpt2", depth=1), folder])
    running = uvicorn.Server(uvicorn.Config(build_app(library), log_level="critical", lifespan="off"))
    with server.bind("127.0.0.1", 0) as listener:
        listener.listen()
        thread = threading.Thread(target=running.run, args=([listener],))
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        running.should_exit = True
        thread.join(timeout=60)


def opened(page: Any, address: str, view: str = "") -> Any:
    page.goto(f"{address}/#{view}")
    page.wait_for_selector("#stage .panel:not(.busy) .card, #stage .error")
    return page


PANELS = {
    "tokens": ".merge-stage .box.ready",
    "layers": "table.lens td",
    "choice": ".candidate.kept",
    "writing": ".slot.full",
    "history": "circle.moment",
    "arithmetic": "pre.source",
    "rungs": ".compare",
}


@pytest.mark.parametrize("panel", PANELS)
def test_every_panel_draws(page: Any, address: str, panel: str) -> None:
    opened(page, address, f"panel={panel}&text=The cook sings")
    page.wait_for_selector(PANELS[panel])
    assert page.locator(".error").count() == 0
    assert "[object" not in page.inner_text("#stage")
    assert page.locator(".intro a").count() >= 2
    assert page.locator('#panels [aria-selected="true"]').get_attribute("data-panel") == panel


@pytest.mark.parametrize("panel", PANELS)
@pytest.mark.parametrize("text", [HARD, ""])
def test_text_is_never_html(page: Any, address: str, panel: str, text: str) -> None:
    opened(page, address, f"panel={panel}")
    page.fill("#text", text)
    page.wait_for_selector(f"#ribbon .chip:has-text('{'<' if text else '<|endoftext|>'}')")
    page.wait_for_selector(
        f"#stage .panel:not(.busy) {PANELS[panel] if text or panel not in ('tokens', 'history') else '.card'}"
    )
    assert page.evaluate("window.broken") is None
    assert page.locator("#stage img, #ribbon img, #stage script").count() == 0


def test_a_view_can_be_linked_to(page: Any, address: str) -> None:
    opened(page, address, "panel=layers&text=The+king+says&position=1&layer=1&head=1&point=3")
    assert "Block 1, head 1" in page.inner_text("#stage")
    page.keyboard.press("Tab")
    page.click("#panels [data-panel=choice]")
    page.wait_for_selector(".candidate")
    assert "position=1" in page.url
    page.go_back()
    page.wait_for_selector("table.lens")
    assert "panel=layers" in page.url


def test_the_keyboard_goes_everywhere(page: Any, address: str) -> None:
    opened(page, address, "text=The cook sings")
    page.focus("#panels [data-panel=tokens]")
    page.keyboard.press("ArrowDown")
    page.wait_for_selector("table.lens td")
    page.focus("#ribbon")
    page.keyboard.press("ArrowLeft")
    page.wait_for_url(re.compile(r"position=\d+"))


def test_a_damaged_step_is_told_and_the_next_one_shown(page: Any, address: str) -> None:
    opened(page, address, "point=1&panel=choice")
    assert "model.safetensors" in page.inner_text(".error")
    page.focus("#step")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(".candidate")


def test_knobs_rule_candidates_out(page: Any, address: str) -> None:
    opened(page, address, "panel=choice&text=The&top_k=3&top_p=1&temperature=1")
    page.wait_for_selector(".candidate")
    assert page.locator(".candidate.kept").count() == 3
    assert "rank 40 is behind the first 3" in page.inner_text(".candidates")
    page.get_by_role("slider", name="temperature").fill("0")
    page.wait_for_selector(".candidate.temperature")
    assert page.locator(".candidate.kept").count() == 1


@pytest.mark.parametrize("panel", PANELS)
def test_a_phone_scrolls_in_one_direction(page: Any, address: str, panel: str) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    opened(page, address, f"panel={panel}&text=The cook says: good soup! The king says: nothing at all, and sings.")
    page.wait_for_selector(PANELS[panel])
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
