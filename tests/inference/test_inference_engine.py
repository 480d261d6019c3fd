"""The engine: many requests at once change no token, every request ends exactly once, and all blocks come back."""

import dataclasses
import itertools
import random
import signal
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tinylm.inference import LLM, InferenceError, SamplingParams, sampler  # noqa: E402  # after importorskip
from tinylm.inference.engine import Engine  # noqa: E402
from tinylm.inference.engine_config import EngineConfig  # noqa: E402
from tinylm.inference.quantization import quantize  # noqa: E402
from tinylm.model import Transformer, TransformerConfig  # noqa: E402

BLOCK = 4


def tiny(preset: str = "qwen3", **options: object) -> Transformer:
    """Random weights, larger than for training: the texts wander, and the two likeliest tokens are rarely close."""
    torch.manual_seed(0)
    model = Transformer(
        TransformerConfig.preset(preset, 61, **{"depth": 2, "width": 32, "head_dim": 16, "context": 64, **options})
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3)
    return model.eval()


def cache_bytes(model: Transformer, blocks: int) -> int:
    config = model.config
    return 2 * config.depth * config.kv_heads * config.head_dim * BLOCK * blocks * 4


def engine(model: Transformer, blocks: int = 64, **options: object) -> Engine:
    options = {"max_num_batched_tokens": 16, **options}
    config = EngineConfig(block_size=BLOCK, kv_cache_memory_bytes=cache_bytes(model, blocks), **options)
    return Engine(model, config=config)


def finish(running: Engine) -> list[object]:
    events = []
    while running.busy:
        events += running.step()
    return events


def requests(count: int, seed: int = 0) -> list[tuple[list[int], SamplingParams]]:
    """Prompts of 1 to 30 tokens, half of them with a common beginning; greedy and seeded by turns."""
    chooser = random.Random(seed)
    common = [chooser.randrange(61) for _ in range(12)]
    made = []
    for i in range(count):
        prompt = (common if i % 2 else []) + [chooser.randrange(61) for _ in range(chooser.randint(1, 18))]
        drawing = {"temperature": 0} if i % 3 else {"seed": i, "temperature": 0.8, "top_p": 0.95}
        made.append((prompt, SamplingParams(max_tokens=chooser.randint(1, 20), **drawing)))
    return made


def tokens(running: Engine, wanted: list[tuple[list[int], SamplingParams]]) -> list[list[int]]:
    texts = [running.add_request(str(i), prompt, params)[0] for i, (prompt, params) in enumerate(wanted)]
    finish(running)
    assert running.blocks.free == running.blocks.count
    return [text.output for text in texts]


@pytest.fixture(scope="module")
def model() -> Transformer:
    return tiny()


@pytest.fixture(scope="module")
def alone(model: Transformer, recompute: Callable[..., list[int]]) -> list[list[int]]:
    """The lowest rung: no cache, one request at a time."""

    class Only:
        device = "cpu"

    only = Only()
    only.model = model
    return [recompute(only, prompt, params, params.max_tokens) for prompt, params in requests(12)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"enable_prefix_caching": False},
        {"max_num_seqs": 1},
        {"max_num_batched_tokens": 3},
        {"max_num_batched_tokens": 512},
        {"blocks": 13},
        {"batch_invariant": True},
    ],
    ids=["defaults", "no prefix cache", "one at a time", "small chunks", "whole prompts", "too few blocks", "tiles"],
)
def test_no_token_changes(model: Transformer, alone: list[list[int]], options: dict[str, object]) -> None:
    mine = tiny() if "batch_invariant" in options else model  # tiles are put into the model
    assert tokens(engine(mine, **options), requests(12)) == alone


@pytest.mark.parametrize(("preset", "options"), [("gpt2", {}), ("llama", {"kv_heads": 2}), ("mistral", {"window": 7})])
def test_no_token_changes_in_other_shapes(
    preset: str, options: dict[str, object], recompute: Callable[..., list[int]]
) -> None:
    class Only:
        device = "cpu"

    only, wanted = Only(), requests(6)
    only.model = tiny(preset, **options)
    expected = [recompute(only, prompt, params, params.max_tokens) for prompt, params in wanted]
    assert tokens(engine(only.model), wanted) == expected


def test_a_quantised_model_reads_the_paged_cache(model: Transformer, recompute: Callable[..., list[int]]) -> None:
    class Only:
        device = "cpu"

    only, wanted = Only(), requests(6)
    only.model = quantize(model, "int8")
    expected = [recompute(only, prompt, params, params.max_tokens) for prompt, params in wanted]
    assert tokens(engine(only.model), wanted) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiles_give_the_same_bits_whatever_the_batch(dtype: torch.dtype) -> None:
    """Not only the same tokens: the logprobs, number by number."""
    model = tiny(width=96).to(dtype)
    prompts = [prompt for prompt, _ in requests(9)]
    params = SamplingParams(temperature=0, max_tokens=12, logprobs=3)

    def told(running: Engine, together: bool) -> list[list[object]]:
        said: dict[str, list[object]] = {str(i): [] for i in range(len(prompts))}
        for i, prompt in enumerate(prompts):
            running.add_request(str(i), prompt, params)
            for event in [] if together else finish(running):
                said[event.request_id].append(event.logprobs)
        for event in finish(running):
            said[event.request_id].append(event.logprobs)
        return list(said.values())

    one = told(engine(model, batch_invariant=True, max_num_batched_tokens=64), together=False)
    assert told(engine(model, batch_invariant=True, max_num_batched_tokens=7), together=True) == one


