"""The official `openai` client against the server: what it sends is honoured, what it gets it understands."""

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

torch = pytest.importorskip("torch")
openai = pytest.importorskip("openai")
pydantic = pytest.importorskip("pydantic")
pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")

from tinylm.inference import LLM, SamplingParams  # noqa: E402  # after importorskip

README = Path(__file__).parents[2] / "packages" / "tinylm-infer" / "README.md"
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TALK: Any = [{"role": "user", "content": "Who sings?"}]
WEATHER: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def api(client: Any) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{client.port}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_models(api: Any) -> None:
    (model,) = api.models.list()
    assert (model.id, api.models.retrieve("tiny")) == ("tiny", model)
    with pytest.raises(openai.NotFoundError, match="there is no model 'huge/one' here"):
        api.models.retrieve("huge/one")


def test_an_answer_goes_back_into_the_conversation_as_the_client_has_it(api: Any) -> None:
    first = api.chat.completions.create(model="tiny", messages=TALK, max_tokens=5, seed=1).choices[0].message
    for message in (first, first.model_dump(), {**first.model_dump(), "annotations": []}):
        talk = [*TALK, message, *TALK]
        told = api.chat.completions.create(model="tiny", messages=talk, max_tokens=5, seed=1)
        plain = [*TALK, {"role": "assistant", "content": first.content}, *TALK]
        assert told.choices == api.chat.completions.create(model="tiny", messages=plain, max_tokens=5, seed=1).choices


def test_a_completion_with_a_seed_and_stop(api: Any, long_llm: LLM) -> None:
    told = api.completions.create(model="tiny", prompt="The cook", max_tokens=30, seed=3, stop=["e"], temperature=0.9)
    expected = long_llm.generate("The cook", SamplingParams(max_tokens=30, seed=3, stop=["e"], temperature=0.9))[0]
    assert told.choices[0].text == expected.outputs[0].text
    assert told.usage.completion_tokens == len(expected.outputs[0].token_ids)
    assert told._request_id == told.id


