"""bench's arithmetic: perplexity against one forward pass per token, and speed's refusals. No timed assertions."""

import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tinylm.inference import LLM, InferenceError, bench  # noqa: E402  # after importorskip
from tinylm.inference.quantization import quantize  # noqa: E402
from tinylm.model import Transformer, TransformerConfig  # noqa: E402

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

    assert result["bytes_per_token"] == bench.bytes_per_token(llm.model, 7)
    assert result["gb_per_s"] == pytest.approx(result["bytes_per_token"] * result["tokens_per_s"] / 1e9)
    assert result["roofline_fraction"] > 0


def test_a_token_reads_every_weight_once() -> None:
    shape = {"vocab_size": 300, "depth": 2, "context": 64}
    for preset, tied in (("qwen3", True), ("gpt2", True), ("llama", False)):
        model = Transformer(TransformerConfig.preset(preset, **shape, tie_embeddings=tied))
        config = model.config
        total = 4 * config.parameter_count()
        rows = 4 * config.width * ((not tied) * 300 + (preset == "gpt2") * 64)  # looked up, a row at a time
        cache = 4 * 2 * config.depth * config.kv_heads * config.head_dim * 10
        assert bench.bytes_per_token(model, 10) == total - rows + cache
        assert bench.bytes_per_token(model.bfloat16(), 0) == (total - rows) / 2


def test_rounded_weights_are_read_as_they_are_kept() -> None:
    model = Transformer(TransformerConfig.preset("gpt2", vocab_size=512, depth=2, context=64, width=256))
    full = bench.bytes_per_token(model, 0)
    eight, four = (bench.bytes_per_token(quantize(model, scheme), 0) for scheme in ("int8", "int4"))
    assert 0.25 < eight / full < 0.3
    assert 0.14 < four / full < 0.25  # the head stays at 8 bits


def test_of_experts_those_are_read_that_a_token_is_sent_to() -> None:
    shape = {"vocab_size": 300, "depth": 1, "context": 64, "experts": 8, "mlp_width": 96}
    one, two = (
        bench.bytes_per_token(Transformer(TransformerConfig.preset("qwen3", **shape, experts_per_token=k)), 0)
        for k in (1, 2)
    )
    config = TransformerConfig.preset("qwen3", **shape, experts_per_token=1)
    assert two - one == 4 * 3 * config.width * config.mlp_width


@pytest.mark.parametrize(("prompt", "new"), [(0, 5), (5, 1), (60, 10)])
def test_speed_refuses_what_does_not_fit(llm: LLM, prompt: int, new: int) -> None:
    with pytest.raises(InferenceError, match="context"):
        bench.speed(llm, prompt, new)
