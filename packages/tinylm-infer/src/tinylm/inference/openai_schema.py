"""tinylm.inference: what the server's answers look like, for `/openapi.json`: types that document, and build nothing.

The answers are made in `openai_answers.py`; what requests may hold is in `openai_api.py`. `publish` puts it together.
"""

from typing import Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict

from tinylm.inference.openai_chat import ToolCall


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Error(_Answer):
    message: str
    type: Literal["invalid_request_error", "server_error"]
    param: str | None
    code: str | None


class ErrorAnswer(_Answer):
    error: Error


class Health(_Answer):
    status: Literal["ok"]


class Model(_Answer):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelList(_Answer):
    object: Literal["list"]
    data: list[Model]


class Usage(_Answer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TextLogprobs(_Answer):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TopLogprob(_Answer):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(_Answer):
    content: list[TokenLogprob]


class TextChoice(_Answer):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatAnswerMessage(_Answer):
    role: Literal["assistant"]
    content: str | None
    tool_calls: list[ToolCall] | None = None  # left out where there is none


class ChatChoice(_Answer):
    index: int
    message: ChatAnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class _Whole(_Answer):
    id: str
    created: int
    model: str
    usage: Usage


class CompletionAnswer(_Whole):
    object: Literal["text_completion"]
    choices: list[TextChoice]


class ChatAnswer(_Whole):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]


_REFUSED: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorAnswer, "description": "Refused; the message says why"},
    "5XX": {"model": ErrorAnswer, "description": "Not done; the message says why"},
}
_STREAM: dict[str, Any] = {"text/event-stream": {}}  # OpenAPI 3.1 has no word for the events of a stream

#: Arguments of a route: what it answers, in the schema.
ANSWERS: dict[str, dict[str, Any]] = {
    "health": {"response_model": Health, "responses": _REFUSED},
    "metrics": {"responses": {**_REFUSED, 200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}},
    "models": {"response_model": ModelList, "responses": _REFUSED},
    "model": {"response_model": Model, "responses": _REFUSED},
    "completions": {"response_model": CompletionAnswer, "responses": {**_REFUSED, 200: {"content": _STREAM}}},
    "chat": {"response_model": ChatAnswer, "responses": {**_REFUSED, 200: {"content": _STREAM}}},
}


def publish(app: FastAPI, name: str) -> None:
    """The schema at /openapi.json also says which model there is."""
    schema = app.openapi()
    for body in ("CompletionBody", "ChatBody"):
        schema["components"]["schemas"][body]["properties"]["model"]["enum"] = [name]