def test_a_stream_is_the_whole_in_pieces(api: Any) -> None:
    wanted: Any = {"model": "tiny", "messages": TALK, "max_tokens": 20, "seed": 2}
    whole = api.chat.completions.create(**wanted)
    chunks = list(api.chat.completions.create(**wanted, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == whole.choices[0].message.content
    assert (chunks[-1].usage, chunks[-2].choices[0].finish_reason) == (whole.usage, whole.choices[0].finish_reason)


def test_logprobs_of_a_chat_and_of_its_stream(api: Any, long_llm: LLM) -> None:
    wanted: Any = {"model": "tiny", "messages": TALK, "max_tokens": 8, "seed": 2, "logprobs": True, "top_logprobs": 3}
    told = api.chat.completions.create(**wanted).choices[0].logprobs.content
    expected = long_llm.chat(TALK, SamplingParams(max_tokens=8, seed=2, logprobs=3))[0].outputs[0]
    for token, token_id, logprobs in zip(told, expected.token_ids, expected.logprobs, strict=True):
        assert bytes(token.bytes) == long_llm.tokenizer.id_to_bytes(token_id)
        assert token.logprob == pytest.approx(logprobs[token_id].logprob, abs=1e-4)
        likeliest = sorted((entry.logprob for entry in logprobs.values()), reverse=True)[:3]
        assert [top.logprob for top in token.top_logprobs] == pytest.approx(likeliest, abs=1e-4)
    chunks = list(api.chat.completions.create(**wanted, stream=True))
    streamed = [token for chunk in chunks for token in chunk.choices[0].logprobs.content]
    assert streamed == told


def test_echo_scores_the_prompt(api: Any, long_llm: LLM) -> None:
    """Token by token what the model makes of a text: what evaluation harnesses ask for."""
    text = "good soup! naïve 🙂"
    told = api.completions.create(model="tiny", prompt=text, max_tokens=0, echo=True, logprobs=2).choices[0]
    ids = long_llm.tokenizer.encode(text)
    logits = long_llm.model(torch.tensor([ids]))[0].detach().log_softmax(-1)
    expected = [float(logits[i, token_id]) for i, token_id in enumerate(ids[1:])]
    assert (told.text, told.finish_reason) == (text, "length")
    assert told.logprobs.token_logprobs[0] is None
    assert told.logprobs.token_logprobs[1:] == pytest.approx(expected, abs=1e-4)
    assert told.logprobs.text_offset == [len(long_llm.tokenizer.decode(ids[:i], "ignore")) for i in range(len(ids))]
    assert any(re.fullmatch(r"bytes:(\\x[0-9a-f]{2})+", token) for token in told.logprobs.tokens)
    assert all(2 <= len(top) <= 3 for top in told.logprobs.top_logprobs[1:])
    longer = api.completions.create(model="tiny", prompt=text, max_tokens=4, echo=True, logprobs=0, seed=1).choices[0]
    assert longer.logprobs.token_logprobs[: len(ids)] == pytest.approx(told.logprobs.token_logprobs, abs=1e-4)
    assert longer.text.startswith(text)
    assert longer.logprobs.text_offset[len(ids)] == len(text)
    chunks = list(
        api.completions.create(model="tiny", prompt=text, max_tokens=4, echo=True, logprobs=0, seed=1, stream=True)
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == longer.text
    assert [x for chunk in chunks for x in chunk.choices[0].logprobs.tokens] == longer.logprobs.tokens


def test_several_answers_with_logprobs(api: Any) -> None:
    told = api.completions.create(model="tiny", prompt=["The", "Who"], n=2, logprobs=1, max_tokens=5, seed=0)
    assert [choice.index for choice in told.choices] == [0, 1, 2, 3]
    for choice in told.choices:
        assert len(choice.logprobs.tokens) <= 5
        assert all(math.isfinite(logprob) for logprob in choice.logprobs.token_logprobs)


def test_json_by_schema_by_object_and_by_class(api: Any) -> None:
    import pydantic

    class Person(pydantic.BaseModel):
        name: str = pydantic.Field(max_length=6)
        age: int = pydantic.Field(ge=0, le=9)

    form: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    told = api.chat.completions.create(model="tiny", messages=TALK, response_format=form, max_tokens=300, seed=1)
    assert set(json.loads(told.choices[0].message.content)) == {"name", "age"}
    told = api.chat.completions.parse(model="tiny", messages=TALK, response_format=Person, max_tokens=300, seed=1)
    assert isinstance(told.choices[0].message.parsed, Person)
    told = api.completions.create(
        model="tiny", prompt="A", max_tokens=9, extra_body={"structured_outputs": {"choice": ["soup", "bread"]}}
    )
    assert told.choices[0].text in ("soup", "bread")


def test_json_that_is_cut_is_no_answer(api: Any) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    wanted: Any = {"model": "tiny", "messages": TALK, "response_format": form, "max_tokens": 3, "seed": 1}
    (choice,) = api.chat.completions.create(**wanted).choices
    assert (choice.message.content, choice.finish_reason) == (None, "length")
    with pytest.raises(openai.LengthFinishReasonError):
        api.chat.completions.parse(**wanted)
    with pytest.raises(openai.APIError, match="not complete after 3 tokens"):
        list(api.chat.completions.create(**wanted, stream=True))


def test_tools_reach_the_template(make_checkpoint: Callable[..., Path], served: Callable[..., Any]) -> None:
    directory = make_checkpoint(context=512)
    template = directory / "chat_template.jinja"
    shown = "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}"
    template.write_text(shown + template.read_text().replace("message['content']", "(message['content'] or 'calls')"))
    llm = LLM(str(directory), dtype="float32", device="cpu")
    call: Any = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    talk: Any = [*TALK, {"role": "assistant", "tool_calls": [call]}]
    talk += [{"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "Sunny."}]}]
    with (
        served(llm) as running,
        openai.OpenAI(base_url=f"http://127.0.0.1:{running.port}/v1", api_key="x", max_retries=0) as api,
    ):

        def tokens(**fields: Any) -> int:
            told = api.chat.completions.create(model="tiny", messages=talk, max_tokens=1, **fields)
            return int(told.usage.prompt_tokens)

        plain = tokens()
        text = llm.tokenizer.encode(json.dumps(WEATHER, ensure_ascii=False) + "\n")
        assert tokens(tools=[WEATHER]) == tokens(tools=[WEATHER], tool_choice="auto") == plain + len(text)
        assert tokens(tools=[WEATHER], tool_choice="none") == plain


@pytest.fixture(scope="module")
def tooled(make_checkpoint: Callable[..., Path], served: Callable[..., Any]) -> Iterator[Any]:
    """A client of a model whose template shows tools."""
    directory = make_checkpoint(context=2048)
    template = directory / "chat_template.jinja"
    template.write_text("{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}" + template.read_text())
    with (
        served(LLM(str(directory), dtype="float32", device="cpu")) as running,
        openai.OpenAI(base_url=f"http://127.0.0.1:{running.port}/v1", api_key="x", max_retries=0) as api,
    ):
        yield api


def test_a_tool_that_must_be_called_is_called_with_what_its_schema_admits(tooled: Any) -> None:
    class Hour(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="forbid")
        hour: Literal["noon", "night"]

    class Ring(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="forbid")
        at: Hour

    class Call(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="forbid")
        who: Literal["Romeo", "Juliet"]

    tools = [openai.pydantic_function_tool(made) for made in (Ring, Call)]
    wanted: Any = {"model": "tiny", "messages": TALK, "tools": tools, "max_tokens": 200}
    called = set()
    for seed in range(6):
        (choice,) = tooled.chat.completions.parse(**wanted, tool_choice="required", seed=seed).choices
        (call,) = choice.message.tool_calls
        assert (choice.message.content, choice.finish_reason) == (None, "tool_calls")
        assert isinstance(call.function.parsed_arguments, {"Ring": Ring, "Call": Call}[call.function.name])
        called.add(call.function.name)
    assert called == {"Ring", "Call"}
    named: Any = {"type": "function", "function": {"name": "Ring"}}
    told = tooled.chat.completions.create(**wanted, tool_choice=named, seed=1, n=2)
    for choice in told.choices:
        Ring.model_validate_json(choice.message.tool_calls[0].function.arguments)


def test_a_call_comes_whole_in_a_stream_or_not_at_all(tooled: Any) -> None:
    named: Any = {"type": "function", "function": {"name": "weather"}}
    wanted: Any = {"model": "tiny", "messages": TALK, "tools": [WEATHER], "tool_choice": named, "seed": 1}
    with tooled.chat.completions.stream(**wanted, max_tokens=300) as stream:
        kinds = [event.type for event in stream]
        (choice,) = stream.get_final_completion().choices
    assert kinds.count("tool_calls.function.arguments.done") == 1
    (call,) = choice.message.tool_calls
    assert (call.function.name, choice.finish_reason) == ("weather", "tool_calls")
    assert isinstance(json.loads(call.function.arguments), dict)
    (choice,) = tooled.chat.completions.create(**wanted, max_tokens=1).choices
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (None, None, "length")
    with pytest.raises(openai.APIError, match="not complete after 1 tokens"):
        list(tooled.chat.completions.create(**wanted, max_tokens=1, stream=True))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "rain"}}}, "no function 'rain'"),
        ({"tool_choice": "required", "tools": [WEATHER, WEATHER]}, "the same name"),
        ({"tool_choice": "required", "response_format": {"type": "json_object"}}, "no response_format"),
        ({"tools": [{"type": "function", "function": {**WEATHER["function"], "strict": True}}]}, "strict"),
    ],
)
def test_what_no_call_can_come_of_is_refused(tooled: Any, change: dict[str, Any], word: str) -> None:
    with pytest.raises(openai.BadRequestError, match=word):
        tooled.chat.completions.create(**{"model": "tiny", "messages": TALK, "tools": [WEATHER], **change})


