"""LLM: tokens equal those of the lowest rung, stopping, reporting, and prompts of every kind."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tinylm.inference import LLM, InferenceError, SamplingParams  # noqa: E402  # after importorskip
from tinylm.model import generate  # noqa: E402

GREEDY = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
PROMPT = "The cook says"
BFLOAT16_ROUNDING = 0.03  # a bfloat16 has 8 bits: 0.004 per operation, and some add up


def ids(llm: LLM, text: str) -> list[int]:
    return llm.tokenizer.encode(text)


def only(llm: LLM, prompt: object, params: SamplingParams) -> object:
    return llm.generate(prompt, params)[0].outputs[0]


@pytest.mark.parametrize("preset", ["qwen3", "llama", "gpt2"])
@pytest.mark.parametrize(
    "params",
    [
        dataclasses.replace(GREEDY, repetition_penalty=1.5),
        SamplingParams(seed=7, temperature=0.9, max_tokens=40, ignore_eos=True),
        SamplingParams(
            seed=8,
            temperature=1.5,
            top_k=50,
            top_p=0.9,
            min_p=0.01,
            repetition_penalty=1.1,
            max_tokens=40,
            ignore_eos=True,
        ),
    ],
    ids=["greedy", "seeded", "all steps"],
)
def test_the_cache_changes_no_token(
    make_checkpoint: Callable[..., Path], recompute: Callable[..., list[int]], preset: str, params: SamplingParams
) -> None:
    llm = LLM(str(make_checkpoint(preset, depth=1)), dtype="float32", device="cpu")
    answer = only(llm, PROMPT, params)
    assert answer.token_ids == recompute(llm, ids(llm, PROMPT), params, 40)
    assert len(set(answer.token_ids)) > 5  # the text wanders: a constant one would prove little


def test_what_an_llm_is_can_be_read(llm: LLM) -> None:
    assert repr(llm) == f"<LLM: 2 layers of width {llm.model.config.width}, 300 tokens, float32, cpu>"


def test_greedy_equals_the_models_own_generate(llm: LLM) -> None:
    prompt = ids(llm, PROMPT)
    assert only(llm, PROMPT, GREEDY).token_ids == generate(llm.model, torch.tensor([prompt]), 40)[0].tolist()


def test_a_seeded_request_does_not_depend_on_its_neighbours(llm: LLM) -> None:
    mine = SamplingParams(seed=3, max_tokens=20)
    alone = only(llm, PROMPT, mine)
    beside = llm.generate(["Who", PROMPT, "sings"], [SamplingParams(max_tokens=9), mine, SamplingParams(seed=3)])
    assert beside[1].outputs[0].token_ids == alone.token_ids
    assert only(llm, PROMPT, dataclasses.replace(mine, seed=4)).token_ids != alone.token_ids


def test_without_a_seed_two_answers_differ(llm: LLM) -> None:
    free = SamplingParams(temperature=2.0, max_tokens=40)
    assert only(llm, PROMPT, free).token_ids != only(llm, PROMPT, free).token_ids


def test_n_answers_are_drawn_with_the_next_seeds(llm: LLM) -> None:
    request = llm.generate(PROMPT, SamplingParams(n=3, seed=5, max_tokens=12))[0]
    assert [answer.index for answer in request.outputs] == [0, 1, 2]
    for i, answer in enumerate(request.outputs):
        assert answer.token_ids == only(llm, PROMPT, SamplingParams(seed=5 + i, max_tokens=12)).token_ids


def test_requests_carry_their_prompt_and_distinct_numbers(llm: LLM) -> None:
    first, second = llm.generate([PROMPT, {"prompt_token_ids": [5, 6]}], SamplingParams(max_tokens=1))
    assert (first.prompt, first.prompt_token_ids) == (PROMPT, ids(llm, PROMPT))
    assert (second.prompt, second.prompt_token_ids) == (None, [5, 6])
    assert first.request_id != second.request_id


def test_the_text_is_the_decoded_tokens_and_the_stream_gives_the_same(llm: LLM) -> None:
    params = SamplingParams(seed=1, max_tokens=40, ignore_eos=True)
    answer = only(llm, PROMPT, params)
    special = set(llm.tokenizer.special_tokens.values())
    whole = llm.tokenizer.decode([i for i in answer.token_ids if i not in special])
    assert whole.startswith(answer.text)
    assert set(whole[len(answer.text) :]) <= {"\ufffd"}  # at most the half character at the end is missing
    stream = llm.stream(PROMPT, params)
    pieces = list(stream)
    assert all(pieces)
    assert "".join(pieces) == answer.text == stream.text
    assert stream.token_ids == answer.token_ids


def test_a_stream_never_gives_half_a_character(llm: LLM, write: Callable[[list[int]], None]) -> None:
    text = "a 🙂 é 龍"
    written = [i for b in text.encode() for i in range(256) if llm.tokenizer.id_to_bytes(i) == bytes([b])]
    write(written)
    assert list(llm.stream(PROMPT, SamplingParams(max_tokens=len(written)))) == list(text)
    write(written[:-1])
    cut = only(llm, PROMPT, SamplingParams(max_tokens=len(written) - 1))
    assert cut.text == text[:-1]
    assert cut.token_ids == written[:-1]


@pytest.mark.parametrize("include", [False, True])
def test_a_stop_string_is_cut_across_token_boundaries(
    llm: LLM, write: Callable[[list[int]], None], include: bool
) -> None:
    text = "The bird sings. User: more"
    params = SamplingParams(stop=["\n\n", "s. Us"], max_tokens=60, include_stop_str_in_output=include)
    write([i for part in ("The bird sing", "s", ". U", "ser: more") for i in ids(llm, part)])
    stream = llm.stream(PROMPT, params)
    expected = text[: text.index("s. Us") + (5 if include else 0)]
    assert "".join(stream) == expected
    assert (stream.finish_reason, stream.stop_reason) == ("stop", "s. Us")
    assert len(llm.tokenizer.decode(stream.token_ids)) > len(expected) - (5 if include else 0)


def test_a_stop_string_that_stays_incomplete_is_text(llm: LLM, write: Callable[[list[int]], None]) -> None:
    written = ids(llm, "sings. Us")
    write(written)
    answer = only(llm, PROMPT, SamplingParams(stop="s. User", max_tokens=len(written)))
    assert (answer.text, answer.finish_reason) == ("sings. Us", "length")


def test_end_of_text_stops_and_leaves_no_text(llm: LLM, write: Callable[[list[int]], None]) -> None:
    eos = llm.tokenizer.eos_id
    for params in (SamplingParams(), SamplingParams(skip_special_tokens=False)):
        write([*ids(llm, "sings"), eos, *ids(llm, " on")])
        answer = only(llm, PROMPT, params)
        assert (answer.text, answer.finish_reason, answer.stop_reason) == ("sings", "stop", None)
        assert answer.token_ids[-1] == eos


def test_ignore_eos_goes_on_and_special_tokens_show_if_wanted(llm: LLM, write: Callable[[list[int]], None]) -> None:
    written = [*ids(llm, "sings"), llm.tokenizer.eos_id, *ids(llm, " on")]
    for skip, expected in ((True, "sings on"), (False, "sings<|endoftext|> on")):
        write(written)
        params = SamplingParams(ignore_eos=True, max_tokens=len(written), skip_special_tokens=skip)
        assert only(llm, PROMPT, params).text == expected


def test_a_stop_token_is_named_as_the_reason(llm: LLM, write: Callable[[list[int]], None]) -> None:
    dot = ids(llm, "!")[0]
    for include, expected in ((False, "sings"), (True, "sings!")):
        write([*ids(llm, "sings"), dot, *ids(llm, " on")])
        answer = only(llm, PROMPT, SamplingParams(stop_token_ids=[dot], include_stop_str_in_output=include))
        assert (answer.text, answer.finish_reason, answer.stop_reason) == (expected, "stop", dot)


def test_a_stop_token_that_ends_texts_anyway_is_named_if_asked_for(
    make_checkpoint: Callable[..., Path], write: Callable[[list[int]], None]
) -> None:
    """As in vLLM: of several end-of-text ids all but the tokenizer's own can be told by stop_token_ids."""
    folder = make_checkpoint(seed=9)
    first = LLM(str(folder)).tokenizer.eos_id
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [first, 7]}))
    several = LLM(str(folder), dtype="float32", device="cpu")
    for drawn, asked, reason in ((7, [7], 7), (7, None, None), (first, [first, 7], None), (first, None, None)):
        write([drawn])
        answer = only(several, PROMPT, SamplingParams(stop_token_ids=asked))
        assert (answer.text, answer.finish_reason, answer.stop_reason) == ("", "stop", reason)


