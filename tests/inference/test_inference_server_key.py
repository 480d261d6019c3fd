"""What the server's outermost layer refuses is answered there, and is no exception: nothing of it reaches the log."""

import asyncio
from typing import Any

import pytest

pytest.importorskip("torch")

from tinylm.inference.server_limits import Gate, ServerLimits  # after importorskip


def ask(limits: ServerLimits, path: str, key: str | None = None, scheme: str = "Bearer") -> list[dict[str, Any]]:
    """What the Gate sends; what lies behind it answers "in"."""
    sent: list[dict[str, Any]] = []

    async def inner(_: Any, __: Any, send: Any) -> None:
        await send({"type": "in"})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [] if key is None else [(b"authorization", f"{scheme} {key}".encode())]
    asyncio.run(Gate(inner, limits)({"type": "http", "path": path, "headers": headers}, receive, send))
    return sent


@pytest.mark.parametrize("key", [None, "", "wrong", "secretly"])
def test_without_the_key_the_answer_is_401_and_no_exception(key: str | None) -> None:
    start, body = ask(ServerLimits(api_key="secret"), "/v1/models", key)
    assert start["status"] == 401
    assert b"Authorization: Bearer KEY" in body["body"]


@pytest.mark.parametrize(("path", "key"), [("/v1/models", "secret"), ("/", None), ("/health", None)])
def test_with_it_or_beside_v1_everybody_is_let_in(path: str, key: str | None) -> None:
    assert ask(ServerLimits(api_key="secret"), path, key) == [{"type": "in"}]


@pytest.mark.parametrize(("scheme", "let_in"), [("bearer", True), ("BEARER", True), ("Basic", False)])
def test_the_scheme_is_in_capitals_or_not(scheme: str, let_in: bool) -> None:
    sent = ask(ServerLimits(api_key="secret"), "/v1/models", "secret", scheme)
    assert (sent == [{"type": "in"}]) == let_in
