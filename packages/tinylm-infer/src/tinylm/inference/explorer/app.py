"""tinylm.inference: the explorer's page and its data over HTTP, on this machine alone.

Every answer is one function's dataclass as JSON; what cannot be shown is `{"error": "..."}` with status 400. All of it
is computed in one thread, one question at a time; what takes long is begun and asked for (`background.py`). The page
itself is `page/`.
"""

import asyncio
import dataclasses
import json
import signal
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.staticfiles import StaticFiles

from tinylm.inference.explorer import arithmetic, choice, history, layers, rungs, tokens, writing
from tinylm.inference.explorer.background import Background, Status
from tinylm.inference.explorer.library import Library, Point
from tinylm.inference.explorer.reading import LIMIT, Readings
from tinylm.inference.sampling_params import SamplingParams

PAGE = Path(__file__).parent / "page"
BUDGET = 0.5  # seconds of writing in one answer
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'",
}


class Ask(BaseModel):
    """Which model looks at which text."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    point: int
    text: Annotated[str, Field(max_length=1_000_000)]


class AskDrawn(Ask):
    """The knobs, under their names in SamplingParams."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def params(self, **more: Any) -> SamplingParams:
        knobs: dict[str, Any] = {
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
        }
        return SamplingParams(**knobs, **more)


class AskChoice(AskDrawn):
    """After which token, and the draw."""

    position: int = -1
    uniform: float = 0.5


class AskWriting(AskDrawn):
    """How many tokens."""

    seed: int = 0
    count: Annotated[int, Field(ge=1, le=writing.MOST)] = 24


class AskHistory(Ask):
    """After which token to guess."""

    position: Annotated[int, Field(ge=0)] = 0


class AskNumber(Ask):
    """Which number: "blocks.0.mlp/5/17"."""

    value: str


class AskRung(Ask):
    """Which rung, over how many of the text's tokens."""

    rung: str
    tokens: Annotated[int, Field(ge=1)]


class AskWork(BaseModel):
    """Work that was begun, by the number it was given."""

    model_config = ConfigDict(extra="forbid")
    id: int


def build_app(library: Library, background: Background | None = None) -> FastAPI:
    """The application over the library's models; `background`: what its long work runs in."""
    app = FastAPI(title="tinylm-infer explore", docs_url=None, redoc_url=None)
    # Another site's page that got its own name to point here would ask with that name.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"])
    readings, thread, work = Readings(library), ThreadPoolExecutor(1), background or Background()

    async def answer(function: Callable[..., Any], *arguments: Any) -> Response:
        value = await asyncio.get_running_loop().run_in_executor(thread, lambda: _plain(function(*arguments)))
        return _json(200, value)

    @app.exception_handler(ValueError)  # the base of every package's own error
    async def refuse(_: Request, error: Exception) -> Response:
        return _json(400, {"error": str(error)})

    @app.exception_handler(RequestValidationError)
    async def refuse_body(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        told = [f"{'.'.join(map(str, fault['loc'][1:]))}: {fault['msg']}" for fault in error.errors()]
        return _json(400, {"error": "; ".join(told)})

    @app.get("/api/models")
    async def models() -> Response:
        def listed() -> dict[str, Any]:
            library.look()  # each time that the page is loaded: a run may go on while it is open
            return {"limit": LIMIT, "points": [_describe(library, number) for number in library.listed]}

        return await answer(listed)

    @app.post("/api/tokens")
    async def of_tokens(ask: Ask) -> Response:
        return await answer(lambda: tokens.tokenize(library.open(ask.point), ask.text))

    @app.post("/api/layers")
    async def of_layers(ask: Ask) -> Response:
        return await answer(lambda: layers.layers(readings.see(ask.point, ask.text)))

    @app.post("/api/lens")
    async def of_lens(ask: Ask) -> Response:
        return await answer(lambda: layers.lens(readings.see(ask.point, ask.text)))

    @app.post("/api/choice")
    async def of_choice(ask: AskChoice) -> Response:
        return await answer(
            lambda: choice.choose(readings.see(ask.point, ask.text), ask.position, ask.params(), ask.uniform)
        )

    texts: dict[tuple[Point, str], writing.Writing] = {}  # the last one asked for, which is written on

    @app.post("/api/writing")
    async def of_writing(ask: AskWriting) -> Response:
        def go_on() -> writing.Written:
            key = library.point(ask.point), ask.model_dump_json()
            if key not in texts:
                params = ask.params(seed=ask.seed, max_tokens=ask.count, logprobs=writing.COMPARED)
                ids = readings.read(ask.point, ask.text).ids
                texts.clear()
                texts[key] = writing.Writing(library.open(ask.point), ids, params)
            return texts[key].go_on(BUDGET)

        return await answer(go_on)

    @app.post("/api/history")
    async def of_history(ask: AskHistory) -> Response:
        return await answer(lambda: history.history(readings, ask.point, ask.text, ask.position))

    @app.post("/api/rungs")
    async def of_rungs(ask: Ask) -> Response:
        return await answer(lambda: rungs.rungs(readings.see(ask.point, ask.text)))

    @app.post("/api/rungs/start")
    async def start_rung(ask: AskRung) -> Response:
        def begin() -> Status:
            seen = readings.see(ask.point, ask.text)
            return work.start(lambda progress: rungs.run(ask.rung, seen, ask.tokens, progress))

        return await answer(begin)

    @app.post("/api/rungs/status")
    async def of_rung(ask: AskWork) -> Response:
        return _json(200, _plain(work.status(ask.id)))

    @app.post("/api/rungs/cancel")
    async def cancel_rung(ask: AskWork) -> Response:
        return _json(200, _plain(await asyncio.to_thread(work.cancel, ask.id)))

    @app.post("/api/number")
    async def of_number(ask: AskNumber) -> Response:
        def found() -> arithmetic.Number:
            checkpoint, read, trace = readings.trace(ask.point, ask.text)
            return arithmetic.number(checkpoint.model, read.ids, trace, ask.value)

        return await answer(found)

    @app.middleware("http")
    async def headers(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        response.headers.update(_HEADERS)
        return response

    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Says where the page is only now, when uvicorn has taken Ctrl-C over."""
        await super().startup(sockets)
        for listener in sockets or ():
            host, port = listener.getsockname()[:2]
            print(f"the explorer is at http://{host}:{port} (Ctrl-C ends it)", flush=True)


def serve(library: Library, listener: socket.socket) -> None:
    """Serves until SIGTERM (then SystemExit 0) or Ctrl-C (then KeyboardInterrupt)."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    work = Background()
    config = uvicorn.Config(build_app(library, work), log_level="warning", lifespan="off", ws="none")
    listener.listen()
    try:
        _Server(config).run(sockets=[listener])
    finally:
        work.close()


def _describe(library: Library, index: int) -> dict[str, Any]:
    """A point as the page lists it; the shape is that of its run's newest model."""
    point = library.points[index]
    config = library.open(library.newest(point.model)).model.config
    names = (
        "depth",
        "heads",
        "kv_heads",
        "head_dim",
        "width",
        "mlp_width",
        "vocab_size",
        "context",
        "norm",
        "position",
    )
    shape = {name: getattr(config, name) for name in (*names, "activation", "experts")}
    return {
        "id": index,
        "model": point.model,
        "name": point.name,
        "step": point.step,
        "run": point.run is not None,
        "parameters": config.parameter_count(),
        **shape,
    }


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _json(status: int, value: Any) -> Response:
    return Response(json.dumps(value, separators=(",", ":"), allow_nan=False), status, media_type="application/json")