def test_a_stop_token_that_can_never_come_is_refused(llm: LLM) -> None:
    size = llm.model.config.vocab_size
    with pytest.raises(InferenceError, match=f"stop_token_ids: token id {size} is outside"):
        only(llm, PROMPT, SamplingParams(stop_token_ids=[1, size]))
    only(llm, PROMPT, SamplingParams(stop_token_ids=[size - 1], max_tokens=1))


def test_min_tokens_forbids_the_ends_before(llm: LLM) -> None:
    eos = llm.tokenizer.eos_id
    wants_to_end = {eos: 1e9}
    answer = only(llm, PROMPT, SamplingParams(temperature=0, logit_bias=wants_to_end, min_tokens=4))
    assert len(answer.token_ids) == 5
    assert eos not in answer.token_ids[:4]
    assert answer.finish_reason == "stop"


def test_min_tokens_forbids_the_end_where_it_would_not_end_the_text_too(llm: LLM) -> None:
    """As in vLLM: ignore_eos says that the text goes on after it, not that it may come before min_tokens."""
    eos = llm.tokenizer.eos_id
    params = SamplingParams(temperature=0, logit_bias={eos: 1e9}, min_tokens=4, max_tokens=6, ignore_eos=True)
    answer = only(llm, PROMPT, params)
    assert eos not in answer.token_ids[:4]
    assert answer.token_ids[4:] == [eos, eos]


