"""What the server refuses, and in what form: unknown fields, values, bodies, sizes, addresses; nothing is ignored."""

import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")

from tinylm.inference import LLM, InferenceError, server  # noqa: E402  # after importorskip
from tinylm.inference.cli import main  # noqa: E402

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
TEXT = {"model": "tiny", "prompt": "The cook says", "max_tokens": 12, "seed": 1}
TALK = {"model": "tiny", "messages": [{"role": "user", "content": "Who sings?"}], "max_tokens": 12, "seed": 1}


@pytest.mark.parametrize(
    ("path", "change", "word"),
    [
        (COMPLETIONS, {"suffix": "x"}, "suffix"),
        (COMPLETIONS, {"logprobs": 21}, "logprobs"),
        (COMPLETIONS, {"max_tokens": 0}, "echo"),
        (COMPLETIONS, {"min_tokens": 13}, "min_tokens"),
        (COMPLETIONS, {"\ud800": 1}, ""),
        (CHAT, {"functions": []}, "functions"),
        (CHAT, {"top_logprobs": 2}, "top_logprobs"),
        (CHAT, {"tool_choice": "required"}, "tool_choice"),
        (CHAT, {"tool_choice": "auto"}, "tool_choice"),
        (CHAT, {"tools": [{"type": "function", "function": {"name": "f"}}]}, "chat template"),
        (CHAT, {"messages": [{"role": "user"}]}, "messages"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.type: "),
        (CHAT, {"messages": [{"role": "user", "content": "x", "name": "me"}]}, "messages.0.name"),
        (CHAT, {"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role"),
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"max_completion_tokens": 3}, "max_completion_tokens"),
        (COMPLETIONS, {"stream": True, "stream_options": {"odd": 1}}, "stream_options.odd"),
        (COMPLETIONS, {"stream_options": {"include_usage": True}}, "stream_options"),
        (COMPLETIONS, {"temperature": "1"}, "temperature"),
        (COMPLETIONS, {"temperature": -1}, "temperature"),
        (COMPLETIONS, {"temperature": float("nan")}, "temperature"),
        (COMPLETIONS, {"temperature": 10**400}, "temperature"),
        (COMPLETIONS, {"temperature": 0, "n": 2}, "n must be 1"),
        (COMPLETIONS, {"max_tokens": True}, "max_tokens"),
        (COMPLETIONS, {"n": 10**9}, "n:"),
        (COMPLETIONS, {"prompt": ["a", "b"], "n": 100}, "at most 128"),
        (COMPLETIONS, {"prompt": [1, "a"]}, "prompt.1: Input should be a valid integer; prompt.0: "),
        (COMPLETIONS, {"prompt": 1}, "prompt: Input should be a valid string; prompt: Input should be a valid list"),
        (COMPLETIONS, {"prompt": [10**6]}, "prompt"),
        (COMPLETIONS, {"prompt": "\ud800"}, "surrogate"),
        (COMPLETIONS, {"prompt": "good soup " * 4000}, "context"),
        (COMPLETIONS, {"prompt": "good soup " * 4000, "stream": True}, "context"),
        (COMPLETIONS, {"stop": [""]}, "stop"),
        (COMPLETIONS, {"logit_bias": {"x": 1}}, "logit_bias"),
        (COMPLETIONS, {"logit_bias": {"99999": 1}}, "logit_bias"),
        (COMPLETIONS, {"logit_bias": {"1": 101}}, "logit_bias"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_cannot_be_honoured_is_refused_by_name(client: Any, path: str, change: dict[str, Any], word: str) -> None:
    status, answer = client.ask(path, {**(TEXT if path == COMPLETIONS else TALK), **change})
    error = answer["error"]
    assert (status, error["type"], set(error)) == (400, "invalid_request_error", {"message", "type", "param", "code"})
    assert word in error["message"]


def test_the_unknown_field_is_the_param(client: Any) -> None:
    assert client.ask(COMPLETIONS, {**TEXT, "best_of": 2})[1]["error"]["param"] == "best_of"


@pytest.mark.parametrize("body", [b"", b"{bad", b"[]", b"\xff", b"[" * 100_000], ids=lambda body: repr(body[:5]))
def test_a_body_that_is_no_json_object_is_refused(client: Any, body: bytes) -> None:
    status, answer = client.ask(COMPLETIONS, body)
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", ""])
def test_json_that_does_not_call_itself_json_is_told_so(client: Any, kind: str) -> None:
    status, answer = client.ask(COMPLETIONS, TEXT, **{"Content-Type": kind})
    assert (status, "Content-Type: application/json" in answer["error"]["message"]) == (400, True)


def test_other_statuses_have_the_same_form(client: Any) -> None:
    status, answer = client.ask(COMPLETIONS, {**TEXT, "model": "gpt-\ud8004"})
    assert (status, answer["error"]["code"], answer["error"]["param"]) == (404, "model_not_found", "model")
    assert client.ask("/v1/nothing")[0] == 404
    assert client.ask(COMPLETIONS)[0] == 405
    for headers in ({}, {"Transfer-Encoding": "chunked"}):  # a length that is declared, and one that is not
        content = json.dumps({**TEXT, "prompt": "x" * (1 << 20)}).encode()
        chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(content), content)
        status, answer = client.ask(COMPLETIONS, chunked if headers else content, **headers)
        assert (status, "bytes" in answer["error"]["message"]) == (413, True)


def test_damaged_weights_are_the_servers_fault(checkpoint: Path, served: Callable[..., Any]) -> None:
    llm = LLM(str(checkpoint), dtype="float32", device="cpu")
    with torch.no_grad():
        llm.model.final_norm.weight.fill_(float("nan"))
    with served(llm) as running:
        status, answer = running.ask(COMPLETIONS, TEXT)
        assert (status, answer["error"]["type"]) == (500, "server_error")
        assert "not numbers" in answer["error"]["message"]
        (event,) = running.events(COMPLETIONS, TEXT)  # the status had gone out before; no [DONE]: it is not done
        assert "not numbers" in event["error"]["message"]
        assert running.ask("/health")[0] == 200


def test_a_port_in_use_is_one_line_and_exit_code_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with server.bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = str(taken.getsockname()[1])
        monkeypatch.setattr(sys, "argv", ["tinylm-infer", "serve", "nowhere", "--port", port])
        with pytest.raises(SystemExit) as stopped:
            main()
    err = capsys.readouterr().err
    assert (stopped.value.code, err.count("\n")) == (1, 1)
    assert f"port {port}: {os.strerror(errno.EADDRINUSE)}" in err


@pytest.mark.parametrize(
    ("options", "warned"),
    [(["--host", "0.0.0.0"], True), (["--host", "0.0.0.0", "--api-key", "secret"], False), ([], False)],
)
def test_an_open_door_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, options: list[str], warned: bool
) -> None:
    """Before the model is read; here there is none, so nothing is served."""
    monkeypatch.setattr(sys, "argv", ["tinylm-infer", "serve", "nowhere", "--port", "0", *options])
    with pytest.raises(SystemExit):
        main()
    assert ("may use this server" in capsys.readouterr().err) is warned


def test_a_host_that_is_not_here_is_refused() -> None:
    with pytest.raises(InferenceError, match="cannot serve at"):
        server.bind("256.0.0.1.invalid", 0)


def test_a_shorter_context_is_kept_to(long_checkpoint: Path, served: Callable[..., Any]) -> None:
    llm = LLM(str(long_checkpoint), dtype="float32", device="cpu", max_model_len=32)
    with served(llm) as running:
        assert running.ask("/v1/models")[1]["data"][0]["max_model_len"] == 32
        status, answer = running.ask(COMPLETIONS, {**TEXT, "prompt": [70] * 32})
        assert (status, "context holds 32" in answer["error"]["message"]) == (400, True)
        assert answer["error"]["code"] == "context_length_exceeded"
        answer = running.ask(COMPLETIONS, {**TEXT, "prompt": [70] * 20, "max_tokens": 100, "ignore_eos": True})[1]
        assert (answer["usage"]["total_tokens"], answer["choices"][0]["finish_reason"]) == (32, "length")
    with pytest.raises(InferenceError, match="max_model_len: the model's context is 4096, got 5000"):
        LLM(str(long_checkpoint), max_model_len=5000)


@pytest.mark.parametrize(
    "option", [{"waiting": 0}, {"request_seconds": 0.5}, {"request_bytes": -1}, {"api_key": ""}, {"drain_seconds": -1}]
)
def test_limits_that_are_none_are_refused(option: dict[str, Any]) -> None:
    from tinylm.inference.server_limits import ServerLimits

    with pytest.raises(InferenceError, match=next(iter(option))):
        ServerLimits(**option)
