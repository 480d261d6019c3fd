"""The server over real sockets: answers equal LLM's, streams, refusals, clients that leave or dawdle, signals."""

import contextlib
import errno
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")

from tinylm.inference import LLM, InferenceError, SamplingParams, server  # noqa: E402  # after importorskip
from tinylm.inference.cli import main  # noqa: E402

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
TEXT = {"model": "tiny", "prompt": "The cook says", "max_tokens": 12, "seed": 1}
TALK = {"model": "tiny", "messages": [{"role": "user", "content": "Who sings?"}], "max_tokens": 12, "seed": 1}


class Client:
    """Requests to one server. Each takes a connection of its own."""

    def __init__(self, port: int) -> None:
        self.port = port

    def send(self, path: str, body: object = None, **headers: str) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **headers}
        connection.request("GET" if body is None else "POST", path, content, headers)
        return connection

    def ask(self, path: str, body: object = None, **headers: str) -> tuple[int, dict[str, Any]]:
        with contextlib.closing(self.send(path, body, **headers)) as connection:
            answer = connection.getresponse()
            assert answer.headers["content-type"] == "application/json"
            return answer.status, json.loads(answer.read())

    def events(self, path: str, body: dict[str, Any]) -> list[Any]:
        """The events of a stream; the last is "[DONE]"."""
        with contextlib.closing(self.send(path, {**body, "stream": True})) as connection:
            answer = connection.getresponse()
            assert (answer.status, answer.headers.get_content_type()) == (200, "text/event-stream")
            *parts, rest = answer.read().decode("ascii").split("\n\n")
        assert rest == ""
        assert all(part.startswith("data: ") for part in parts)
        return [part[6:] if part == "data: [DONE]" else json.loads(part[6:]) for part in parts]


@contextlib.contextmanager
def served(llm: LLM, **options: Any) -> Iterator[Client]:
    """A server in a thread, at a free port, for a model called "tiny"."""
    app = server.build_app(llm, "tiny", **options)
    running = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
    with server.bind("127.0.0.1", 0) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # a client that does not read is soon noticed
        listener.listen()
        thread = threading.Thread(target=running.run, args=([listener],))
        thread.start()
        try:
            yield Client(listener.getsockname()[1])
        finally:
            running.should_exit = True
            thread.join(timeout=60)


@pytest.fixture(scope="module")
def long_checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint(depth=1, context=4096)


@pytest.fixture(scope="module")
def long_llm(long_checkpoint: Path) -> LLM:
    return LLM(str(long_checkpoint), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def client(long_llm: LLM) -> Iterator[Client]:
    with served(long_llm) as running:
        yield running


def endless(llm: LLM) -> dict[str, Any]:
    """A request that ends only where the context does, after thousands of tokens."""
    assert llm.tokenizer is not None
    return {**TEXT, "max_tokens": 4000, "logit_bias": {str(llm.tokenizer.eos_id): -100}}


def test_health_and_models(client: Client) -> None:
    assert client.ask("/health") == (200, {"status": "ok"})
    status, models = client.ask("/v1/models")
    assert (status, models["object"], [m["id"] for m in models["data"]]) == (200, "list", ["tiny"])


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0},
        {"temperature": 0.5, "top_p": 0.8},
        {"stop": "e"},
        {"stop": ["zz", "o"]},
        {"presence_penalty": 2, "frequency_penalty": 1.5, "temperature": 0, "max_tokens": 30},
        {"logit_bias": {"70": 50, "71": 50}},
        {"n": 3},
        {"seed": 7},
        {"max_tokens": 1},
        {"temperature": None, "stop": None, "n": None, "stream": None, "logit_bias": None},
    ],
    ids=str,
)
def test_a_completion_is_what_the_llm_writes_with_the_same_parameters(
    client: Client, long_llm: LLM, fields: dict[str, Any]
) -> None:
    status, answer = client.ask(COMPLETIONS, {**TEXT, **fields})
    given = {k: v for k, v in {**TEXT, **fields}.items() if k not in ("model", "prompt", "stream") and v is not None}
    if "logit_bias" in given:
        given["logit_bias"] = {int(token_id): bias for token_id, bias in given["logit_bias"].items()}
    expected = long_llm.generate(TEXT["prompt"], SamplingParams(**given))[0]
    assert (status, answer["object"], answer["model"]) == (200, "text_completion", "tiny")
    assert [c["text"] for c in answer["choices"]] == [o.text for o in expected.outputs]
    assert [c["finish_reason"] for c in answer["choices"]] == [o.finish_reason for o in expected.outputs]
    assert [c["index"] for c in answer["choices"]] == list(range(len(expected.outputs)))
    prompt, written = len(expected.prompt_token_ids), sum(len(o.token_ids) for o in expected.outputs)
    usage = {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}
    assert answer["usage"] == usage


