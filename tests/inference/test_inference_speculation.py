"""Guessing ahead: the same tokens as without, the same distribution, and fewer steps."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tinylm.inference import LLM, InferenceError, SamplingParams  # noqa: E402  # after importorskip
from tinylm.inference.engine import Engine  # noqa: E402
from tinylm.inference.engine_config import EngineConfig  # noqa: E402
from tinylm.inference.quantization import save_quantized  # noqa: E402
from tinylm.inference.sequence import Sequence  # noqa: E402
from tinylm.inference.speculation import DraftModel, PromptLookup  # noqa: E402
from tinylm.model import Transformer, TransformerConfig  # noqa: E402

VOCABULARY = 23


def tiny(seed: int = 0, noise: float = 0.0) -> Transformer:
    """Random weights; `noise` makes a draft model that mostly agrees with the one without."""
    torch.manual_seed(seed)
    config = TransformerConfig.preset("qwen3", VOCABULARY, 1, width=32, head_dim=16, context=64)
    model = Transformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3)
        for parameter in model.parameters():
            parameter += noise * torch.randn_like(parameter)
    return model.eval()


def write(propose: object, params: SamplingParams, count: int = 6) -> tuple[list[list[int]], int]:
    """(the tokens of `count` texts written together, steps it took)."""
    engine = Engine(tiny(), config=EngineConfig(block_size=4), propose=propose)
    texts = [engine.add_request(str(i), [i, 2, 3, i, 2], params)[0] for i in range(count)]
    steps = 0
    while engine.busy:
        engine.step()
        steps += 1
    assert engine.blocks.free == engine.blocks.count
    return [text.output for text in texts], steps


PROPOSERS = {
    "prompt look-up": PromptLookup,
    "the model itself": lambda: DraftModel(tiny()),
    "a model that mostly agrees": lambda: DraftModel(tiny(noise=0.02), count=3),
    "a model that never learnt it": lambda: DraftModel(tiny(seed=5)),
    "nonsense": lambda: lambda sequence: [1, 2, 3, 4, 5, 6, 7, 8],
}


@pytest.mark.parametrize("name", PROPOSERS)
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0, max_tokens=16),
        SamplingParams(temperature=0.9, seed=3, max_tokens=16, top_k=9, repetition_penalty=1.2, frequency_penalty=0.3),
        SamplingParams(temperature=0, max_tokens=16, stop_token_ids=[5, 6], min_tokens=4, logprobs=2),
    ],
    ids=["greedy", "seeded", "stopped"],
)
def test_no_token_changes(name: str, params: SamplingParams) -> None:
    expected, plain_steps = write(None, params)
    got, steps = write(PROPOSERS[name](), params)
    assert got == expected
    assert steps <= plain_steps
    if name == "the model itself" and params.max_tokens == max(map(len, expected)):
        assert steps < plain_steps / 2


def test_guesses_of_a_step_that_failed_are_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """What there is room for may be less by then: half a guess would count as read."""
    params, more = SamplingParams(temperature=4, seed=3, max_tokens=8), [False]

    def propose(sequence: Sequence) -> list[int]:
        return [1, 2, 3, 4] if sequence.request_id == "1" or more[0] else []

    def texts(running: Engine) -> list[list[int]]:
        made = [running.add_request(str(i), [i + 3, 2], params)[0] for i in range(2)]
        running.step()
        with monkeypatch.context() as patch:
            patch.setattr(running._runner, "run", lambda _: 1 / 0)
            if running._propose is not None:
                with pytest.raises(ZeroDivisionError):
                    running.step()
        more[0] = True
        while running.busy:
            running.step()
        return [text.output for text in made]

    config = EngineConfig(block_size=4, max_num_batched_tokens=6)
    assert texts(Engine(tiny(), config=config, propose=propose)) == texts(Engine(tiny(), config=config))


def test_parameters_that_only_the_draft_model_fails_at_end_no_text() -> None:
    """Its logits are another model's: a penalty may take them beyond all numbers, and the text's own not."""
    params = SamplingParams(temperature=0, max_tokens=6, repetition_penalty=1e-38)
    draft = tiny(seed=5)
    with torch.no_grad():
        draft.final_norm.weight.mul_(20)
    assert write(DraftModel(draft), params)[0] == write(None, params)[0]


def test_a_draft_model_reserves_what_a_text_may_need(checkpoint: Path) -> None:
    llm = LLM(str(checkpoint), dtype="float32", speculative_config={"model": str(checkpoint)})
    stream = llm.stream({"prompt_token_ids": [5, 6]}, SamplingParams(max_tokens=9, ignore_eos=True))
    next(stream)
    next(stream)
    caches = llm.engine._propose._caches
    assert [cache.keys.shape[3] for cache, _ in caches.values()] == [2 + 9 + 4]
    assert len(stream.output().token_ids) == 9


def test_prompt_lookup_takes_the_longest_and_latest() -> None:
    def guess(tokens: list[int], **options: int) -> list[int]:
        return PromptLookup(**options)(Sequence("a", tokens, SamplingParams(), context=64))

    assert guess([1, 2, 3, 9, 1, 2, 3]) == [9, 1, 2, 3]
    assert guess([5, 3, 7, 2, 3, 8, 4, 2, 3], count=1) == [8]  # "2 3" before the later "3" alone
    assert guess([3, 7, 3, 8, 3], count=1) == [8]
    assert guess([1, 2, 3]) == []
    assert guess([1]) == []


@pytest.mark.parametrize("name", ["a model that mostly agrees", "prompt look-up"])
def test_the_distribution_stays(name: str) -> None:
    """The second token of 500 texts of different seeds falls as the model's own probabilities say (chi-square)."""
    model, count = tiny(), 500
    prompt = [1, 2, 1]
    engine = Engine(model, config=EngineConfig(max_num_seqs=100), propose=PROPOSERS[name]())
    texts = []
    for i in range(count):
        numbered = SamplingParams(temperature=1.0, max_tokens=3, seed=i)
        texts += engine.add_request(str(i), prompt, numbered)
    while engine.busy:
        engine.step()
    counts = Counter(text.output[1] for text in texts)
    with torch.inference_mode():
        first = model(torch.tensor([prompt]))[0, -1].softmax(0)
        after = model(torch.tensor([[*prompt, i] for i in range(VOCABULARY)]))[:, -1].softmax(1)
    expected = (first[:, None] * after).sum(0) * count
    statistic = sum(float((counts[i] - expected[i]) ** 2 / expected[i]) for i in range(VOCABULARY) if expected[i] > 1)
    assert statistic < 60  # 22 degrees of freedom: 1 in 50,000


