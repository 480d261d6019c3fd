"""tinylm.inference: what the server lets in: how large, how long, how many, and whose requests.

`ServerLimits` are the options; `Gate` keeps those that need no model: size, time and key. How many may wait is counted
where requests wait, in `server_desk.py`; how long a text may be is the engine's `max_model_len`.
"""

import asyncio
import hmac
import math
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tinylm.inference._errors import InferenceError
from tinylm.inference.openai_answers import error_object
from tinylm.inference.server_stream import json_response

_GRACE = 5.0  # seconds in which a client may still read why its request ended


@dataclass(frozen=True, kw_only=True)
class ServerLimits:
    """- `request_bytes`: of one request's body; beyond it 413.
    - `waiting`: requests that wait for their first token; beyond it 429, with Retry-After.
    - `request_seconds`: from a request's beginning to the end of its answer; beyond it 504, or 408 where it has not
      come in by then. None: no limit.
    - `drain_seconds`: how long SIGTERM waits for what is being written.
    - `api_key`: what `/v1/...` asks for as `Authorization: Bearer KEY`; else 401. None: anybody may ask.
    """

    request_bytes: int = 1 << 20
    waiting: int = 128
    request_seconds: float | None = 600.0
    drain_seconds: float = 30.0
    api_key: str | None = None

    def __post_init__(self) -> None:
        for name in ("request_bytes", "waiting", "request_seconds", "drain_seconds"):
            value = getattr(self, name)
            least = 0 if name == "drain_seconds" else 1
            if value is not None and not least <= value < math.inf:
                raise InferenceError(f"{name} must be a number of at least {least}, got {value!r}")
        if self.api_key is not None and (not self.api_key or not self.api_key.isascii()):
            raise InferenceError("api_key must be ASCII text that is not empty")


class Gate:
    """The outermost layer: refuses what is too large, too slow or has no key. Errors take the form of all others."""

    def __init__(self, app: ASGIApp, limits: ServerLimits) -> None:
        self._app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if self._limits.api_key is not None and scope["path"].startswith("/v1/"):
            kind, _, sent = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
            if kind.lower() != b"bearer" or not hmac.compare_digest(sent, self._limits.api_key.encode()):
                return await _refuse(401, "wanted this server's API key: Authorization: Bearer KEY")(
                    scope, receive, send
                )
        await self._in_time(scope, self._counted(receive), send)

    def _counted(self, receive: Receive) -> Receive:
        """Stops a body as soon as it has grown too long, declared or not."""
        size, limit = 0, self._limits.request_bytes

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > limit:
                raise HTTPException(413, f"a request is at most {limit} bytes long")
            return message

        return counted

    async def _in_time(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Cuts the connection of a client that sends or reads too slowly; who reads is told before (server_desk.py)."""
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        seconds = self._limits.request_seconds
        try:
            async with asyncio.timeout(None if seconds is None else seconds + _GRACE):
                await self._app(scope, receive, noted)
        except TimeoutError:
            if not begun:
                await _refuse(408, f"the request did not come in within {seconds:g} s")(scope, receive, send)


def _refuse(status: int, message: str) -> Response:
    """An answer, not an exception: out here nobody is left to catch one but the log."""
    return json_response(status, error_object(status, message))
