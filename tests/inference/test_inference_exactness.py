"""The exactness benchmark, short: no difference that is no tie, and what is no tie is not called one."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch")

SCRIPT = Path(__file__).parents[2] / "packages/tinylm-infer/benchmarks/exactness.py"
pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="needs the checkout's benchmarks")


@pytest.fixture(scope="module")
def exactness() -> ModuleType:
    import importlib.util

    spec = importlib.util.spec_from_file_location("exactness", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def lowest(exactness: ModuleType) -> ModuleType:
    return sys.modules["lowest"]


@pytest.mark.parametrize("name", ["greedy", "seeded"])
def test_the_lowest_rungs_text_does_not_depend_on_what_is_guessed(
    exactness: ModuleType, lowest: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A right guess costs few passes, a wrong one its own text; a near miss is decided by the rung itself."""
    model, prompt, passes = exactness.make_model(12), [1, 2, 3], list[int]()
    (params,) = exactness.drawing(name, 1, 12)
    text = lowest.step_by_step(model, prompt, params, 12)
    after = lowest.logits_after
    monkeypatch.setattr(lowest, "logits_after", lambda *work: passes.append(1) or after(*work))
    assert lowest.lowest(model, prompt, params, text) == text
    assert len(passes) < 4  # the last position, and where a draw is near an interval's edge
    for at in (0, 5, 11):
        wrong = [*text[:at], (text[at] + 1) % exactness.VOCABULARY, *text[at + 1 :]]
        assert lowest.lowest(model, prompt, params, wrong) == text
    assert lowest.step_by_step(model, prompt, params, 12, text[:7]) == text
    passes.clear()
    monkeypatch.setattr(lowest, "wins", lambda *_: False)
    assert lowest.lowest(model, prompt, params, text) == text
    assert len(passes) == 1 + 12
    monkeypatch.setattr(lowest, "CLOSE", 1e-30)
    with torch.no_grad():
        model.embed.weight.mul_(100)
    with pytest.raises(RuntimeError, match="one pass and the lowest rung"):
        lowest.lowest(model, prompt, params, text)


def test_every_way_writes_the_same(exactness: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    arguments = ["--prompts", "4", "--tokens", "12", "--invariant-prompts", "2", "--json", str(table)]
    monkeypatch.setattr(sys, "argv", ["exactness.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        exactness.main()
    assert not ended.value.code
    rows = json.loads(table.read_text())["rows"]
    ways = [*exactness.WAYS, *exactness.SCHEMES]
    assert [row[0] for row in rows[: len(ways)]] == ways
    assert [row[2:8] for row in rows] == [[4, 0, 0] * 2] * len(ways) + [[2, 0, 0] * 2] * 2


def test_a_measurement_that_was_stopped_goes_on(
    exactness: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What was found is not measured again, but where that is asked for, and not taken for another measurement's."""
    kept = tmp_path / "kept.json"
    model, prompts = exactness.make_model(4), [[1, 2], [3]]

    def measurement(again: list[str] | None = None) -> Any:
        return exactness.Exactness(model, prompts, 4, exactness.Pieces(kept, {"prompts": prompts}, again))

    assert measurement().both("KV cache", 2) == [2, 0, 0, 2, 0, 0]
    wrong = lambda *_: [[0] * 4, [0] * 4]  # noqa: E731
    monkeypatch.setitem(exactness.WAYS, "KV cache", wrong)
    assert measurement().both("KV cache", 2) == [2, 0, 0, 2, 0, 0]
    assert measurement(["KV"]).both("KV cache", 2)[1] == 2
    with pytest.raises(SystemExit, match="another measurement"):
        exactness.Pieces(kept, {"prompts": []})


def test_only_a_token_that_the_lowest_rung_nearly_wrote_is_a_tie(exactness: ModuleType, lowest: ModuleType) -> None:
    model, prompt = exactness.make_model(8), [1, 2, 3]
    for name in ("greedy", "seeded"):
        (params,) = exactness.drawing(name, 1, 8)
        output = lowest.step_by_step(model, prompt, params, 8)
        for at in range(3):
            assert lowest.is_tie(model, prompt, output, at, output[at], params)
            others = [token for token in range(exactness.VOCABULARY) if token != output[at]]
            ties = sum(lowest.is_tie(model, prompt, output, at, token, params) for token in others[::8])
            assert ties <= 1  # of 64: the neighbour of a short interval
    (greedy,) = exactness.drawing("greedy", 1, 8)
    with torch.no_grad():
        model.embed.weight.zero_()  # all tokens alike
    assert lowest.is_tie(model, prompt, [0], 0, 7, greedy)


def test_a_wrong_way_is_counted(exactness: ModuleType) -> None:
    model, prompts = exactness.make_model(8), [[1, 2, 3], [4, 5]]
    params = exactness.drawing("greedy", 2, 8)
    right = exactness.written(model, prompts, params)
    wrong = [right[0], [(right[1][0] + 1) % exactness.VOCABULARY, *right[1][1:]]]
    assert exactness.count(model, prompts, params, right, right) == (0, 0)
    assert exactness.count(model, prompts, params, right, wrong) == (1, 0)
