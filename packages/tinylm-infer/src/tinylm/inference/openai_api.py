"""tinylm.inference: what the bodies of OpenAI's requests may hold, as types; a chat's: `openai_chat.py`. No HTTP here.

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


class Part(BaseModel):
    """A part of a request: "1" is no number, and a field that is not named is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Part):
    include_usage: bool = False


class StructuredOutputs(Part):
    """vLLM's field: one of these."""

    schema_: dict[str, Any] | None = Field(None, alias="json")
    regex: Text | None = None
    choice: Annotated[list[Text], Field(min_length=1)] | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = False


class JsonSchema(Part):
    name: Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,64}$")]
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class TextFormat(Part):
    type: Literal["text"]


class JsonObjectFormat(Part):
    type: Literal["json_object"]


class JsonSchemaFormat(Part):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class Body(Part):
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