def test_left_out_max_tokens_is_16_and_in_chat_the_context(
    client: Client, make_checkpoint: Callable[..., Path]
) -> None:
    text = {"model": "tiny", "prompt": "The", "temperature": 0}
    assert client.ask(COMPLETIONS, text)[1]["usage"]["completion_tokens"] <= 16
    small = LLM(str(make_checkpoint(context=64)), dtype="float32", device="cpu")
    assert small.tokenizer is not None
    ends = [small.tokenizer.special_tokens[name] for name in ("<|endoftext|>", "<|im_end|>")]
    talk = {k: v for k, v in TALK.items() if k != "max_tokens"}
    with served(small) as running:
        answer = running.ask(CHAT, {**talk, "logit_bias": {str(i): -100 for i in ends}})[1]
    assert (answer["usage"]["total_tokens"], answer["choices"][0]["finish_reason"]) == (64, "length")


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_a_chat_answer_is_what_llm_chat_writes(client: Client, long_llm: LLM, limit: str) -> None:
    body = {"model": "tiny", "messages": TALK["messages"], limit: 9, "seed": 2, "n": 2}
    status, answer = client.ask(CHAT, body)
    expected = long_llm.chat(TALK["messages"], SamplingParams(max_tokens=9, seed=2, n=2))[0]
    assert (status, answer["object"]) == (200, "chat.completion")
    messages = [{"role": "assistant", "content": o.text} for o in expected.outputs]
    assert [c["message"] for c in answer["choices"]] == messages
    assert answer["usage"]["prompt_tokens"] == len(expected.prompt_token_ids)


@pytest.mark.parametrize("prompts", [["The", "Who sings?"], [[70, 71], [72]], [70, 71]], ids=str)
def test_several_prompts_and_ids(client: Client, long_llm: LLM, prompts: list[Any]) -> None:
    answer = client.ask(COMPLETIONS, {**TEXT, "prompt": prompts, "n": 2})[1]
    several: Any = [prompts] if isinstance(prompts[0], int) else prompts
    several = [p if isinstance(p, str) else {"prompt_token_ids": p} for p in several]
    expected = long_llm.generate(several, SamplingParams(max_tokens=12, seed=1, n=2))
    assert [c["text"] for c in answer["choices"]] == [o.text for request in expected for o in request.outputs]
    assert [c["index"] for c in answer["choices"]] == list(range(2 * len(several)))
    assert answer["usage"]["prompt_tokens"] == sum(len(request.prompt_token_ids) for request in expected)


@pytest.mark.parametrize(("path", "body"), [(COMPLETIONS, TEXT), (CHAT, TALK)], ids=["completions", "chat"])
def test_a_stream_gives_the_same_texts_reasons_and_usage(client: Client, path: str, body: dict[str, Any]) -> None:
    body = {**body, "n": 2, "max_tokens": 20}
    whole = client.ask(path, body)[1]
    *chunks, last, done = client.events(path, {**body, "stream_options": {"include_usage": True}})
    assert (done, last["choices"], last["usage"]) == ("[DONE]", [], whole["usage"])
    assert {chunk["id"] for chunk in chunks} == {last["id"]}
    assert all(chunk["usage"] is None for chunk in chunks)
    for choice in whole["choices"]:
        mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert [c["finish_reason"] for c in mine] == [None] * (len(mine) - 1) + [choice["finish_reason"]]
        if path == CHAT:
            assert [c["delta"].get("role") for c in mine] == ["assistant"] + [None] * (len(mine) - 1)
            assert "".join(c["delta"]["content"] for c in mine) == choice["message"]["content"]
        else:
            assert "".join(c["text"] for c in mine) == choice["text"]
    assert client.events(path, body)[-2].get("usage", "absent") == "absent"


