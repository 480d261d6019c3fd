"""tinylm.inference: sending to a client that may leave: one JSON object, or server-sent events.

It knows connections and nothing of texts; what is sent comes from `server_desk.py`.
"""

import asyncio
import json
from collections.abc import Coroutine, Mapping
from typing import Any

from fastapi import Response
from starlette.types import Receive, Send


def json_response(status: int, value: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    return Response(json.dumps(value), status, headers, "application/json")  # ASCII: a lone surrogate has no UTF-8


async def while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> bool:
    """Does `work`; False where the client left before it was done, and it was cancelled."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            return False
        working.result()
        return True
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream:
    """Server-sent events to `send`: `begin`, any number of `send`, `end`."""

    def __init__(self, send: Send, headers: Mapping[str, str]) -> None:
        self._send = send
        headers = {
            **headers,
            "Content-Type": "text/event-stream",
            "Cache-Control": "no-cache",
            "X-Accel-Buffering": "no",  # proxies pass each event on at once
        }
        self._headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    async def begin(self) -> None:
        await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})

    async def send(self, event: str | Mapping[str, Any]) -> None:
        """A text as it is, or an object as JSON. Waits where the client does not read."""
        data = event if isinstance(event, str) else json.dumps(event)
        await self._send({"type": "http.response.body", "body": f"data: {data}\n\n".encode("ascii"), "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})