def test_min_tokens_holds_for_stop_strings(llm: LLM, write: Callable[[list[int]], None]) -> None:
    x = ids(llm, "z")
    write(x * 10)
    answer = only(llm, PROMPT, SamplingParams(stop="z", min_tokens=3))
    assert (answer.text, len(answer.token_ids)) == ("zzz", 4)


def test_logit_bias_steers(llm: LLM) -> None:
    z = ids(llm, "z")[0]
    assert only(llm, PROMPT, SamplingParams(logit_bias={z: 1e6}, max_tokens=3)).text == "zzz"


def test_logprobs_are_the_models_own(llm: LLM) -> None:
    params = SamplingParams(temperature=0.3, top_k=2, seed=2, logprobs=3, max_tokens=6, ignore_eos=True)
    answer = only(llm, PROMPT, params)
    total = 0.0
    for position, token_id in enumerate(answer.token_ids):
        context = torch.tensor([[*ids(llm, PROMPT), *answer.token_ids[:position]]])
        expected = llm.model(context)[0, -1].detach().log_softmax(0)
        found = answer.logprobs[position]
        top = expected.topk(3).indices.tolist()
        assert set(found) == {token_id, *top}
        for i, entry in found.items():
            assert entry.logprob == pytest.approx(float(expected[i]), abs=1e-4)
            assert entry.rank == int((expected > expected[i]).sum()) + 1
            assert entry.decoded_token == llm.tokenizer.decode([i])
        total += float(expected[token_id])
    assert answer.cumulative_logprob == pytest.approx(total, abs=1e-3)


def test_logprobs_without_text(llm: LLM) -> None:
    answer = only(llm, PROMPT, SamplingParams(logprobs=2, max_tokens=3, seed=0, detokenize=False))
    assert {entry.decoded_token for choices in answer.logprobs for entry in choices.values()} == {None}
    assert answer.text == ""


@pytest.mark.parametrize(("wanted", "count"), [(0, 1), (-1, None)])
def test_logprobs_none_only_the_drawn_and_all(llm: LLM, wanted: int, count: int | None) -> None:
    answer = only(llm, PROMPT, SamplingParams(logprobs=wanted, max_tokens=1, seed=0))
    assert len(answer.logprobs[0]) == (count or llm.model.config.vocab_size)
    plain = only(llm, PROMPT, SamplingParams(max_tokens=1, seed=0))
    assert (plain.logprobs, plain.cumulative_logprob) == (None, None)


def test_detokenize_false_gives_ids_only(llm: LLM) -> None:
    answer = only(llm, PROMPT, dataclasses.replace(GREEDY, detokenize=False))
    assert (answer.text, answer.token_ids) == ("", only(llm, PROMPT, GREEDY).token_ids)


@pytest.mark.parametrize("asked", [None, 1000])
def test_writing_ends_where_the_context_ends(llm: LLM, asked: int | None) -> None:
    answer = only(llm, {"prompt_token_ids": [5] * 10}, SamplingParams(max_tokens=asked, ignore_eos=True, seed=0))
    assert (len(answer.token_ids), answer.finish_reason) == (llm.model.config.context - 10, "length")


def test_a_prompt_that_fills_the_context_is_refused(llm: LLM) -> None:
    context = llm.model.config.context
    assert len(only(llm, {"prompt_token_ids": [5] * (context - 1)}, SamplingParams()).token_ids) == 1
    with pytest.raises(InferenceError, match=rf"the prompt has {context} tokens"):
        llm.generate({"prompt_token_ids": [5] * context})


@pytest.mark.parametrize("prompt", ["", {"prompt_token_ids": []}])
def test_an_empty_prompt_begins_at_end_of_text(llm: LLM, prompt: object) -> None:
    request = llm.generate(prompt, GREEDY)[0]
    assert request.prompt_token_ids == [llm.tokenizer.eos_id]
    assert request.outputs[0].token_ids == only(llm, "<|endoftext|>", GREEDY).token_ids


