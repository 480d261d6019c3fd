"""bench's arithmetic: perplexity against one forward pass per token, and speed's refusals. No timed assertions."""

import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tinylm.inference import LLM, InferenceError, bench  # noqa: E402  # after importorskip

TEXT = "The bird sings in the tree. The cook says: good soup! Naïve wörld 你好 🙂 " * 5


@torch.inference_mode()
def nats_one_by_one(llm: LLM, ids: list[int]) -> float:
    """-log p of every token after the first, each from a window that begins at a multiple of the context."""
    context = llm.model.config.context
    total = 0.0
    for position in range(1, len(ids)):
        begin = (position - 1) // context * context
        logits = llm.model(torch.tensor([ids[begin:position]]))[0, -1]
        total -= float(logits.log_softmax(0)[ids[position]])
    return total


def test_perplexity_counts_every_token_once(llm: LLM) -> None:
    ids = llm.tokenizer.encode(TEXT)
    assert len(ids) > 2 * llm.model.config.context
    result = bench.perplexity(llm, TEXT)
    expected = nats_one_by_one(llm, [llm.tokenizer.eos_id, *ids])
    assert result["tokens"] == len(ids)
    assert result["nats"] == pytest.approx(expected, rel=1e-4)
    assert result["perplexity"] == pytest.approx(math.exp(expected / len(ids)), rel=1e-3)
    assert result["bits_per_character"] == pytest.approx(expected / math.log(2) / len(TEXT), rel=1e-4)


def test_perplexity_needs_text_and_tokenizer(llm: LLM, checkpoint: Path) -> None:
    with pytest.raises(InferenceError, match="at least one token"):
        bench.perplexity(llm, "")
    with pytest.raises(InferenceError, match="needs the tokenizer"):
        bench.perplexity(LLM(str(checkpoint), device="cpu", skip_tokenizer_init=True), "text")


def test_speed_reports_what_it_ran(llm: LLM) -> None:
    result = bench.speed(llm, prompt_tokens=4, max_tokens=6, repetitions=2)
    assert (result["prompt_tokens"], result["max_tokens"], result["repetitions"]) == (4, 6, 2)
    assert result["time_to_first_token_s"] > 0
    assert result["tokens_per_s"] == pytest.approx(1 / result["time_per_token_s"])


@pytest.mark.parametrize(("prompt", "new"), [(0, 5), (5, 1), (60, 10)])
def test_speed_refuses_what_does_not_fit(llm: LLM, prompt: int, new: int) -> None:
    with pytest.raises(InferenceError, match="context"):
        bench.speed(llm, prompt, new)