@pytest.mark.parametrize(
    ("path", "change", "word"),
    [
        (COMPLETIONS, {"top_k": 3}, "top_k"),
        (COMPLETIONS, {"logprobs": 1}, "logprobs"),
        (COMPLETIONS, {"echo": False}, "echo"),
        (COMPLETIONS, {"\ud800": 1}, ""),
        (CHAT, {"tools": []}, "tools"),
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
        (COMPLETIONS, {"prompt": [1, "a"]}, "prompt"),
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
def test_what_cannot_be_honoured_is_refused_by_name(
    client: Client, path: str, change: dict[str, Any], word: str
) -> None:
    status, answer = client.ask(path, {**(TEXT if path == COMPLETIONS else TALK), **change})
    error = answer["error"]
    assert (status, error["type"], set(error)) == (400, "invalid_request_error", {"message", "type", "param", "code"})
    assert word in error["message"]


def test_the_unknown_field_is_the_param(client: Client) -> None:
    assert client.ask(COMPLETIONS, {**TEXT, "best_of": 2})[1]["error"]["param"] == "best_of"


@pytest.mark.parametrize("body", [b"", b"{bad", b"[]", b"\xff", b"[" * 100_000], ids=lambda body: repr(body[:5]))
def test_a_body_that_is_no_json_object_is_refused(client: Client, body: bytes) -> None:
    status, answer = client.ask(COMPLETIONS, body)
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")


def test_other_statuses_have_the_same_form(client: Client) -> None:
    status, answer = client.ask(COMPLETIONS, {**TEXT, "model": "gpt-\ud8004"})
    assert (status, answer["error"]["code"], answer["error"]["param"]) == (404, "model_not_found", "model")
    assert client.ask("/v1/nothing")[0] == 404
    assert client.ask(COMPLETIONS)[0] == 405
    for headers in ({}, {"Transfer-Encoding": "chunked"}):  # a length that is declared, and one that is not
        content = json.dumps({**TEXT, "prompt": "x" * server.BODY_LIMIT}).encode()
        chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(content), content)
        status, answer = client.ask(COMPLETIONS, chunked if headers else content, **headers)
        assert (status, "bytes" in answer["error"]["message"]) == (413, True)


def test_damaged_weights_are_the_servers_fault(checkpoint: Path) -> None:
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


def test_requests_at_one_time_get_the_answers_they_would_get_alone(client: Client) -> None:
    bodies = [{**TEXT, "seed": seed, "max_tokens": 30} for seed in range(6)]
    alone = [client.ask(COMPLETIONS, body)[1]["choices"] for body in bodies]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda body: client.ask(COMPLETIONS, body)[1]["choices"], bodies))
    assert together == alone


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_request(
    client: Client, long_llm: LLM, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    begun, started, plain_stream = threading.Event(), [], long_llm.stream

    def watched(*arguments: Any) -> Any:
        started.append(plain_stream(*arguments))
        begun.set()
        return started[-1]

    monkeypatch.setattr(long_llm, "stream", watched)
    connection = client.send(COMPLETIONS, {**endless(long_llm), "stream": stream})
    assert begun.wait(60)
    if stream:
        answer = connection.getresponse()
        assert answer.read(6) == b"data: "
        answer.close()
    connection.close()
    assert client.ask(COMPLETIONS, TEXT)[0] == 200  # its turn comes when the first has ended
    assert started[0].finish_reason is None
    assert len(started[0].token_ids) < 4000


def test_a_client_that_does_not_read_holds_nobody_up(client: Client, long_llm: LLM) -> None:
    with socket.socket() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.connect(("127.0.0.1", client.port))
        body = json.dumps({**endless(long_llm), "max_tokens": 1500, "stream": True}).encode()  # some 300 kB of events
        head = (
            f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        )
        lazy.sendall(head.encode() + b"\r\n\r\n" + body)
        assert lazy.recv(4) == b"HTTP"  # it has begun, and reads no more
        assert client.ask(COMPLETIONS, TEXT)[0] == 200


def test_when_the_server_stops_what_runs_says_so(long_llm: LLM) -> None:
    with served(long_llm, closing=lambda: True) as running:
        assert running.ask(COMPLETIONS, TEXT)[0] == 503
        assert "stopping" in running.events(CHAT, TALK)[-1]["error"]["message"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to send")
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_the_command_serves_and_ends_cleanly(
    long_checkpoint: Path, long_llm: LLM, sent: signal.Signals, code: int
) -> None:
    command = [sys.executable, "-m", "tinylm.inference", "serve", str(long_checkpoint), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            found = re.search(rf"'{long_checkpoint.name}' at http://127\.0\.0\.1:(\d+)", line)
            assert found, line
            body = {**endless(long_llm), "model": long_checkpoint.name, "stream": True}
            connection = Client(int(found[1])).send(COMPLETIONS, body)
            answer = connection.getresponse()
            answer.read(6)
            process.send_signal(sent)
            assert b"the server is stopping" in answer.read()
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == code
    assert "Traceback" not in err
    assert len(err.split("\n")) <= 3  # the device, and an empty line after Ctrl-C


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


def test_a_host_that_is_not_here_is_refused() -> None:
    with pytest.raises(InferenceError, match="cannot serve at"):
        server.bind("256.0.0.1.invalid", 0)
