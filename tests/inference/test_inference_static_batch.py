"""The static batch and its compiled step: each text as if it were alone, greedy and seeded, of any lengths."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tinylm.inference import LLM, SamplingParams, compiled  # noqa: E402  # after importorskip
from tinylm.inference._errors import InferenceError  # noqa: E402
from tinylm.inference.compiled import Compiled  # noqa: E402
from tinylm.inference.static_batch import static_batch  # noqa: E402

PROMPTS = [[5], [7, 8, 9, 10, 11, 12], [20, 21, 22]]
GREEDY = [SamplingParams(temperature=0, max_tokens=count, ignore_eos=True) for count in (12, 20, 1)]
SEEDED = [SamplingParams(temperature=0.9, top_p=0.9, seed=seed, max_tokens=16, ignore_eos=True) for seed in range(3)]


@pytest.fixture(scope="module")
def step(llm: LLM) -> Compiled:
    return Compiled(llm.model, 3, 32)


@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_both_write_what_the_lowest_rung_writes(
    llm: LLM, step: Compiled, recompute: Callable[..., list[int]], params: list[SamplingParams]
) -> None:
    texts = [recompute(llm, prompt, p, p.max_tokens) for prompt, p in zip(PROMPTS, params, strict=True)]
    assert static_batch(llm.model, PROMPTS, params) == texts
    assert step.write(PROMPTS, params) == texts
    assert step.write(PROMPTS[::-1], params[::-1]) == texts[::-1]  # what was in the cache before is not seen


def test_a_window_of_attention_is_kept(make_checkpoint: Callable[..., Path]) -> None:
    llm = LLM(str(make_checkpoint(preset="llama", window=4)), dtype="float32", device="cpu")
    plain = LLM(str(make_checkpoint(preset="llama")), dtype="float32", device="cpu")
    params = [SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)]
    texts = static_batch(llm.model, PROMPTS[1:2], params)
    assert Compiled(llm.model, 1, 32).write(PROMPTS[1:2], params) == texts
    assert static_batch(plain.model, PROMPTS[1:2], params) != texts


def test_a_text_ends_at_its_end_token_and_the_others_go_on(llm: LLM) -> None:
    whole = static_batch(llm.model, PROMPTS, [GREEDY[1]] * 3)
    stop = whole[0][3]
    params = [SamplingParams(temperature=0, max_tokens=20)] * 3
    assert [text[-1] == stop or len(text) == 20 for text in static_batch(llm.model, PROMPTS, params, [stop])] == [
        True
    ] * 3
    assert static_batch(llm.model, PROMPTS, params, [stop])[0] == whole[0][: whole[0].index(stop) + 1]


def test_a_step_that_does_not_compile_runs_as_it_is(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_compiler(_: Any, **__: Any) -> Any:
        raise RuntimeError("no working C++ compiler\nmore lines")

    monkeypatch.setattr(compiled.torch, "compile", no_compiler)
    texts = Compiled(llm.model, 3, 32).write(PROMPTS, GREEDY)
    assert texts == static_batch(llm.model, PROMPTS, GREEDY)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "torch.compile failed (no working C++ compiler)" in said


def test_what_does_not_fit_is_refused(llm: LLM, step: Compiled) -> None:
    with pytest.raises(InferenceError, match="prompts of 1 to"):
        static_batch(llm.model, [[]], GREEDY[:1])
    with pytest.raises(InferenceError, match="params for each"):
        static_batch(llm.model, PROMPTS, GREEDY[:1])
    with pytest.raises(InferenceError, match="3 texts of at most 32 tokens, got 1"):
        step.write(PROMPTS[:1], GREEDY[:1])
    with pytest.raises(InferenceError, match="room for 1 to"):
        Compiled(llm.model, 1, 10_000)