def test_prefixes_are_found_and_shared(model: Transformer) -> None:
    running = engine(model, max_num_batched_tokens=64)
    prompt = list(range(20))
    tokens(running, [(prompt, SamplingParams(max_tokens=4))])
    assert running.blocks.prefix.hit_tokens == 0
    running.add_request("again", prompt, SamplingParams(max_tokens=4))
    running.add_request("longer", [*prompt, 50, 51], SamplingParams(max_tokens=4))
    running.step()
    assert running.blocks.prefix.hit_tokens == 16 + 20  # all full blocks, but never a prompt's last token
    first, second = running.scheduler.running
    assert first.table[:4] == second.table[:4]
    finish(running)
    assert running.blocks.free == running.blocks.count


def test_the_same_block_after_another_beginning_is_not_the_same(model: Transformer) -> None:
    running = engine(model)
    end = [7] * 8
    tokens(running, [([1, 2, 3, 4, *end], SamplingParams(max_tokens=1))])
    tokens(running, [([4, 3, 2, 1, *end], SamplingParams(max_tokens=1))])
    assert running.blocks.prefix.hit_tokens == 0


def test_preemption_happens_and_is_counted(model: Transformer, alone: list[list[int]]) -> None:
    running = engine(model, blocks=13)
    assert tokens(running, requests(12)) == alone
    assert running.scheduler.preemptions > 0


@pytest.mark.parametrize("seed", range(6))
def test_random_arrivals_and_cancellations(model: Transformer, seed: int) -> None:
    """Every text ends exactly once, with its own reason, and every block comes back."""
    chooser = random.Random(seed)
    running = engine(model, blocks=chooser.choice([17, 20, 40]), max_num_batched_tokens=chooser.choice([2, 9, 40]))
    started, ends, drawn = Counter(), Counter(), Counter()
    reasons: dict[tuple[str, int], str] = {}
    for number in range(300):
        if chooser.random() < 0.4 and number < 200:
            name = f"request {number}"
            prompt = [chooser.randrange(5) for _ in range(chooser.randint(1, 40))]
            params = SamplingParams(max_tokens=chooser.randint(1, 20), n=chooser.choice([1, 1, 3]), seed=number)
            started.update((name, text.index) for text in running.add_request(name, prompt, params))
        if chooser.random() < 0.15 and started:
            running.abort(chooser.choice(list(started))[0])
        for event in running.step():
            assert (event.request_id, event.index) not in reasons
            drawn[event.request_id, event.index] += event.token_id is not None
            if event.finish_reason is not None:
                ends[event.request_id, event.index] += 1
                reasons[event.request_id, event.index] = event.finish_reason
    for event in finish(running):
        if event.finish_reason is not None:
            ends[event.request_id, event.index] += 1
            reasons[event.request_id, event.index] = event.finish_reason
    assert ends == started
    assert set(reasons.values()) == {"length", "abort"}
    assert running.blocks.free == running.blocks.count
    assert not running.scheduler.running
    assert not running.scheduler.waiting


def test_an_id_in_use_is_refused_and_free_again_at_its_end(model: Transformer) -> None:
    running = engine(model)
    running.add_request("a", [1, 2], SamplingParams(max_tokens=2))
    with pytest.raises(InferenceError, match="'a' is in use"):
        running.add_request("a", [3], SamplingParams())
    finish(running)
    assert len(running.add_request("a", [3], SamplingParams(max_tokens=1))) == 1


def test_what_cannot_be_written_is_refused(model: Transformer) -> None:
    running = engine(model, blocks=5)
    for prompt, reason in ([], "got 0"), ([1] * 64, "got 64"), ([1] * 15, "whole cache holds 20"):
        with pytest.raises(InferenceError, match=reason):
            running.add_request("a", prompt, SamplingParams(max_tokens=6))
    with pytest.raises(InferenceError, match="vocabulary of 61"):
        running.add_request("a", [1], SamplingParams(logit_bias={61: 1.0}))
    assert not running.busy


def test_logits_that_are_no_numbers_end_their_request_alone(model: Transformer) -> None:
    spoiled = tiny(tie_embeddings=False)
    with torch.no_grad():
        spoiled.embed.weight[60] = float("nan")
    running = engine(spoiled)
    good = running.add_request("good", [1, 2, 3], SamplingParams(temperature=0, max_tokens=5, logit_bias={60: -100}))[0]
    bad = running.add_request("bad", [1, 60], SamplingParams(temperature=0, max_tokens=5))[0]
    finish(running)
    assert bad.finish_reason == "error"
    assert "not numbers" in str(bad.events[-1].error)
    assert good.finish_reason == "length"
    assert running.blocks.free == running.blocks.count


