"""The dashboard beside a real training run (`nox -s browser`): it moves while `pretrain` trains, and a NaN that is
planted in a layer is on the page, with layer and step.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.browser
_PLANTED = """
import sys, torch
from tinylm.training import Trainer
from tinylm.training.cli import main
made, layer, step = Trainer.__init__, *sys.argv.pop(1).split(":")
def planted(self, *given, **named):
    made(self, *given, **named)
    nan = lambda module, inputs, output: output * float("nan") if self.progress.step + 1 == int(step) else output
    self.model.get_submodule(layer).register_forward_hook(nan)
Trainer.__init__ = planted
main()
"""


def test_a_nan_that_is_planted_in_layer_3_is_named_on_the_open_page(
    page: Any, start: Callable[[Path], str], house: Any, tmp_path: Path
) -> None:
    page.goto(start(tmp_path))
    page.get_by_text("No runs in").wait_for()
    pretrain = ["pretrain", "--data", house.tokens, "--out", tmp_path / "model", "--depth", "4", "--steps", "40"]
    pretrain += ["--context", "64", "--batch-size", "2", "--dtype", "float32", "--device", "cpu"]
    command = [sys.executable, "-c", _PLANTED, "blocks.3.mlp.down:30", *map(str, pretrain)]
    training = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=240
    )
    assert training.returncode == 1, training.stderr
    assert "first in blocks.3.mlp.down" in training.stderr
    nav = page.get_by_role("navigation", name="Runs")
    nav.get_by_text("step 29").wait_for()  # the last step that was whole
    nav.get_by_text("1 alert").wait_for()
    nav.get_by_text("failed").wait_for()
    page.get_by_role("heading", name="Loss").wait_for()
    page.get_by_role("tab", name="Alerts").click()
    row = page.locator("main tbody tr")
    row.wait_for()
    assert row.inner_text().split("\t")[:3] == ["nan", "30", "blocks.3.mlp.down"]  # alert, step, layer
