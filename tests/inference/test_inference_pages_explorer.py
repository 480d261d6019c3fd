"""The explorer's page in a real browser (`nox -s browser`): every panel draws, and text is never read as HTML."""

import contextlib
import re
import shutil
import threading
from collections.abc import Iterator
from typing import Any

import pytest

pytestmark = pytest.mark.browser

HARD = "<script>window.broken = 1</script><img src=x onerror='window.broken = 1'>\u202e\x07 你好"


@pytest.fixture(scope="module")
def serve() -> Any:
    """`with serve(paths) as address`: an explorer in a thread, at a free port."""
    import uvicorn

    from tinylm.inference import server
    from tinylm.inference.explorer.app import build_app
    from tinylm.inference.explorer.library import Library

    @contextlib.contextmanager
    def start(paths: list[Any]) -> Iterator[str]:
        config = uvicorn.Config(build_app(Library(paths)), log_level="critical", lifespan="off")
        running = uvicorn.Server(config)
        with server.bind("127.0.0.1", 0) as listener:
            listener.listen()
            thread = threading.Thread(target=running.run, args=([listener],))
            thread.start()
            try:
                yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            finally:
                running.should_exit = True
                thread.join(timeout=60)

    return start


@pytest.fixture(scope="module")
def address(make_checkpoint: Any, tmp_path_factory: Any, serve: Any) -> Iterator[str]:
    """An explorer of a run with two steps, one of them damaged, and of a second model."""
    folder = tmp_path_factory.mktemp("run") / "shakespeare"
    shutil.copytree(make_checkpoint(depth=2), folder)
    for step in (20, 100):
        shutil.copytree(make_checkpoint(depth=2, seed=step), folder / "steps" / f"{step:08}")
    (folder / "steps" / "00000020" / "model.safetensors").write_bytes(b"half")
    with serve([make_checkpoint("gpt2", depth=1), folder]) as where:
        yield where


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
    "rungs": ".rung b",
}


@pytest.mark.parametrize("panel", PANELS)
def test_every_panel_draws(page: Any, address: str, panel: str) -> None:
    opened(page, address, f"panel={panel}&text=The cook sings")
    page.wait_for_selector(PANELS[panel])
    assert page.locator(".error").count() == 0
    assert "[object" not in page.inner_text("#stage")
    assert len(re.findall(r"[.?!](?= |$)", page.inner_text(".intro p"))) == 2  # each explains itself in two sentences
    links = page.locator(".intro a").evaluate_all("links => links.map((link) => link.textContent)")
    assert {name.split(":")[0] for name in links} == {"Read", "Notebook", "Source"}
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


def test_the_written_text_can_be_linked_to_and_stepped_through(page: Any, address: str) -> None:
    opened(page, address, "panel=writing&text=The cook&count=6&frame=2")
    page.wait_for_selector(".written .chip:nth-of-type(3)")
    assert page.locator(".written .chip").count() == 3
    page.get_by_label("One token on").press("Enter")
    page.wait_for_selector(".written .chip:nth-of-type(4)")
    assert "frame=3" in page.url
    page.keyboard.press("Enter")  # the button is still there, and has the focus
    page.wait_for_selector(".written .chip:nth-of-type(5)")


def test_steps_given_by_themselves_are_one_model(page: Any, make_checkpoint: Any, tmp_path: Any, serve: Any) -> None:
    from tinylm import observability as obs

    folder = tmp_path / "poems"
    for step in (20, 100):
        shutil.copytree(make_checkpoint(depth=1, seed=step), folder / "steps" / f"{step:08}")
    with obs.init(directory=folder / "run", config={}) as run:
        for step in range(1, 101):
            run.log({"loss": 5 - step / 50}, step=step)
        run.histogram("gradient/blocks.0.mlp.up", [2, 0, 2], [-5.0, -3.0, 3.0, 5.0], step=50)
    with serve([folder / "steps" / "00000020", folder / "steps" / "00000100"]) as address:
        opened(page, address, "panel=history")
        page.wait_for_selector("polyline.train")
        assert page.locator("circle.moment").count() == 2
        assert page.locator("td.here").count() == 1
        page.get_by_role("slider").first.press("ArrowLeft")
        page.wait_for_selector("#step-name:has-text('step 20')")


def test_a_step_that_is_saved_meanwhile_is_there_after_a_reload(
    page: Any, make_checkpoint: Any, tmp_path: Any, serve: Any
) -> None:
    folder = tmp_path / "poems"
    for step in (20, 40):
        shutil.copytree(make_checkpoint(depth=1, seed=step), folder / "steps" / f"{step:08}")
    shutil.copytree(make_checkpoint(depth=1, seed=40), folder, dirs_exist_ok=True)
    with serve([folder]) as address:
        opened(page, address, "panel=choice&point=1")
        assert page.inner_text("#step-name") == "step 40"
        shutil.copytree(make_checkpoint(depth=1, seed=60), folder / "steps" / "00000060")
        page.reload()
        page.wait_for_selector(".candidate")
        assert page.inner_text("#step-name") == "step 40"  # the link means what it meant
        page.get_by_role("slider").first.press("ArrowRight")
        page.wait_for_selector("#step-name:has-text('step 60')")
        page.click("#panels [data-panel=history]")
        page.wait_for_selector("circle.moment")
        assert page.locator("circle.moment").count() == 4


def test_a_slow_rung_is_begun_watched_and_cancelled(page: Any, address: str, monkeypatch: Any) -> None:
    from tinylm.inference.explorer import rungs

    real, go_on = rungs.run, threading.Event()

    def slow(name: str, seen: Any, tokens: int, progress: Any) -> Any:
        progress.total = 8
        progress.add(3)
        while not go_on.wait(0.01):
            progress.add(0)
        return real(name, seen, tokens, rungs.Progress())

    monkeypatch.setattr(rungs, "run", slow)
    monkeypatch.setattr(rungs, "estimate", lambda *_: 20.0)
    opened(page, address, "panel=rungs&point=0&text=The cook sings")
    scalar = page.locator(".rung").first
    assert "the first" in scalar.inner_text()
    scalar.get_by_role("button", name="Run it").click()
    page.wait_for_selector(".offer [role=status]:has-text('38 %')")
    assert page.locator(".rung progress").evaluate("meter => meter.value") == 0.375
    page.click("#panels [data-panel=choice]")  # it goes on while another panel is looked at
    page.wait_for_selector(".candidate")
    page.click("#panels [data-panel=rungs]")
    page.wait_for_selector(".rung progress")
    scalar.get_by_role("button", name="Cancel").press("Enter")
    page.wait_for_selector(".offer:has-text('Cancelled after')")
    go_on.set()
    scalar.get_by_role("button", name="Run it").click()
    scalar.locator(".bars").wait_for()
    assert re.search(r"the same after (\d+) of \1\.", scalar.inner_text())


def test_a_rung_that_the_shape_lacks_says_so(page: Any, address: str) -> None:
    opened(page, address, "panel=rungs&point=3&text=The cook")
    page.wait_for_selector('.rung.absent:has-text("GPT-2\'s shape")')
    page.wait_for_selector(".rung:has-text('arrays') .bars")
