"""tinylm.inference: where requests are taken in, wait, and are answered: from OpenAI's bodies to the engine and back.

Tokenizing is done by one thread, computing by the engine's own; the event loop stays free. What a body may hold is in
`openai_api.py`, the answers' form in `openai_answers.py`, sending in `server_stream.py`.
"""

import asyncio
import math
import uuid
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing

from fastapi import Response
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from tinylm.inference import structured
from tinylm.inference._errors import InferenceError, ParameterError
from tinylm.inference.async_engine import AsyncEngine
from tinylm.inference.llm import LLM
from tinylm.inference.openai_answers import Answer, error_object
from tinylm.inference.openai_api import ANSWERS_LIMIT, Body, CompletionBody
from tinylm.inference.openai_chat import ChatBody
from tinylm.inference.outputs import TokenOutput
from tinylm.inference.sequence import Sequence
from tinylm.inference.server_limits import ServerLimits
from tinylm.inference.server_metrics import Metrics
from tinylm.inference.server_stream import EventStream, json_response, while_connected


class Refusal(HTTPException):
    """An HTTP error that also says which parameter is meant, and OpenAI's code for it."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(status, message)
        self.param, self.code = param, code


class Desk:
    """Answers requests, any number at a time. `open` starts the engine's thread, `close` ends what is being written."""

    def __init__(self, llm: LLM, name: str, limits: ServerLimits) -> None:
        self.metrics = Metrics()
        self.waiting = 0  # requests without a first token
        self.llm, self.name, self.limits = llm, name, limits
        self.preparing = ThreadPoolExecutor(1, "tinylm-prepare")
        self.trying = ThreadPoolExecutor(1, "tinylm-grammar")

    def open(self) -> None:
        self.engine = AsyncEngine(self.llm.engine)

    def close(self) -> None:
        """Whoever waits for an answer, now or later, is told that the server is stopping."""
        if hasattr(self, "engine"):  # it was opened
            self.engine.close()

    def metrics_text(self) -> str:
        return self.metrics.text(self.llm.engine, self.waiting)

    def check_name(self, model: str) -> None:
        """HTTPException for another model's name."""
        if model != self.name:
            message = f"there is no model {model[:100]!r} here; this server has {self.name!r}"
            raise Refusal(404, message, "model", "model_not_found")

    def answer(self, body: Body) -> Response:
        """The answer to one request, computed while it is sent. HTTPException where there is none."""
        self.check_name(body.model)
        if self.waiting >= self.limits.waiting:
            self.metrics.ended["refused"] += 1
            seconds = min(60, max(1, math.ceil(self.metrics.first_token.mean)))  # as long as it took so far
            message = f"{self.waiting} requests wait for their first token already: try again in {seconds} s"
            raise HTTPException(429, message, {"Retry-After": str(seconds)})
        return Exchange(self, body)


