"""The dashboard in a real browser (`nox -s browser`): it loads, moves while a run logs, and says what is wrong.

The `page` fixture fails a test whose page asked another host for anything or whose script failed.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tinylm import observability as obs

pytestmark = pytest.mark.browser
VIEWS = ["Curves", "Layers", "Histograms", "Samples", "Alerts", "Machine", "Profiles", "Settings"]
Start = Callable[[Path], str]
_DATA = """(place) => { const drawn = document.querySelectorAll('.nicegui-echart')[place];
    const chart = drawn && getElement(drawn.id.slice(1)).chart;
    const series = chart?.getOption().series || [];
    return series.filter(one => one.tooltip?.show !== false).map(one => one.data); }"""


def log_a_run(directory: Path, steps: int = 60) -> obs.Run:
    """A run with everything that a view shows, still going on."""
    run = obs.init(directory=directory, config={"learning_rate": 0.1, "model": {"depth": 4}})
    for step in range(steps):
        run.log({"loss": 3 / (step + 1) ** 0.5, "tokens": 512}, step=step)
        if step % 10 == 0:
            run.log({f"gradient_norm/blocks.{layer}": (layer + 1) / (step + 1) for layer in range(4)}, step=step)
            run.histogram("weight/blocks.0", [1, step, 1], [-1.0, -0.1, 0.1, 1.0], step)
            run.system({"cpu (%)": 50.0 + step})
    run.log({"sample": "To be, or not to be <b>that</b>"}, step=steps - 1)
    return run


def wait_for(page: Any, words: str, within: str = "body") -> None:
    page.wait_for_function(
        "([css, words]) => document.querySelector(css)?.innerText.includes(words)", arg=[within, words]
    )


def open_view(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()
    page.wait_for_function("(name) => location.search === '?view=' + name.toLowerCase()", arg=name)


def test_it_moves_while_a_run_logs(page: Any, start: Start, tmp_path: Path) -> None:
    run = log_a_run(tmp_path / "first")
    page.goto(start(tmp_path))
    wait_for(page, "step 59", "nav")
    wait_for(page, "running", "nav")
    page.wait_for_function(f"() => ({_DATA})(0)[0]?.at(-1)?.[0] === 59")
    run.log({"loss": 0.125}, step=60)
    wait_for(page, "step 60 · loss 0.125", "nav")
    page.wait_for_function(f"() => ({_DATA})(0)[0]?.at(-1)?.[0] === 60")
    second = log_a_run(tmp_path / "later", steps=5)  # a run that appears later is shown, in another colour
    wait_for(page, "later", "nav")
    page.wait_for_function(f"() => ({_DATA})(0).length === 2")
    second.finish()
    run.finish()
    wait_for(page, "finished · step 60", "nav")


def test_a_view_may_be_left_while_it_is_filled(page: Any, start: Start, tmp_path: Path) -> None:
    """What arrives for a view that is gone goes nowhere: NiceGUI would warn of deleted elements; `start` hears it."""
    run = log_a_run(tmp_path / "first")
    page.goto(start(tmp_path))
    wait_for(page, "step 59", "nav")
    for turn in range(3):
        for place in range(1, len(VIEWS) + 1):
            run.log({"loss": 1.0, f"figure_{turn}": 1.0}, step=60 + turn)  # new rows, and new cards
            run.alert("spike", "loss", "seen", 60 + turn)
            page.keyboard.press(str(place))
    page.keyboard.press("1")
    run.log({"loss": 0.5}, step=100)
    wait_for(page, "step 100 · loss 0.5", "nav")
    wait_for(page, "Figure 2", "main")
    page.wait_for_function(f"() => ({_DATA})(0)[0]?.at(-1)?.[0] === 100")
    run.finish()


def test_keys_move_the_controls_and_the_charts_stay(page: Any, start: Start, tmp_path: Path) -> None:
    log_a_run(tmp_path / "first").finish()
    page.goto(start(tmp_path))
    page.wait_for_function(f"() => ({_DATA})(0)[0]?.length > 10")
    drawn = page.locator(".nicegui-echart").first.element_handle()
    option = "() => getElement(document.querySelector('.nicegui-echart').id.slice(1)).chart.getOption()"
    for key, shows in (("y", "yAxis[0].type === 'log'"), ("x", "xAxis[0].max < 60"), ("+", "series[0].data[59] != 0")):
        page.keyboard.press(key)
        page.wait_for_function(f"() => ({option})().{shows}")
    wait_for(page, "Smoothing 20", "main")
    assert drawn.evaluate("element => element.isConnected")


def test_the_x_axis_shows_steps_time_or_tokens_and_its_logarithm(page: Any, start: Start, tmp_path: Path) -> None:
    """The same ten figures over each axis, at the x that the rows say; the logarithm leaves out what is not above 0."""
    run = obs.init(directory=tmp_path / "run")
    for step in range(10):
        run.log({"loss": 10.0 - step, "tokens": 512}, step=step)
    run.finish()
    rows = obs.read_metrics(tmp_path / "run")
    seconds = [row["time"] - rows[0]["time"] for row in rows]
    page.goto(start(tmp_path))
    wait_for(page, "step 9", "nav")
    drawn = f"() => ({_DATA})(0)?.[0]"
    option = "() => getElement(document.querySelector('.nicegui-echart').id.slice(1)).chart.getOption().xAxis[0]"

    def shown(button: str, name: str, xs: list[float]) -> None:
        page.get_by_role("button", name=button, exact=True).click()
        page.wait_for_function(f"name => ({option})().name === name", arg=name)
        assert [x for x, _ in page.evaluate(drawn)] == pytest.approx(xs, rel=1e-4, abs=1e-9)
        assert [y for _, y in page.evaluate(drawn)] == [10.0 - step for step in range(10 - len(xs), 10)]

    shown("Tokens", "tokens", [512.0 * (step + 1) for step in range(10)])
    shown("Time", "time of training (h:mm:ss)", seconds)
    shown("Steps", "step", list(range(10)))
    page.get_by_role("switch", name="log x").click()
    page.wait_for_function(f"() => ({option})().type === 'log'")
    assert page.evaluate(f"{option}".replace("() =>", "() => (") + ").min") == 1  # step 0 has no logarithm
    shown("Steps", "step", list(range(1, 10)))
    shown("Tokens", "tokens", [512.0 * (step + 1) for step in range(10)])


def test_a_nan_in_a_layer_is_on_the_page(page: Any, start: Start, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(*[torch.nn.Linear(8, 8) for _ in range(6)])
    page.goto(start(tmp_path) + "/?view=alerts")
    wait_for(page, "No runs in")
    with obs.init(directory=tmp_path / "run") as run, obs.watch(model, run, every=1) as watch:
        for step in range(3):
            if step == 2:
                with torch.no_grad():
                    model[3].weight[0, 0] = float("nan")
            loss = model(torch.ones(2, 8)).square().mean()
            run.log({"loss": float(loss.detach())}, step=step)
            if step == 2:
                watch.diagnose(lambda: model(torch.ones(2, 8)).square().mean(), step)
    wait_for(page, "1 alert", "nav")
    row = page.locator("main tbody tr")
    assert row.count() == 1
    assert row.inner_text().split("\t")[:3] == ["nan", "2", "3"]  # alert, step, layer: the module "3"


def test_every_view_opens_on_a_laptop_and_on_a_phone(page: Any, start: Start, tmp_path: Path) -> None:
    with log_a_run(tmp_path / "first") as run:
        run.alert("dead units", "blocks.2.mlp", "51 % of units are dead", 30)
        with obs.profile(run.profile_directory / "step", title="the first step", operations=False):
            sum(range(1000))
    address = start(tmp_path)
    expected = {
        "Curves": "Loss",
        "Layers": "Gradient norm",
        "Histograms": "At step 50",
        "Samples": "To be, or not to be <b>that</b>",
        "Alerts": "blocks.2.mlp",
        "Machine": "CPU (%)",
        "Profiles": "Open the profile alone",
        "Settings": "Configuration, machine and versions",
    }
    assert list(expected) == VIEWS
    for width, scheme in ((1280, "light"), (390, "dark")):
        page.set_viewport_size({"width": width, "height": 844})
        page.emulate_media(color_scheme=scheme)
        page.goto(address + "/?view=settings")
        for name, words in expected.items():
            open_view(page, name)
            wait_for(page, words, "main")
            assert page.evaluate("document.scrollingElement.scrollWidth") <= width, name
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.get_by_role("button", name="Light or dark").click()
    page.wait_for_function(f"(before) => {background} !== before", arg=dark)
    chosen = page.evaluate(background)
    page.reload()
    page.wait_for_function(f"(chosen) => {background} === chosen", arg=chosen)  # it is remembered


def test_a_view_of_one_run_shows_one_that_has_something(page: Any, start: Start, tmp_path: Path) -> None:
    log_a_run(tmp_path / "first").finish()
    with obs.init(directory=tmp_path / "newest") as run:
        run.log({"loss": 1.0}, step=0)
    page.goto(start(tmp_path) + "/?view=layers")
    wait_for(page, "Gradient norm", "main")
    page.get_by_role("combobox", name="Run").click()
    page.get_by_role("option", name="newest").click()
    wait_for(page, "newest has logged no figures of layers", "main")
    page.get_by_role("combobox", name="Run").click()  # and back
    page.get_by_role("option", name="first").click()
    wait_for(page, "Gradient norm", "main")


def test_the_runs_own_profile_is_in_the_page_and_nothing_else_is_served(
    page: Any, start: Start, tmp_path: Path
) -> None:
    with log_a_run(tmp_path / "first") as run, obs.profile(run.profile_directory / "step", "marked", operations=False):
        sum(range(1000))
    address = start(tmp_path)
    page.goto(address + "/?view=profiles")
    frame = page.frame_locator("iframe")
    frame.get_by_text("marked").first.wait_for()
    for path in ("run.json", "profile/../run.json", "profile/step/profile.json", "../first/run.json", "/etc/passwd"):
        assert page.request.get(f"{address}/profile/first?page={path}").status == 404
    answer = page.request.get(address, headers={"Host": "elsewhere.example"})
    assert answer.status == 400  # a name of another site that points to this machine


def test_the_keyboard_is_enough(page: Any, start: Start, tmp_path: Path) -> None:
    log_a_run(tmp_path / "first").finish()
    page.goto(start(tmp_path))
    wait_for(page, "Loss", "main")
    page.keyboard.press("2")
    wait_for(page, "Gradient norm", "main")
    page.keyboard.press("1")
    wait_for(page, "Loss", "main")
    page.keyboard.press("x")
    page.wait_for_function("() => document.querySelector('[aria-pressed=true]')?.innerText === 'Time'")
    page.keyboard.press("?")
    wait_for(page, "more or less smoothing", ".q-dialog")
    page.keyboard.press("Escape")
    page.locator(".q-dialog").wait_for(state="detached")
    seen = set()
    for _ in range(40):  # Tab reaches the buttons, the runs, the tabs and the controls, and shows where it is
        page.keyboard.press("Tab")
        role = page.evaluate(
            "(e => e.getAttribute('role') || (e.closest('.q-slider') && 'slider') || e.tagName)(document.activeElement)"
        )
        if role == "BODY":  # once around
            break
        seen.add(role)
        style = "(e => getComputedStyle(e).outlineStyle)(document.activeElement)"
        assert page.evaluate(style) == "solid", page.evaluate("document.activeElement.outerHTML")
    assert {"BUTTON", "checkbox", "tab", "switch", "slider"} <= seen
    page.get_by_role("checkbox", name="first").focus()
    page.keyboard.press("Space")
    wait_for(page, "No run is chosen", "main")


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        (None, "", "No runs in"),
        ("run/run.json", '{"format": 1, "na', "half-written"),
        ("run/run.json", json.dumps({"format": 2, "name": "x"}), "upgrade tinylm-obs"),
        ("run/metrics.jsonl", '{"step": 0, "attempt": 1, "loss": 1}\n', "without a run.json"),
    ],
)
def test_it_says_what_is_wrong(
    page: Any, start: Start, tmp_path: Path, file: str | None, text: str, words: str
) -> None:
    if file:
        (tmp_path / "run").mkdir()
        (tmp_path / file).write_text(text)
    page.goto(start(tmp_path))
    wait_for(page, words, "main")
    if file == "run/run.json":  # what is mended is shown without a reload
        (tmp_path / file).unlink()
        log_a_run(tmp_path / "run", steps=3).finish()
        wait_for(page, "Loss", "main")
        assert words not in page.inner_text("main")


def test_damaged_rows_are_passed_over_and_counted(page: Any, start: Start, tmp_path: Path) -> None:
    log_a_run(tmp_path / "run", steps=3).finish()
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('garbage\n[]\n{"step": 3, "attempt": 1, "loss": 7.5}\n{"step": 4, "attem')
    page.goto(start(tmp_path))
    wait_for(page, "step 3 · loss 7.5", "nav")
    wait_for(page, "run/metrics.jsonl: 2 damaged lines are passed over", "main")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('pt": 1, "loss": 6.5}\n')
    wait_for(page, "step 4 · loss 6.5", "nav")


def test_a_curve_gets_more_points_where_one_zooms_in(page: Any, start: Start, tmp_path: Path) -> None:
    with obs.init(directory=tmp_path / "long") as run:
        for step in range(30_000):
            run.log({"loss": 1.0 + (step % 7)}, step=step)
    page.goto(start(tmp_path))
    wait_for(page, "step 29,999", "nav")
    page.wait_for_function(f"() => ({_DATA})(0)[0]?.at(-1)?.[0] === 29999")
    inside = f"() => ({_DATA})(0)[0].filter(p => p[0] <= 300).length"
    assert page.evaluate(inside) < 120
    page.evaluate(
        "getElement(document.querySelector('.nicegui-echart').id.slice(1)).chart"
        ".dispatchAction({type: 'dataZoom', start: 0, end: 1})"
    )
    page.wait_for_function(f"() => ({inside})() >= 300")