def test_errors_are_the_clients_own(api: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-5'"):
        api.completions.create(model="gpt-5", prompt="x")
    with pytest.raises(openai.BadRequestError) as refused:
        api.completions.create(model="tiny", prompt="x", suffix="y")
    assert (refused.value.param, refused.value.type) == ("suffix", "invalid_request_error")


def test_a_key_is_asked_where_there_is_one(long_llm: LLM, served: Callable[..., Any]) -> None:
    with served(long_llm, api_key="sesame") as running:
        base = f"http://127.0.0.1:{running.port}/v1"
        with (
            openai.OpenAI(base_url=base, api_key="wrong", max_retries=0) as api,
            pytest.raises(openai.AuthenticationError),
        ):
            api.models.list()
        with openai.OpenAI(base_url=base, api_key="sesame") as api:
            assert len(list(api.models.list())) == 1
        assert running.ask("/health")[0] == 200


def test_the_script_of_the_readme_runs_as_printed(long_checkpoint: Path, tmp_path: Path) -> None:
    (script,) = re.findall(r"```python\n(from openai import .*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    command = [sys.executable, "-m", "tinylm.inference", "serve", str(long_checkpoint), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            address = re.search(r"http://127\.0\.0\.1:\d+/v1", process.stdout.readline())
            assert address
            script = script.replace("http://127.0.0.1:8000/v1", address[0])
            (tmp_path / "script.py").write_text(script, encoding="utf-8")
            done = subprocess.run(
                [sys.executable, str(tmp_path / "script.py")], capture_output=True, encoding="utf-8", check=False
            )
        finally:
            process.terminate()
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout.partition("tokens:\n")[2])
    assert answer["mood"] in ("merry", "sad")
