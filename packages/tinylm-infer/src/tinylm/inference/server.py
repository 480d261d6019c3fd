"""tinylm.inference: `tinylm-infer serve`, a checkpoint behind OpenAI's HTTP interface, on FastAPI and uvicorn.

The routes, the form of every error, and the process: how it starts, and how it stops. What happens to a request is in
`server_desk.py`, what is let in at all in `server_limits.py`, what a body may hold in `openai_api.py`.
"""

import asyncio
import math
import signal
import socket
import sys
import time
from collections.abc import AsyncGenerator
from collections.abc import Sequence as Items
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from starlette.exceptions import HTTPException

from tinylm.inference import chat_page
from tinylm.inference._errors import InferenceError
from tinylm.inference.llm import LLM
from tinylm.inference.openai_answers import error_object
from tinylm.inference.openai_api import CompletionBody
from tinylm.inference.openai_chat import ChatBody
from tinylm.inference.openai_schema import ANSWERS, publish
from tinylm.inference.server_desk import Desk
from tinylm.inference.server_limits import Gate, ServerLimits
from tinylm.inference.server_stream import json_response

_GRACE = 5  # seconds in which a client must take the end of its answer when the server stops
_SILENT = 60.0  # seconds within which a connection's next request must have come with all its headers


async def _fail(_: Request, error: Exception) -> Response:
    status, message = 500, "internal error; the server's log says more"
    if isinstance(error, HTTPException):
        status, message = error.status_code, str(error.detail)
    told = error_object(status, message, getattr(error, "param", None), getattr(error, "code", None))
    return json_response(status, told, getattr(error, "headers", None))  # 405 says there what is allowed


async def _refuse_body(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    told = []
    for fault in error.errors():
        place = _place(fault["loc"][1:], error.body, fault["type"] == "missing") or "body"
        if isinstance(fault.get("input"), bytes):  # curl's own type is a form's
            sent = request.headers.get("content-type", "none")[:100]
            told.append(f"the body must be sent with Content-Type: application/json, got {sent}")
            continue
        if fault["type"] == "json_invalid":
            told.append(f"the body is not JSON: {fault['ctx']['error']} at character {fault['loc'][-1]}")
        elif fault["type"] == "extra_forbidden":
            told.append(f"{place}: this server does not support it")
        else:
            told.append(f"{place}: {fault['msg']}")
    param = next((str(part) for part in error.errors()[0]["loc"][1:2] if isinstance(part, str)), None)
    return json_response(400, error_object(400, "; ".join(dict.fromkeys(told)), param and param[:100]))


def _place(path: Items[str | int], body: Any, missing: bool) -> str:
    """Where in the body: pydantic's path without the names of types that it tried there."""
    told = []
    for depth, part in enumerate(path, 1):
        is_key = part in body if isinstance(body, dict) else isinstance(body, list) and part in range(len(body))
        if is_key or (missing and depth == len(path)):
            told.append(str(part))
            body = body[part] if is_key else None
    return ".".join(told)


def build_app(llm: LLM, name: str, limits: ServerLimits | None = None) -> FastAPI:
    """The application; `name` is what requests call the model. The engine runs while the application does (lifespan).

    `app.state.desk` is the Desk, for whoever starts and stops it.
    """
    limits = limits or ServerLimits()
    desk = Desk(llm, name, limits)
    the_model = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "tinylm"}
    the_model["max_model_len"] = llm.engine.context

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
        desk.open()
        yield
        await asyncio.to_thread(desk.close)

    app = FastAPI(title="tinylm-infer", docs_url=None, redoc_url=None, lifespan=lifespan)  # those load foreign scripts
    app.state.desk = desk
    app.add_middleware(Gate, limits=limits)
    app.add_exception_handler(RequestValidationError, _refuse_body)
    for kind in (HTTPException, Exception):
        app.add_exception_handler(kind, _fail)

    app.include_router(chat_page.router(llm, name))

    @app.get("/health", **ANSWERS["health"])
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics", response_class=PlainTextResponse, **ANSWERS["metrics"])
    async def metrics() -> Response:
        return PlainTextResponse(desk.metrics_text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models", **ANSWERS["models"])
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [the_model]}

    @app.get("/v1/models/{model:path}", **ANSWERS["model"])  # a name may hold slashes
    async def one_model(model: str) -> dict[str, Any]:
        desk.check_name(model)
        return the_model

    @app.post("/v1/completions", **ANSWERS["completions"])
    async def completions(body: CompletionBody) -> Response:
        return desk.answer(body)

    @app.post("/v1/chat/completions", **ANSWERS["chat"])
    async def chat_completions(body: ChatBody) -> Response:
        return desk.answer(body)

    publish(app, name)
    return app