@torch.no_grad()
def test_prompt_logprobs_are_the_models_own(model: Transformer) -> None:
    prompt = list(range(30))
    running = engine(model, max_num_batched_tokens=7)
    tokens(running, [(prompt, SamplingParams(max_tokens=1))])  # now in the prefix cache
    text = running.add_request("a", prompt, SamplingParams(max_tokens=3, prompt_logprobs=2))[0]
    events = finish(running)
    told = events[0].prompt_logprobs
    assert told is text.prompt_logprobs
    assert [event.prompt_logprobs for event in events[1:]] == [None, None]
    expected = model(torch.tensor([prompt]))[0].log_softmax(-1)
    assert told[0] is None
    assert len(told) == len(prompt)
    for position in range(1, len(prompt)):
        row = expected[position - 1]
        assert set(told[position]) == {prompt[position], *row.topk(2).indices.tolist()}
        assert told[position][prompt[position]].logprob == pytest.approx(float(row[prompt[position]]), abs=1e-4)


def test_llm_gives_prompt_logprobs_and_takes_the_engines_options(checkpoint: Path) -> None:
    llm = LLM(str(checkpoint), dtype="float32", device="cpu", max_num_seqs=2, block_size=8)
    assert llm.engine.config.max_num_seqs == 2
    answers = llm.generate(["The cook"] * 3, SamplingParams(max_tokens=2, prompt_logprobs=0, temperature=0))
    assert [len(answer.prompt_logprobs) for answer in answers] == [len(answers[0].prompt_token_ids)] * 3
    with pytest.raises(InferenceError, match="max_num_seqs must be"):
        LLM(str(checkpoint), max_num_seqs=0)


def test_a_stream_that_is_dropped_gives_its_blocks_back(llm: LLM) -> None:
    stream = llm.stream("The cook", SamplingParams(max_tokens=40, ignore_eos=True))
    next(stream)
    assert llm.engine.busy
    del stream
    llm.engine.step()
    assert not llm.engine.busy
    assert llm.engine.blocks.free == llm.engine.blocks.count


def test_two_streams_and_a_batch_take_turns(llm: LLM) -> None:
    params = SamplingParams(seed=1, max_tokens=12, ignore_eos=True)
    wanted = [llm.generate(prompt, params)[0].outputs[0].text for prompt in ("The cook", "Who", "sings")]
    first, second = llm.stream("The cook", params), llm.stream("Who", params)
    pieces = [next(first), next(second)]
    assert llm.generate("sings", params)[0].outputs[0].text == wanted[2]
    assert [pieces[0] + "".join(first), pieces[1] + "".join(second)] == wanted[:2]


def test_threads_take_turns(llm: LLM) -> None:
    params = [SamplingParams(seed=seed, max_tokens=20, ignore_eos=True) for seed in range(8)]
    prompts = ["The cook", "Who sings?"]

    def write(p: SamplingParams) -> list[list[int]]:
        return [request.outputs[0].token_ids for _ in range(3) for request in llm.generate(prompts, p)]

    wanted = [write(p) for p in params]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(write, params)) == wanted
    assert llm.engine.blocks.free == llm.engine.blocks.count


@pytest.mark.parametrize("what", ["Ctrl-C", "no memory"])
@pytest.mark.parametrize("place", range(6))
def test_a_step_that_breaks_off_in_the_middle_changes_no_text(
    model: Transformer, monkeypatch: pytest.MonkeyPatch, what: str, place: int
) -> None:
    """The texts of two threads go on, when one of them is told to stop: no token is lost, doubled or another's."""

    def write() -> tuple[list[list[int]], int]:
        running, broken = engine(model), 0
        params = SamplingParams(temperature=0, max_tokens=8, logprobs=0)
        texts = [running.add_request(str(i), [i, 5, 7], params)[0] for i in range(3)]
        while running.busy:
            try:
                running.step()
            except (KeyboardInterrupt, MemoryError):
                broken += 1
        assert [[event.token_id for event in text.events] for text in texts] == [text.output for text in texts]
        assert running.blocks.free == running.blocks.count
        return [text.output for text in texts], broken

    expected, calls, plain = write()[0], itertools.count(), sampler.describe

    def describe(*arguments: object) -> object:
        if next(calls) == place:
            if what == "no memory":
                raise MemoryError
            signal.raise_signal(signal.SIGINT)
        return plain(*arguments)

    monkeypatch.setattr(sampler, "describe", describe)
    assert write() == (expected, 1)


def test_ten_thousand_stop_strings(llm: LLM) -> None:
    params = SamplingParams(seed=1, max_tokens=20, ignore_eos=True)
    plain = llm.generate("The cook", params)[0].outputs[0].text
    stops = [f"never {i} this" for i in range(10_000)]
    assert llm.generate("The cook", dataclasses.replace(params, stop=stops))[0].outputs[0].text == plain
    stopped = llm.generate("The cook", dataclasses.replace(params, stop=[*stops, plain[5:8]]))[0].outputs[0]
    assert stopped.stop_reason == plain[5:8]
    assert stopped.text == plain[: plain.index(plain[5:8])]
