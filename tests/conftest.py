"""For every suite: Ctrl-C works in the commands that tests start; browser and dashboard for tests marked `browser`.

A shell that runs the tests in the background makes its programs ignore SIGINT, and they hand that down to theirs.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

LOOPBACK = ("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:", "file:", "about:")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A headless Chromium (playwright's `Browser`): $CHROMIUM, or what is installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, (shutil.which(name) for name in names if name)), None)
    if program is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as driver:
        # No sandbox: it needs privileges that containers lack, and the tests open only pages of ours.
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    """A fresh page (playwright's `Page`), 1280 x 800. The test fails if the page asked another host than 127.0.0.1 for
    anything, or if a script of it failed."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(120_000)  # ms: nothing is timed here, and the machine may be busy
    page = context.new_page()
    asked: list[str] = []
    failed: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: failed.append(str(error)))
    yield page
    context.close()
    assert [url for url in asked if not url.startswith(LOOPBACK)] == []
    assert failed == []


@pytest.fixture
def start() -> Iterator[Callable[[Path], str]]:
    """Starts `tinylm-obs ui DIRECTORY` and gives its address. The test fails if the server wrote of an error."""
    pytest.importorskip("nicegui", reason="the extra [ui] is not installed")
    running = []

    def started(directory: Path) -> str:
        command = [sys.executable, "-m", "tinylm.observability", "ui", str(directory), "--port", "0", "--no-browser"]
        # By this name NiceGUI would take itself for the one under test.
        environment = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        running.append(process)
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.match(r"(http://127\.0\.0\.1:\d+) shows ", line)
        assert found, line + process.stderr.read()
        return found[1]

    yield started
    for process in running:
        process.terminate()
        _, errors = process.communicate(timeout=30)
        assert "Traceback" not in errors, errors
        assert "has been deleted" not in errors, errors
