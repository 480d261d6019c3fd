"""The exactness benchmark, short: no difference that is no tie, and what is no tie is not called one."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

torch = pytest.importorskip("torch")

from tinylm.inference import SamplingParams  # noqa: E402  # after importorskip

SCRIPT = Path(__file__).parents[2] / "packages/tinylm-infer/benchmarks/exactness.py"
pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="needs the checkout's benchmarks")


@pytest.fixture(scope="module")
def exactness() -> ModuleType:
    import importlib.util

    spec = importlib.util.spec_from_file_location("exactness", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_way_writes_the_same(
    exactness: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["exactness.py", "--prompts", "6", "--tokens", "16"])
    with pytest.raises(SystemExit) as ended:
        exactness.main()
    ways = json.loads(capsys.readouterr().out.splitlines()[-1])["ways"]
    assert len(ways) == 2 * len(exactness.WAYS)
    assert ended.value.code == any(way["differences"] for way in ways.values()) == 0


def test_a_wrong_token_is_no_tie(exactness: ModuleType) -> None:
    model, prompt = exactness.make_model(8), [1, 2, 3]
    params = SamplingParams(temperature=0, max_tokens=8)
    output = exactness.naive(model, prompt, params)
    assert not any(exactness.is_tie(model, prompt, output, at, params) for at in range(3))
    with torch.no_grad():
        model.embed.weight.zero_()  # all tokens alike
    assert exactness.is_tie(model, prompt, output, 0, params)
