"""SamplingParams: what it accepts, what it refuses, and that the refusal names the parameter."""

import copy
import dataclasses
import pickle

import pytest

from tinylm.inference import InferenceError, SamplingParams


def test_defaults_are_vllms() -> None:
    params = SamplingParams()
    assert (params.n, params.temperature, params.top_k, params.top_p, params.min_p) == (1, 1.0, 0, 1.0, 0.0)
    assert (params.max_tokens, params.min_tokens, params.seed, params.logprobs) == (16, 0, None, None)
    assert (params.ignore_eos, params.detokenize, params.skip_special_tokens) == (False, True, True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "hot"),
        ("temperature", True),
        ("top_p", 0),
        ("top_p", 1.01),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("top_k", -2),
        ("top_k", 1.5),
        ("repetition_penalty", 0.0),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("n", 0),
        ("seed", -2),
        ("seed", 1.0),
        ("seed", True),
        ("max_tokens", 0),
        ("max_tokens", "16"),
        ("min_tokens", -1),
        ("stop", [""]),
        ("stop", ""),
        ("stop", [3]),
        ("stop", 3),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", "12"),
        ("stop_token_ids", 5),
        ("logprobs", -2),
        ("logit_bias", [1]),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {1: float("nan")}),
        ("ignore_eos", 1),
        ("detokenize", None),
    ],
)
def test_a_value_that_cannot_be_honoured_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InferenceError, match=name):
        SamplingParams(**{name: value})


@pytest.mark.parametrize(
    "name",
    ["best_of", "guided_decoding", "truncate_prompt_tokens", "logits_processors", "allowed_token_ids", "bad_words"],
)
def test_what_vllm_has_and_we_do_not_is_refused_by_name(name: str) -> None:
    with pytest.raises(InferenceError, match=rf"{name}.*not supported"):
        SamplingParams(**{name: 1})


def test_an_unknown_name_is_refused_and_the_known_ones_listed() -> None:
    with pytest.raises(InferenceError, match=r"no parameter 'temprature'.*temperature"):
        SamplingParams(temprature=1)


def test_contradictions_are_refused() -> None:
    with pytest.raises(InferenceError, match="min_tokens"):
        SamplingParams(min_tokens=5, max_tokens=4)
    with pytest.raises(InferenceError, match="n must be 1"):
        SamplingParams(n=2, temperature=0)
    with pytest.raises(InferenceError, match="detokenize"):
        SamplingParams(stop="x", detokenize=False)


def test_stop_may_be_one_string_or_several() -> None:
    assert SamplingParams(stop="end").stop_strings == ("end",)
    assert SamplingParams(stop=["a", "b"]).stop_strings == ("a", "b")
    assert SamplingParams().stop_strings == ()


def test_minus_one_means_no_seed_and_no_top_k() -> None:
    assert SamplingParams(seed=-1).seed is None
    assert SamplingParams(top_k=-1).top_k == -1


def test_parameters_are_values() -> None:
    params = SamplingParams(temperature=0.5, stop=["x"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.temperature = 1.0  # type: ignore[misc]  # that it fails is the point
    assert dataclasses.replace(params, top_k=5).stop == ["x"]
    assert copy.deepcopy(params) == params == pickle.loads(pickle.dumps(params))  # noqa: S301  # our own bytes