def test_llm_takes_vllms_speculative_config(checkpoint: Path, make_checkpoint: Callable[..., Path]) -> None:
    params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    expected = LLM(str(checkpoint), dtype="float32").generate("The cook", params)[0].outputs[0].token_ids
    for config in {"method": "ngram", "num_speculative_tokens": 3}, {"model": str(make_checkpoint(depth=1))}:
        llm = LLM(str(checkpoint), dtype="float32", speculative_config=config)
        assert llm.generate("The cook", params)[0].outputs[0].token_ids == expected
    other = make_checkpoint(depth=1, vocab_size=400)
    for wrong, reason in (
        ({"method": "eagle"}, "wanted"),
        ({"method": "ngram", "num_speculative_tokens": 0}, "at least 1"),
        ({"method": "ngram", "draft_tensor_parallel_size": 1}, "draft_tensor_parallel_size"),
        ({"model": str(other)}, "same vocabulary"),
        ({"model": "nowhere"}, "the draft model: nowhere"),
        (str(other), "wanted a dictionary"),
    ):
        with pytest.raises(InferenceError, match=reason):
            LLM(str(checkpoint), speculative_config=wrong)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_draft_model_may_be_quantised(checkpoint: Path, tmp_path: Path, dtype: str) -> None:
    """It stays as its files are, beside a model of any type."""
    save_quantized(checkpoint, tmp_path / "int8", "int8")
    params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    plain = LLM(str(checkpoint), dtype=dtype, device="cpu", batch_invariant=True)
    guessing = LLM(
        str(checkpoint),
        dtype=dtype,
        device="cpu",
        batch_invariant=True,
        speculative_config={"model": str(tmp_path / "int8")},
    )
    steps, step = [0], guessing.engine.step

    def counted() -> object:
        steps[0] += 1
        return step()

    guessing.engine.step = counted
    assert guessing.generate("The cook", params) == plain.generate("The cook", params)
    assert steps[0] < 25


def test_a_damaged_draft_model_is_told_of_in_words(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="wanted JSON"):
        LLM(str(checkpoint), speculative_config={"model": str(tmp_path)})
