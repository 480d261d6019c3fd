"""The same on a CUDA device: greedy text equals the CPU's, seeds repeat, bfloat16 runs, the cache changes nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tinylm.inference import LLM, SamplingParams  # noqa: E402  # after importorskip
from tinylm.inference.compiled import Compiled  # noqa: E402
from tinylm.inference.static_batch import static_batch  # noqa: E402

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: torch.cuda.is_available() is False"),
]

PROMPT = "The cook says"
GREEDY = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
SEEDED = SamplingParams(seed=3, temperature=0.9, top_p=0.95, max_tokens=40, ignore_eos=True)


def ids(llm: LLM, params: SamplingParams) -> list[int]:
    return llm.generate(PROMPT, params)[0].outputs[0].token_ids


def test_auto_chooses_cuda_and_the_cache_is_there(checkpoint: Path) -> None:
    llm = LLM(str(checkpoint))
    assert llm.device.type == "cuda"
    before = torch.cuda.max_memory_allocated()
    assert before > 0
    assert len(ids(llm, GREEDY)) == 40


@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_fp32_on_cuda_equals_the_cpu(checkpoint: Path, params: SamplingParams) -> None:
    here = LLM(str(checkpoint), dtype="float32", device="cpu")
    there = LLM(str(checkpoint), dtype="float32", device="cuda")
    assert ids(there, params) == ids(here, params)


def test_a_seed_repeats_and_does_not_touch_torchs_generator(checkpoint: Path) -> None:
    llm = LLM(str(checkpoint), dtype="float32", device="cuda")
    state = torch.cuda.get_rng_state()
    first = ids(llm, SEEDED)
    torch.cuda.manual_seed(99)
    assert ids(llm, SEEDED) == first
    torch.cuda.set_rng_state(state)
    assert ids(llm, SamplingParams(seed=4, max_tokens=40, ignore_eos=True)) != first


def test_the_cache_equals_recomputation(checkpoint: Path, recompute: Callable[..., list[int]]) -> None:
    llm = LLM(str(checkpoint), dtype="float32", device="cuda")
    prompt = llm.tokenizer.encode(PROMPT)
    for params in (GREEDY, SEEDED):
        assert ids(llm, params) == recompute(llm, prompt, params, 40)


def test_bfloat16_with_the_cache_differs_by_rounding_only(checkpoint: Path, regret: Callable[..., list[float]]) -> None:
    llm = LLM(str(checkpoint), dtype="bfloat16", device="cuda")
    prompt = llm.tokenizer.encode(PROMPT)
    assert max(regret(llm, prompt, ids(llm, GREEDY))) < 0.03  # 8 bits: 0.004 per operation, and some add up


def test_bfloat16_writes_text(checkpoint: Path) -> None:
    llm = LLM(str(checkpoint), dtype="bfloat16", device="cuda")
    assert llm.dtype is torch.bfloat16
    stream = llm.stream(PROMPT, SEEDED)
    assert "".join(stream) == stream.text != ""
    assert len(stream.token_ids) == 40


@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_a_cuda_graph_writes_what_the_static_batch_writes(checkpoint: Path, params: SamplingParams) -> None:
    llm = LLM(str(checkpoint), dtype="float32", device="cuda")
    prompts = [[5], [7, 8, 9, 10]]
    step = Compiled(llm.model, 2, 48)
    expected = static_batch(llm.model, prompts, [params] * 2)
    assert step.write(prompts, [params] * 2) == expected
    assert step.write(prompts, [params] * 2) == expected  # replayed over a cache that is not empty