def test_ids_may_be_an_array(llm: LLM) -> None:
    array = llm.tokenizer.encode_array(PROMPT)
    for prompt in (array, torch.tensor(array.tolist())):
        request = llm.generate({"prompt_token_ids": prompt}, GREEDY)[0]
        assert request.prompt_token_ids == ids(llm, PROMPT)
        assert request.outputs[0].token_ids == only(llm, PROMPT, GREEDY).token_ids


def test_a_text_that_was_broken_off_says_so(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = llm.stream(PROMPT, GREEDY)
    next(stream)

    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("tinylm.inference.sampler.choose", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert stream.text
    with pytest.raises(InferenceError, match="broken off"):
        stream.output()


def test_ctrl_c_while_texts_are_put_in_line_leaves_none(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes there while another thread's step is waited for."""
    plain = llm.engine.add

    def add(sequence: Any) -> None:
        plain(sequence)
        raise KeyboardInterrupt

    monkeypatch.setattr(llm.engine, "add", add)
    with pytest.raises(KeyboardInterrupt):
        llm.generate([PROMPT, PROMPT], GREEDY)
    llm.engine.step()
    assert not llm.engine.busy


@pytest.mark.parametrize("where", ["before", "after"])
def test_ctrl_c_while_a_text_that_has_ended_goes_leaves_none(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Before or after its blocks are given back; a request alone does not make it wait."""
    plain = llm.engine.scheduler.remove

    def remove(sequence: Any) -> None:
        if where == "after":
            plain(sequence)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(llm.engine.scheduler, "remove", remove)
        with pytest.raises(KeyboardInterrupt):
            llm.generate([PROMPT], GREEDY)
    llm.engine.step()
    assert not llm.engine.busy
    assert llm.engine.blocks.free == llm.engine.blocks.count


def test_no_prompts_no_answers(llm: LLM) -> None:
    assert llm.generate([]) == []


@pytest.mark.parametrize(
    "prompt",
    [
        5,
        {"prompt_token_ids": [-1]},
        {"prompt_token_ids": [10**6]},
        {"prompt_token_ids": [1.0]},
        {"prompt_token_ids": 5},
        {"prompt": "x"},
        b"x",
    ],
)
def test_a_prompt_that_cannot_be_read_is_refused(llm: LLM, prompt: object) -> None:
    with pytest.raises(InferenceError, match="prompt"):
        llm.generate([prompt])


def test_answers_are_finished_as_in_vllm(llm: LLM) -> None:
    (request,) = llm.generate("x", SamplingParams(max_tokens=1))
    assert (request.finished, request.outputs[0].finished()) == (True, True)


def test_bad_prompts_are_refused_before_any_work(llm: LLM, write: Callable[[list[int]], None]) -> None:
    write([])  # drawing a single token would fail with StopIteration
    with pytest.raises(InferenceError, match="0 to"):
        llm.generate(["fine", {"prompt_token_ids": [10**6]}])


def test_unsupported_arguments_are_refused_by_name(llm: LLM, checkpoint: Path) -> None:
    with pytest.raises(InferenceError, match=r"LLM does not support tensor_parallel_size"):
        LLM(str(checkpoint), tensor_parallel_size=2)
    with pytest.raises(InferenceError, match=r"LLM.generate does not support lora_request"):
        llm.generate("x", lora_request=1)
    with pytest.raises(InferenceError, match="n must be 1"):
        llm.stream("x", SamplingParams(n=2))
    with pytest.raises(InferenceError, match="a list of prompts, got NoneType"):
        llm.generate(None)
    for params in ({"max_tokens": 4}, [{"max_tokens": 4}], 4):
        with pytest.raises(InferenceError, match="wanted SamplingParams"):
            llm.generate(["x"], params)
        with pytest.raises(InferenceError, match="wanted SamplingParams"):
            llm.stream("x", params)
    with pytest.raises(InferenceError, match="one for each of 2 prompts, got 1"):
        llm.generate(["a", "b"], [SamplingParams()])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_an_error(checkpoint: Path, value: float) -> None:
    llm = LLM(str(checkpoint), dtype="float32", device="cpu")
    with torch.no_grad():
        llm.model.final_norm.weight.fill_(value)
    with pytest.raises(InferenceError, match="not numbers"):
        llm.generate(PROMPT)


def test_bfloat16_with_the_cache_differs_by_rounding_only(checkpoint: Path, regret: Callable[..., list[float]]) -> None:
    llm = LLM(str(checkpoint), dtype="bfloat16", device="cpu")
    assert llm.dtype is torch.bfloat16
    assert max(regret(llm, ids(llm, PROMPT), only(llm, PROMPT, GREEDY).token_ids)) < BFLOAT16_ROUNDING
