"""tinylm.inference: `tinylm-infer serve`, a checkpoint behind OpenAI's HTTP interface, on FastAPI and uvicorn.

`/health`, `/v1/models`, `/v1/completions` and `/v1/chat/completions`, whole or streamed. One request computes at a
time, the others wait in line; a client that leaves ends its request. Not here: batching, a limit on the line, metrics,
keys. What a body may hold and what goes back is in `openai_api.py`, how a text is written in `llm.py`.
"""

import asyncio
import json
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tinylm.inference import chat_page
from tinylm.inference._errors import InferenceError
from tinylm.inference.llm import LLM
from tinylm.inference.openai_api import Answer, Body, ChatBody, CompletionBody, Start, error_object

BODY_LIMIT = 1 << 20  # bytes of one request
_GRACE = 5  # seconds in which a client must take the end of its answer when the server stops


class _Desk:
    """Where requests wait in line. Model and tokenizer are used by one thread only; the event loop stays free."""

    def __init__(self, llm: LLM, name: str, closing: Callable[[], bool]) -> None:
        self._llm, self._name, self._closing = llm, name, closing
        self._line = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1)

    async def answer(self, request: Request, body: Body, starts: Sequence[Start]) -> Response:
        if body.model != self._name:
            message = f"there is no model {body.model[:100]!r} here; this server has {self._name!r}"
            return _json(404, error_object(404, message, "model", "model_not_found"))
        loop = asyncio.get_running_loop()
        try:
            answer = await loop.run_in_executor(self._thread, Answer, self._llm, self._name, body, starts)
        except ValueError as error:  # the base of every package's own error
            return _json(400, error_object(400, str(error)))
        if body.stream:
            headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # proxies pass it on at once
            return StreamingResponse(self._events(request, answer), media_type="text/event-stream", headers=headers)
        async for _ in self._write(request, answer):
            pass
        return _json(200, answer.whole())

    async def _write(self, request: Request, answer: Answer) -> AsyncIterator[tuple[int, str]]:
        """(index of the text, piece) per token. Ends early, and unread, when the client has left."""
        loop = asyncio.get_running_loop()
        async with self._line:
            for index, generation in enumerate(answer.generations):
                while generation.finish_reason is None:
                    if self._closing():
                        raise HTTPException(503, "the server is stopping")
                    if await request.is_disconnected():
                        return
                    yield index, await loop.run_in_executor(self._thread, next, generation.steps(), "")

    async def _events(self, request: Request, answer: Answer) -> AsyncIterator[str]:
        """Server-sent events. They queue up here, so that a client that reads slowly does not hold up the line."""
        queue: asyncio.Queue[str | None] = asyncio.Queue()
        writing = asyncio.create_task(self._fill(queue, request, answer))
        try:
            while (event := await queue.get()) is not None:
                yield f"data: {event}\n\n"
            await writing  # an error that nobody expected comes out here, and into the log
        finally:
            writing.cancel()

    async def _fill(self, queue: "asyncio.Queue[str | None]", request: Request, answer: Answer) -> None:
        begun: set[int] = set()
        try:
            async for index, piece in self._write(request, answer):
                if piece or index not in begun or answer.generations[index].finish_reason is not None:
                    queue.put_nowait(json.dumps(answer.chunk(index, piece, index not in begun)))
                    begun.add(index)
            if answer.with_usage:
                queue.put_nowait(json.dumps(answer.last_chunk()))
            queue.put_nowait("[DONE]")
        except Exception as error:
            queue.put_nowait(json.dumps(error_object(*_status(error))))
            if not isinstance(error, HTTPException | InferenceError):
                raise
        finally:
            queue.put_nowait(None)


class _BodyLimit:
    """Refuses a body with 413 as soon as it has grown too long, declared or not."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > BODY_LIMIT:
                raise HTTPException(413, f"a request is at most {BODY_LIMIT} bytes long")
            return message

        await self._app(scope, counted, send)


def _json(status: int, value: dict[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    return Response(json.dumps(value), status, headers, "application/json")  # ASCII: a lone surrogate has no UTF-8


def _status(error: Exception) -> tuple[int, str]:
    if isinstance(error, HTTPException):
        return error.status_code, str(error.detail)
    return 500, str(error) if isinstance(error, InferenceError) else "internal error; the server's log says more"


async def _fail(_: Request, error: Exception) -> Response:
    status, message = _status(error)
    return _json(
        status, error_object(status, message), getattr(error, "headers", None)
    )  # 405 says in one what is allowed


async def _refuse_body(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    told = []
    for fault in error.errors():
        place = ".".join(map(str, fault["loc"][1:])) or "body"
        if fault["type"] == "json_invalid":
            told.append(f"the body is not JSON: {fault['ctx']['error']} at character {place}")
        elif fault["type"] == "extra_forbidden":
            told.append(f"{place}: this server does not support it")
        else:
            told.append(f"{place}: {fault['msg']}")
    param = next((str(part) for part in error.errors()[0]["loc"][1:2] if isinstance(part, str)), None)
    return _json(400, error_object(400, "; ".join(told), param and param[:100]))


def build_app(llm: LLM, name: str, closing: Callable[[], bool] = lambda: False) -> FastAPI:
    """The application. `name`: what requests call the model; `closing`: when true, what is being written breaks off."""
    app = FastAPI(title="tinylm-infer", docs_url=None, redoc_url=None)  # those pages would load scripts from elsewhere
    desk, created = _Desk(llm, name, closing), int(time.time())
    app.add_middleware(_BodyLimit)
    app.add_exception_handler(RequestValidationError, _refuse_body)
    for kind in (HTTPException, InferenceError, Exception):
        app.add_exception_handler(kind, _fail)

    app.include_router(chat_page.router(llm, name))

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": name, "object": "model", "created": created, "owned_by": "tinylm"}]}

    @app.post("/v1/completions")
    async def completions(body: CompletionBody, request: Request) -> Response:
        return await desk.answer(request, body, [partial(llm.stream, prompt) for prompt in body.prompts()])

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatBody, request: Request) -> Response:
        return await desk.answer(request, body, [partial(llm.stream_chat, [m.model_dump() for m in body.messages])])

    return app


def bind(host: str, port: int) -> socket.socket:
    """The address to serve at, taken before a large model is read; 0 takes any free port."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise InferenceError(
            f"cannot serve at {host} port {port}: {error.strerror or error}; choose another --port or --host"
        ) from None
    return listener


def serve(llm: LLM, name: str, listener: socket.socket) -> None:
    """Serves until SIGTERM (then SystemExit 0) or Ctrl-C (then KeyboardInterrupt). What is being written breaks off."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn stops first, then raises the signal again
    app = build_app(llm, name, closing=lambda: server.should_exit)
    config = uvicorn.Config(app, log_level="warning", lifespan="off", ws="none", timeout_graceful_shutdown=_GRACE)
    server = uvicorn.Server(config)
    listener.listen(2048)
    host, port = listener.getsockname()[:2]
    address = f"[{host}]" if ":" in host else host
    print(f"serving {name!r} at http://{address}:{port}/v1 (Ctrl-C ends it)", flush=True)
    server.run(sockets=[listener])
