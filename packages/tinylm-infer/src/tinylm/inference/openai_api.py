"""tinylm.inference: OpenAI's requests and answers as types: what a body may hold, and what goes back. No HTTP here.

A field that is not named here is refused, never ignored; names and shapes are those of OpenAI's API reference for
`/v1/completions` and `/v1/chat/completions`. `server.py` receives the bodies and sends the answers.
"""

import dataclasses
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tinylm.inference._errors import InferenceError
from tinylm.inference.generation import Generation
from tinylm.inference.llm import LLM
from tinylm.inference.sampling_params import SamplingParams

ANSWERS_LIMIT = 128  # texts from one request: prompts times n

Start = Callable[[SamplingParams], Generation]
TokenId = Annotated[str, Field(pattern="^(0|[1-9][0-9]{0,8})$")]  # a key in JSON is a string
Bias = Annotated[float, Field(ge=-100, le=100)]


class _Part(BaseModel):
    """A part of a request: "1" is no number, and a field that is not named is an error."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(_Part):
    include_usage: bool = False


class ChatMessage(_Part):
    role: Literal["system", "user", "assistant"]
    content: str


class Body(_Part):
    """What both endpoints take; null is the same as leaving a field out. `SamplingParams` checks the values."""

    model: str
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None  # vLLM's, as min_p is
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[TokenId, Bias] | None = None
    seed: int | None = None
    n: Annotated[int, Field(ge=1, le=ANSWERS_LIMIT)] | None = None
    max_tokens: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def drawing(self) -> dict[str, Any]:
        """The fields that `SamplingParams` has too."""
        names = {field.name for field in dataclasses.fields(SamplingParams)}
        values = self.model_dump(include=names, exclude_none=True)
        if self.logit_bias is not None:
            values["logit_bias"] = {int(token_id): bias for token_id, bias in self.logit_bias.items()}
        return values


class CompletionBody(Body):
    prompt: str | list[int] | list[str] | list[list[int]]

    def prompts(self) -> list[Any]:
        if isinstance(self.prompt, str) or not self.prompt:
            return [self.prompt or ""]
        if isinstance(self.prompt[0], int):
            return [{"prompt_token_ids": self.prompt}]
        return [p if isinstance(p, str) else {"prompt_token_ids": p} for p in self.prompt]


class ChatBody(Body):
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: int | None = None

    def drawing(self) -> dict[str, Any]:
        """Without a limit an answer may fill the context, as with OpenAI."""
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise InferenceError("max_tokens is the old name of max_completion_tokens: give one of them")
        return {"max_tokens": self.max_completion_tokens, **super().drawing()}


class Answer:
    """One request: its texts, written one after the other, and their form as OpenAI's JSON."""

    def __init__(self, llm: LLM, name: str, body: Body, starts: Sequence[Start]) -> None:
        """Checks everything that can be checked before the first token; ValueError says what is wrong."""
        if body.stream_options is not None and not body.stream:
            raise InferenceError("stream_options: only with stream = true")
        params = SamplingParams(**body.drawing())
        if len(starts) * params.n > ANSWERS_LIMIT:
            raise InferenceError(f"one request gives at most {ANSWERS_LIMIT} texts, got {len(starts)} prompts * n")
        if (highest := max(params.logit_bias or {}, default=0)) >= llm.model.config.vocab_size:
            raise InferenceError(f"logit_bias: token ids are 0 to {llm.model.config.vocab_size - 1}, got {highest}")
        seeds = [None if params.seed is None else params.seed + i for i in range(params.n)]
        self.generations = [start(dataclasses.replace(params, n=1, seed=s)) for start in starts for s in seeds]
        self.prompt_tokens = sum(len(g.prompt_token_ids) for g in self.generations[:: params.n])
        self.chat = isinstance(body, ChatBody)
        self.with_usage = body.stream_options is not None and body.stream_options.include_usage
        self._head = {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": "chat.completion" if self.chat else "text_completion",
            "created": int(time.time()),
            "model": name,
        }

    def whole(self) -> dict[str, Any]:
        choices = []
        for index, generation in enumerate(self.generations):
            message = {"role": "assistant", "content": generation.text}
            text = {"message": message} if self.chat else {"text": generation.text}
            choices.append({"index": index, **text, "logprobs": None, "finish_reason": generation.finish_reason})
        return {**self._head, "choices": choices, "usage": self._usage()}

    def chunk(self, index: int, piece: str, first: bool) -> dict[str, Any]:
        delta = {"role": "assistant", "content": piece} if first else {"content": piece}
        text = {"delta": delta} if self.chat else {"text": piece}
        reason = self.generations[index].finish_reason
        return self._chunk([{"index": index, **text, "logprobs": None, "finish_reason": reason}], None)

    def last_chunk(self) -> dict[str, Any]:
        return self._chunk([], self._usage())

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, int] | None) -> dict[str, Any]:
        kind = {"object": "chat.completion.chunk"} if self.chat else {}
        return {**self._head, **kind, "choices": choices, **({"usage": usage} if self.with_usage else {})}

    def _usage(self) -> dict[str, int]:
        written = sum(len(g.token_ids) for g in self.generations)
        total = self.prompt_tokens + written
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": written, "total_tokens": total}


def error_object(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The body of every answer that is not 200, and of a stream's event that ends it early."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message[:1000], "type": kind, "param": param, "code": code}}
