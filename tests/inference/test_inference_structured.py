"""Structured output: what is written is valid or fails, whatever the model would have liked; bombs are refused."""

import dataclasses
import json
import re
import sys
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("llguidance")

from tinylm.inference import LLM, InferenceError, SamplingParams, StructuredOutputsParams  # noqa: E402
from tinylm.inference.cli import main  # noqa: E402

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def params(*, max_tokens: int = 400, **form: Any) -> SamplingParams:
    return SamplingParams(structured_outputs=StructuredOutputsParams(**form), max_tokens=max_tokens, seed=1)


def test_a_schema_holds_for_every_seed(long_llm: LLM) -> None:
    """Random weights: nothing but the grammar makes this JSON."""
    several = [dataclasses.replace(params(json=PERSON), seed=seed) for seed in range(20)]
    for request in long_llm.generate(["A cook:"] * 20, several):
        (answer,) = request.outputs
        assert answer.finish_reason == "stop"
        person = json.loads(answer.text)
        assert set(person) == {"name", "age"}
        assert len(person["name"]) <= 8
        assert 0 <= person["age"] <= 99


def test_a_regex_a_choice_and_an_object(long_llm: LLM) -> None:
    forms: list[dict[str, Any]] = [
        {"regex": r"[a-c]{3}-[0-9]{2,4}"},
        {"choice": ["yes", "no", 'per"haps\n']},
        {"json": json.dumps({"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3})},
    ]
    dates, words, arrays = (long_llm.generate("A", params(**form))[0].outputs[0] for form in forms)
    assert re.fullmatch(r"[a-c]{3}-[0-9]{2,4}", dates.text)
    assert words.text in ("yes", "no", 'per"haps\n')
    assert {type(item) for item in json.loads(arrays.text)} == {bool}
    assert [answer.finish_reason for answer in (dates, words, arrays)] == ["stop"] * 3
    for seed in range(5):
        wanted = SamplingParams(structured_outputs=StructuredOutputsParams(json_object=True), max_tokens=40, seed=seed)
        answer = long_llm.generate("A", wanted)[0].outputs[0]
        if answer.finish_reason == "length":
            assert answer.text == ""
        else:
            assert isinstance(json.loads(answer.text), dict)


@pytest.mark.parametrize("form", [{"json": {"type": "array", "items": {"enum": [1, 2]}}}, {"json_object": True}])
def test_json_without_white_space(long_llm: LLM, form: dict[str, Any]) -> None:
    """A model that would rather write spaces: without it they are what comes; with it none comes between the parts."""
    ids = [long_llm.tokenizer.encode(space)[0] for space in " \n\t"]
    like = SamplingParams(max_tokens=40, seed=1, logit_bias=dict.fromkeys(ids, 100.0))
    texts = []
    for compact in (False, True):
        wanted = StructuredOutputsParams(**form, disable_any_whitespace=compact)
        asked = dataclasses.replace(like, structured_outputs=wanted)
        tokens = long_llm.generate("A", asked)[0].outputs[0].token_ids
        texts.append(long_llm.tokenizer.decode(tokens))
    assert re.match(r"[\[{]\s{8}", texts[0])
    assert re.match(r"[\[{]\S", texts[1])
    with pytest.raises(InferenceError, match="is for JSON, not for regex"):
        StructuredOutputsParams(regex="a", disable_any_whitespace=True)


def test_the_end_of_text_may_come_where_the_text_is_whole_and_nowhere_else(long_llm: LLM) -> None:
    eos = long_llm.tokenizer.eos_id
    wanted = SamplingParams(
        structured_outputs=StructuredOutputsParams(regex="a{3}b*"), max_tokens=50, logit_bias={eos: 1000.0}
    )
    answer = long_llm.generate("A", wanted)[0].outputs[0]
    assert (answer.text, answer.finish_reason, answer.token_ids[-1]) == ("aaa", "stop", eos)


def test_a_text_that_is_whole_at_max_tokens_is_valid(long_llm: LLM) -> None:
    answer = long_llm.generate("A", params(regex="[a-z]*", max_tokens=5))[0].outputs[0]
    assert re.fullmatch("[a-z]+", answer.text)


def test_a_text_that_is_cut_is_given_to_nobody(long_llm: LLM) -> None:
    cut = params(regex="[ab]{300}", max_tokens=5)
    whole = params(choice=["soup"])
    first, second = (request.outputs[0] for request in long_llm.generate(["A", "B"], [cut, whole]))
    assert (first.text, first.finish_reason, len(first.token_ids)) == ("", "length", 5)
    assert (second.text, second.finish_reason) == ("soup", "stop")
    pieces = long_llm.stream("A", cut)
    written: list[str] = []
    with pytest.raises(InferenceError, match="not complete after 5 tokens"):
        written.extend(pieces)
    assert re.fullmatch("[ab]{5,}", "".join(written))


def test_logprobs_stay_the_models_own(long_llm: LLM) -> None:
    wanted = SamplingParams(
        structured_outputs=StructuredOutputsParams(choice=["zq"]), max_tokens=9, logprobs=1, temperature=0
    )
    answer = long_llm.generate("A", wanted)[0].outputs[0]
    assert answer.text == "zq"
    assert len(answer.logprobs[0]) == 2  # the drawn one, and the likeliest, which the grammar forbade


@pytest.mark.parametrize("guess", [None, {"method": "ngram", "num_speculative_tokens": 3}], ids=["plain", "guessing"])
def test_guesses_ahead_change_nothing(long_checkpoint: Any, guess: Any) -> None:
    llm = LLM(str(long_checkpoint), dtype="float32", device="cpu", speculative_config=guess)
    answers = llm.generate(["ab ab ab ab", "b"], params(regex="(ab ){8}(yes|no)"))
    assert all(re.fullmatch("(ab ){8}(yes|no)", request.outputs[0].text) for request in answers)


def test_an_id_that_the_tokenizer_lacks_ends_no_text(make_checkpoint: Any) -> None:
    """A padded model has ids beyond the tokenizer's; the first of them is the end of the text to llguidance."""
    llm = LLM(str(make_checkpoint(vocab_size=320)), device="cpu")
    beyond, eos = llm.tokenizer.vocab_size, llm.tokenizer.eos_id
    form = StructuredOutputsParams(regex="a{3}b*")
    answer = llm.generate("A", SamplingParams(structured_outputs=form, logit_bias={beyond: 1000.0, eos: 900.0}))[0]
    assert answer.outputs[0].token_ids[-1] == eos
    assert answer.outputs[0].text == "aaa"


def bomb(depth: int) -> dict[str, Any]:
    """Each definition names the one before twice: written out, 2 ** depth strings."""
    definitions: dict[str, Any] = {"d0": {"type": "string"}}
    for i in range(1, depth):
        before = {"$ref": f"#/$defs/d{i - 1}"}
        definitions[f"d{i}"] = {"type": "object", "properties": {"a": before, "b": before}, "required": ["a", "b"]}
    return {"$ref": f"#/$defs/d{depth - 1}", "$defs": definitions}


@pytest.mark.parametrize(
    ("form", "word"),
    [
        ({"json": {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(3000)}}}, ""),
        ({"json": {"type": "integer", "allOf": [{"multipleOf": 7919}, {"multipleOf": 7907}]}}, "too complex"),
        ({"json": {"type": "integer", "multipleOf": 999999937}}, ""),
        ({"json": {"enum": [f"value {i}" for i in range(20000)]}}, "characters, and may have"),
        ({"regex": "a" * 100_000}, "characters, and may have"),
        ({"choice": ["soup"] * 20_000}, "characters, and may have"),
        ({"json": {"$ref": "http://example.com/schema.json"}}, ""),
        ({"json": {"oneOf": [{"type": "string"}, {"pattern": "a"}]}}, "oneOf"),
        ({"json": {"type": "strang"}}, "strang"),
        ({"json": "{"}, "not JSON"),
        ({"json": "[" * 100_0}, "not JSON"),
        ({"json": {"const": "\ud800"}}, "not JSON"),
        ({"json": {"const": {1}}}, "not JSON"),
        ({"regex": "\ud800"}, "surrogate"),
        ({"json": "false"}, "must be an object"),
        ({"regex": "(a{1000}){1000}"}, ""),  # its size shows at the second step
        ({"json": {"$ref": "#"}}, "no text fits"),
        ({"regex": "(a"}, "unclosed group"),
        ({"regex": "(?=a)b"}, "look-around"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_bombs_and_nonsense_are_refused(long_llm: LLM, form: dict[str, Any], word: str) -> None:
    with pytest.raises(InferenceError, match="structured output.*" + re.escape(word)):
        long_llm.generate("A", params(**form))
    assert long_llm.engine.cache_use == 0


def test_a_busy_machine_is_not_a_complex_grammar(long_llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said, and not remembered: the same grammar works once there is time."""
    with monkeypatch.context() as patch:
        patch.setattr("tinylm.inference.structured._PATIENCE", 0)
        with pytest.raises(InferenceError, match="the machine is busy, try again"):
            long_llm.generate("A", params(choice=["never tried before"]))
    answer = long_llm.generate("A", params(choice=["never tried before"]))[0].outputs[0]
    assert answer.text == "never tried before"


def test_a_schema_that_only_looks_like_a_bomb_works(long_llm: LLM) -> None:
    answer = long_llm.generate("A", params(json=bomb(60), max_tokens=3))[0].outputs[0]
    assert answer.finish_reason == "length"
    nested: dict[str, Any] = {"type": "boolean"}
    for _ in range(12):
        nested = {"type": "array", "items": nested, "minItems": 1, "maxItems": 1}
    answer = long_llm.generate("A", params(json=nested))[0].outputs[0]
    assert json.dumps(json.loads(answer.text)).replace(" ", "")[:12] == "[" * 12


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({}, "wanted one of"),
        ({"json": {}, "regex": "a"}, "wanted one of"),
        ({"grammar": "x"}, "grammar"),
        ({"json_schema": {}}, "json_schema"),
        ({"json": 3}, "JSON schema"),
        ({"regex": ""}, "regex"),
        ({"choice": []}, "choice"),
        ({"choice": "yes"}, "choice"),
        ({"choice": ["a", ""]}, "choice"),
    ],
    ids=str,
)
def test_what_is_no_form_is_refused_by_name(values: dict[str, Any], word: str) -> None:
    with pytest.raises(InferenceError, match=re.escape(word)):
        StructuredOutputsParams(**values)


@pytest.mark.parametrize("other", [{"stop": "x"}, {"stop_token_ids": [1]}, {"min_tokens": 2}, {"ignore_eos": True}])
def test_what_would_break_a_form_is_refused_beside_it(other: dict[str, Any]) -> None:
    with pytest.raises(InferenceError, match=next(iter(other))):
        SamplingParams(structured_outputs=StructuredOutputsParams(regex="a"), **other)
    with pytest.raises(InferenceError, match="must be a StructuredOutputsParams"):
        SamplingParams(structured_outputs={"regex": "a"})  # type: ignore[arg-type]


def test_the_command_writes_a_form_or_fails(
    long_checkpoint: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(PERSON))

    def run(*options: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tinylm-infer", "generate", str(long_checkpoint), "A:", *options])
        code = 0
        try:
            main()
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        told = capsys.readouterr()
        return code, told.out, told.err

    code, out, _ = run("--json-schema", str(schema), "--max-tokens", "400")
    assert (code, set(json.loads(out.removeprefix("A:")))) == (0, {"name", "age"})
    code, out, _ = run("--choice", "yes", "--choice", "no")
    assert (code, out) in ((0, "A:yes\n"), (0, "A:no\n"))
    code, out, err = run("--regex", "[ab]{90}", "--max-tokens", "5")
    assert (code, out[-1]) == (1, "\n")  # the error stands on a line of its own
    assert "not complete after 5 tokens" in err.splitlines()[-1]
    assert "Traceback" not in err
