"""tinylm.inference: what the bodies of OpenAI's requests may hold, as types. No HTTP here.

Names and shapes are those of OpenAI's API reference for `/v1/completions` and `/v1/chat/completions`, and what vLLM's
server takes beyond it. A field that is not named here is refused, never ignored. `server_desk.py` answers these bodies,
`openai_answers.py` gives the answers their form.
"""

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from tinylm.inference._errors import InferenceError
from tinylm.inference.sampling_params import SamplingParams
from tinylm.inference.structured_params import StructuredOutputsParams

ANSWERS_LIMIT = 128  # texts from one request: prompts times n
LOGPROBS_LIMIT = 20  # of the likeliest tokens at one place
STOP_LIMIT = 1024  # stop strings: each token is looked at for each of them


def _whole(value: Any) -> Any:
    """In JSON 64.0 is a whole number too."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)
TokenId = Annotated[int, Field(ge=0, lt=1 << 31), WHOLE]
TokenName = Annotated[str, Field(pattern="^(0|[1-9][0-9]{0,8})$")]  # a key in JSON is a string
Bias = Annotated[float, Field(ge=-100, le=100)]
Biases = Annotated[dict[TokenName, Bias], Field(json_schema_extra={"additionalProperties": False})]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1, lt=1 << 31), WHOLE]
Logprobs = Annotated[int, Field(ge=0, le=LOGPROBS_LIMIT), WHOLE]


class _Part(BaseModel):
    """A part of a request: "1" is no number, and a field that is not named is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(_Part):
    include_usage: bool = False


class StructuredOutputs(_Part):
    """vLLM's field: one of these."""

    schema_: dict[str, Any] | None = Field(None, alias="json")
    regex: Text | None = None
    choice: Annotated[list[Text], Field(min_length=1)] | None = None
    json_object: bool | None = None


class JsonSchema(_Part):
    name: Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,64}$")]
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class TextFormat(_Part):
    type: Literal["text"]


class JsonObjectFormat(_Part):
    type: Literal["json_object"]


class JsonSchemaFormat(_Part):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class Body(_Part):
    """What both endpoints take; null is the same as leaving a field out. `SamplingParams` checks the values too."""

    model: str
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Biases | None = None
    seed: Annotated[int, Field(ge=-1), WHOLE] | None = None
    n: Annotated[int, Field(ge=1, le=ANSWERS_LIMIT), WHOLE] | None = None
    max_tokens: Annotated[int, Field(ge=0, lt=1 << 31), WHOLE] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=STOP_LIMIT)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # vLLM's, beyond OpenAI's
    top_k: Annotated[int, Field(ge=-1), WHOLE] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    min_tokens: Annotated[int, Field(ge=0), WHOLE] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=STOP_LIMIT)] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    response_format: ResponseFormat | None = None

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self) -> SamplingParams:
        """The fields that `SamplingParams` has too. InferenceError for what cannot go together."""
        if self.stream_options is not None and not self.stream:
            raise InferenceError("stream_options: only with stream = true")
        return SamplingParams(**self._values())

    def _values(self) -> dict[str, Any]:
        names = {field.name for field in dataclasses.fields(SamplingParams)}
        values = self.model_dump(include=names, exclude_none=True)
        if self.logit_bias is not None:
            values["logit_bias"] = {int(token_id): bias for token_id, bias in self.logit_bias.items()}
        values["structured_outputs"] = self.structure()
        return values

    def structure(self) -> StructuredOutputsParams | None:
        """The form that the text must have; always the whole of it, so a schema's `strict` changes nothing."""
        wanted, form = self.structured_outputs, self.response_format
        if isinstance(form, TextFormat):
            form = None
        if wanted is not None and form is not None:
            raise InferenceError("response_format and structured_outputs say the same thing: give one of them")
        if wanted is not None:
            return StructuredOutputsParams(**wanted.model_dump(by_alias=True))
        if form is None:
            return None
        if isinstance(form, JsonSchemaFormat):
            return StructuredOutputsParams(json=form.json_schema.schema_)
        return StructuredOutputsParams(json_object=True)


class CompletionBody(Body):
    prompt: str | list[TokenId] | list[str] | list[list[TokenId]]
    echo: bool | None = None
    logprobs: Logprobs | None = None

    @property
    def only_echo(self) -> bool:
        """max_tokens = 0: the prompt comes back, and nothing after it."""
        return self.max_tokens == 0

    def prompts(self) -> list[Any]:
        """Prompts of `LLM.generate`."""
        if isinstance(self.prompt, str) or not self.prompt:
            return [self.prompt or ""]
        if isinstance(self.prompt[0], int):
            return [{"prompt_token_ids": self.prompt}]
        return [p if isinstance(p, str) else {"prompt_token_ids": p} for p in self.prompt]

    def _values(self) -> dict[str, Any]:
        values = super()._values()
        if self.only_echo:
            if not self.echo:
                raise InferenceError("max_tokens: 0 only with echo = true, which gives the prompt back")
            values["max_tokens"] = 1  # the model reads the prompt to its end; what it would write on is dropped
        if self.echo and self.logprobs is not None:
            values["prompt_logprobs"] = self.logprobs
        return values


class TextPart(_Part):
    type: Literal["text"]
    text: str


class FunctionCall(_Part):
    name: str
    arguments: str


class ToolCall(_Part):
    id: str
    type: Literal["function"]
    function: FunctionCall


class ChatMessage(_Part):
    """As in OpenAI's API, text only. What the template does with names and calls of tools is up to the checkpoint."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    tool_calls: Annotated[list[ToolCall], Field(min_length=1)] | None = None
    tool_call_id: str | None = None

    def plain(self) -> dict[str, Any]:
        """What a chat template reads; the text in one piece."""
        told = self.model_dump(exclude_none=True)
        if isinstance(self.content, list):
            told["content"] = "".join(part.text for part in self.content)
        if "content" not in told and self.tool_calls is None:
            raise InferenceError(f"messages: the content of a message with the role {self.role!r} is missing")
        for name, role in (("tool_calls", "assistant"), ("tool_call_id", "tool")):
            if name in told and self.role != role:
                raise InferenceError(f"messages: {name} only in a message with the role {role!r}")
        return told


class Function(_Part):
    name: Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(_Part):
    type: Literal["function"]
    function: Function


class ChatBody(Body):
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Logprobs | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["auto", "none"] | None = None

    def conversation(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
        """(messages, tools) of `LLM.chat_prompt`."""
        if self.tool_choice == "auto" and not self.tools:
            raise InferenceError('tool_choice: "auto" only with tools')
        shown = [] if self.tool_choice == "none" else self.tools or []
        return [m.plain() for m in self.messages], [t.model_dump(exclude_none=True) for t in shown] or None

    def _values(self) -> dict[str, Any]:
        """Without a limit an answer may fill the context, as with OpenAI."""
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise InferenceError("max_tokens is the old name of max_completion_tokens: give one of them")
        if self.top_logprobs is not None and not self.logprobs:
            raise InferenceError("top_logprobs: only with logprobs = true")
        wanted = {"logprobs": self.top_logprobs or 0} if self.logprobs else {"logprobs": None}
        return {"max_tokens": self.max_completion_tokens, **super()._values(), **wanted}