class Exchange(Response):
    """One request and its answer. Whatever becomes of it, its texts end and it is counted once."""

    def __init__(self, desk: Desk, body: Body) -> None:
        super().__init__()
        self._desk, self._body = desk, body
        self._name = f"{'chatcmpl' if isinstance(body, ChatBody) else 'cmpl'}-{uuid.uuid4().hex}"
        self._last: dict[tuple[str, int], float] = {}  # when each text's last token came
        self._reason = "error"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._arrival = asyncio.get_running_loop().time()
        self._desk.waiting += 1
        try:
            if not await while_connected(receive, self._answer(scope, receive, send)):
                self._reason = "left"
        except HTTPException as error:
            self._reason = _reason(error)
            raise
        finally:
            if not self._last:
                self._desk.waiting -= 1
            self._desk.metrics.ended[self._reason] += 1
            self._desk.metrics.whole.observe(asyncio.get_running_loop().time() - self._arrival)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop, desk = asyncio.get_running_loop(), self._desk
        try:
            if (form := self._body.structure()) is not None:
                await loop.run_in_executor(desk.trying, structured.grammar, form)  # may take seconds to refuse
            sequences = await loop.run_in_executor(desk.preparing, self._prepare)
        except ValueError as error:  # the base of every package's own error
            raise Refusal(400, str(error), code=getattr(error, "code", None)) from None
        answer = Answer(self._name, desk.name, self._body, sequences, desk.llm.tokenizer)
        desk.metrics.prompt_tokens += answer.prompt_tokens
        headers = {"X-Request-Id": self._name}
        async with aclosing(self._events(sequences)) as events:
            if self._body.stream:
                await self._stream(EventStream(send, headers), events, answer)
            else:
                async for event in events:
                    answer.take(event)
                self._reason = answer.reason
                await json_response(200, answer.whole(), headers)(scope, receive, send)

    def _prepare(self) -> list[Sequence]:
        """The request's texts, checked: n of each prompt. ValueError says what is wrong."""
        body, llm = self._body, self._desk.llm
        params, ends = body.sampling(), None
        if isinstance(body, ChatBody):
            messages, tools = body.conversation()
            prompts, ends = (
                [llm.prompt_ids({"prompt_token_ids": llm.chat_prompt(messages, tools)})],
                llm.ends_of_answer(),
            )
        else:
            assert isinstance(body, CompletionBody)
            prompts = [llm.prompt_ids(prompt) for prompt in body.prompts()]
        if len(prompts) * params.n > ANSWERS_LIMIT:
            raise InferenceError(f"one request gives at most {ANSWERS_LIMIT} texts, got {len(prompts)} prompts * n")
        return [
            llm.engine.make_sequence(f"{self._name}-{place}", prompt, params, ends, index)
            for place, prompt in enumerate(prompts)
            for index in range(params.n)
        ]

    async def _events(self, sequences: list[Sequence]) -> AsyncGenerator[TokenOutput, None]:
        """What the engine writes, counted and timed. HTTPException where a text could not be written to its end."""
        seconds = self._desk.limits.request_seconds
        try:
            events = self._desk.engine.run(sequences, None if seconds is None else self._arrival + seconds)
            async with aclosing(events):
                async for event in events:
                    if event.finish_reason == "error":
                        raise HTTPException(400 if isinstance(event.error, ParameterError) else 500, str(event.error))
                    if event.finish_reason == "abort":
                        raise HTTPException(503, "the server is stopping")
                    self._count(event)
                    yield event
        except TimeoutError:
            raise HTTPException(504, f"the answer was not finished within {seconds:g} s") from None
        except InferenceError:
            raise HTTPException(503, "the server is stopping") from None

    def _count(self, event: TokenOutput) -> None:
        now, metrics, text = asyncio.get_running_loop().time(), self._desk.metrics, (event.request_id, event.index)
        metrics.written_tokens += 1
        if text in self._last:
            metrics.each_token.observe(now - self._last[text])
        elif not self._last:
            metrics.first_token.observe(now - self._arrival)
            self._desk.waiting -= 1
        self._last[text] = now

    async def _stream(self, stream: EventStream, events: AsyncGenerator[TokenOutput, None], answer: Answer) -> None:
        await stream.begin()
        try:
            async for event in events:
                for chunk in answer.chunks(answer.take(event)):
                    await stream.send(chunk)
        except HTTPException as error:  # the status has gone out: an event says it instead, and no [DONE] follows
            await stream.send(error_object(error.status_code, error.detail))
            self._reason = _reason(error)
        else:
            self._reason = answer.reason
            if self._body.with_usage:
                await stream.send(answer.last_chunk())
            if answer.error is None:
                await stream.send("[DONE]")
            else:  # the pieces are out already: the stream itself fails
                await stream.send(error_object(400, str(answer.error), "max_tokens", "structured_output_incomplete"))
        await stream.end()


def _reason(error: HTTPException) -> str:
    return {503: "stopping", 504: "late"}.get(error.status_code, "error" if error.status_code >= 500 else "refused")