def bind(host: str, port: int) -> socket.socket:
    """The address to serve at, taken before a large model is read; 0 takes any free port."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        other = "--port" if host == "127.0.0.1" else "--port or --host"
        raise InferenceError(
            f"cannot serve at {host} port {port}: {error.strerror or error}; choose another {other}"
        ) from None
    return listener


class _Server(uvicorn.Server):
    """Lets what is being written end first, for `drain_seconds`; Ctrl-C breaks it off at once.

    Cuts connections on which no request comes: uvicorn waits for headers for ever, and ASGI begins behind them.
    """

    def __init__(self, app: FastAPI, name: str, limits: ServerLimits) -> None:
        seconds = math.ceil(limits.drain_seconds) + _GRACE
        # h11, also where httptools is installed: that takes headers of any size, loses a body behind "Upgrade: h2c"
        # (which Java's client sends) and streams in chunks to HTTP/1.0. It costs a few µs more a token.
        config = uvicorn.Config(app, http="h11", log_level="warning", ws="none", timeout_graceful_shutdown=seconds)
        super().__init__(config)
        self._desk, self._name, self._drain_seconds = app.state.desk, name, limits.drain_seconds
        self._waiting: dict[Any, tuple[Any, float]] = {}  # connection → the request it ended last, since when

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Says where only now: uvicorn has taken the signals over, so whoever reads the line may send one."""
        await super().startup(sockets)
        for listener in sockets or ():
            host, port = listener.getsockname()[:2]
            at = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            print(f"serving {self._name!r} at {at}/v1, chat at {at}/ (Ctrl-C ends it)", flush=True)

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second."""
        last = {one: getattr(one, "cycle", None) for one in self.server_state.connections}
        now, before = time.monotonic(), self._waiting
        self._waiting = {
            one: before[one] if one in before and before[one][0] is cycle else (cycle, now)
            for one, cycle in last.items()
            if cycle is None or cycle.response_complete
        }
        for one, (_, since) in self._waiting.items():
            if now - since > _SILENT:
                one.transport.close()
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        draining = self._drain_seconds > 0
        if sig == signal.SIGINT:
            self._drain_seconds = 0.0
        super().handle_exit(sig, frame)
        if draining:  # uvicorn leaves at once where Ctrl-C follows another signal: nobody would be told
            self.force_exit = False

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        stopping = asyncio.create_task(self._stop())
        await super().shutdown(sockets)
        stopping.cancel()

    async def _stop(self) -> None:
        begun = time.monotonic()
        while time.monotonic() < begun + self._drain_seconds:  # which Ctrl-C sets to 0 meanwhile
            await asyncio.sleep(0.1)
        await asyncio.to_thread(self._desk.close)


def serve(llm: LLM, name: str, listener: socket.socket, limits: ServerLimits | None = None) -> None:
    """Serves until SIGTERM (drains, then SystemExit 0) or Ctrl-C (breaks off, then KeyboardInterrupt)."""
    limits = limits or ServerLimits()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn stops first, then raises the signal again
    listener.listen(2048)
    app = build_app(llm, name, limits)
    try:
        _Server(app, name, limits).run(sockets=[listener])
    finally:
        app.state.desk.close()  # where a second Ctrl-C has skipped it: the engine's thread must not outlive Python
