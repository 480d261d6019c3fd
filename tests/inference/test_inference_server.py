"""The server over real sockets: answers equal LLM's, streams, clients that leave or dawdle, signals."""

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")

from tinylm.inference import LLM, SamplingParams  # noqa: E402  # after importorskip

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
TEXT = {"model": "tiny", "prompt": "The cook says", "max_tokens": 12, "seed": 1}
TALK = {"model": "tiny", "messages": [{"role": "user", "content": "Who sings?"}], "max_tokens": 12, "seed": 1}


def endless(llm: LLM) -> dict[str, Any]:
    """A request that ends only where the context does, after thousands of tokens."""
    assert llm.tokenizer is not None
    return {**TEXT, "max_tokens": 4000, "logit_bias": {str(llm.tokenizer.eos_id): -100}}


def test_health_and_models(client: Any) -> None:
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
    client: Any, long_llm: LLM, fields: dict[str, Any]
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
    client: Any, served: Callable[..., Any], make_checkpoint: Callable[..., Path]
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
def test_a_chat_answer_is_what_llm_chat_writes(client: Any, long_llm: LLM, limit: str) -> None:
    body = {"model": "tiny", "messages": TALK["messages"], limit: 9, "seed": 2, "n": 2}
    status, answer = client.ask(CHAT, body)
    expected = long_llm.chat(TALK["messages"], SamplingParams(max_tokens=9, seed=2, n=2))[0]
    assert (status, answer["object"]) == (200, "chat.completion")
    messages = [{"role": "assistant", "content": o.text} for o in expected.outputs]
    assert [c["message"] for c in answer["choices"]] == messages
    assert answer["usage"]["prompt_tokens"] == len(expected.prompt_token_ids)


@pytest.mark.parametrize("prompts", [["The", "Who sings?"], [[70, 71], [72]], [70, 71]], ids=str)
def test_several_prompts_and_ids(client: Any, long_llm: LLM, prompts: list[Any]) -> None:
    answer = client.ask(COMPLETIONS, {**TEXT, "prompt": prompts, "n": 2})[1]
    several: Any = [prompts] if isinstance(prompts[0], int) else prompts
    several = [p if isinstance(p, str) else {"prompt_token_ids": p} for p in several]
    expected = long_llm.generate(several, SamplingParams(max_tokens=12, seed=1, n=2))
    assert [c["text"] for c in answer["choices"]] == [o.text for request in expected for o in request.outputs]
    assert [c["index"] for c in answer["choices"]] == list(range(2 * len(several)))
    assert answer["usage"]["prompt_tokens"] == sum(len(request.prompt_token_ids) for request in expected)


@pytest.mark.parametrize(("path", "body"), [(COMPLETIONS, TEXT), (CHAT, TALK)], ids=["completions", "chat"])
def test_a_stream_gives_the_same_texts_reasons_and_usage(client: Any, path: str, body: dict[str, Any]) -> None:
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


def test_requests_at_one_time_get_the_answers_they_would_get_alone(client: Any) -> None:
    bodies = [{**TEXT, "seed": seed, "max_tokens": 30} for seed in range(6)]
    alone = [client.ask(COMPLETIONS, body)[1]["choices"] for body in bodies]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda body: client.ask(COMPLETIONS, body)[1]["choices"], bodies))
    assert together == alone


def test_the_metrics_count_and_time_what_happened(served: Callable[..., Any], long_checkpoint: Path) -> None:
    with served(LLM(str(long_checkpoint), dtype="float32", device="cpu")) as running:
        body = {**TEXT, "max_tokens": 7, "ignore_eos": True, "n": 2}
        usage = running.ask(COMPLETIONS, body)[1]["usage"]
        running.ask(COMPLETIONS, {**body, "prompt": "x" * 9000})
        with contextlib.closing(running.send("/metrics")) as connection:
            answer = connection.getresponse()
            assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
            lines = answer.read().decode().splitlines()
        kinds = {line.split()[2]: line.split()[3] for line in lines if line.startswith("# TYPE")}
        told = running.metrics()
    assert all(re.fullmatch(r"# (HELP|TYPE) \w+ .+|\w+(\{\w+=\"[^\"]+\"\})? [-+0-9.e]+", line) for line in lines)
    assert {kinds[re.sub(r"_(bucket|sum|count)?(\{.*)?$|\{.*", "", name)] for name in told} == set(kinds.values())
    assert told["tinylm_prompt_tokens_total"] == usage["prompt_tokens"]
    assert told["tinylm_generation_tokens_total"] == usage["completion_tokens"] == 14
    assert told['tinylm_requests_total{reason="length"}'] == told['tinylm_requests_total{reason="refused"}'] == 1
    assert told["tinylm_time_to_first_token_seconds_count"] == 1
    assert told["tinylm_time_per_output_token_seconds_count"] == 12
    buckets = [v for k, v in told.items() if k.startswith("tinylm_time_per_output_token_seconds_bucket")]
    assert (buckets, buckets[-1]) == (sorted(buckets), 12)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_request(served: Callable[..., Any], long_checkpoint: Path, stream: bool) -> None:
    llm = LLM(str(long_checkpoint), dtype="float32", device="cpu")
    with served(llm) as running:
        connection = running.send(COMPLETIONS, {**endless(llm), "stream": stream})
        running.wait_for("tinylm_generation_tokens_total", lambda count: count > 0)
        if stream:
            answer = connection.getresponse()
            assert answer.read(6) == b"data: "
            answer.close()
        connection.close()
        running.wait_for('tinylm_requests_total{reason="left"}', lambda count: count == 1)
        running.wait_for("tinylm_kv_cache_usage_ratio", lambda part: part == 0)
        assert running.metrics()["tinylm_generation_tokens_total"] < 4000
    assert not llm.engine.busy


def test_a_client_that_does_not_read_holds_nobody_up(client: Any, long_llm: LLM) -> None:
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


def test_when_the_server_stops_what_runs_says_so(served: Callable[..., Any], long_llm: LLM) -> None:
    with served(long_llm) as running:
        assert running.ask("/health")[0] == 200  # it has started
        running.app.state.desk.close()
        assert running.ask(COMPLETIONS, TEXT)[0] == 503
        assert "stopping" in running.events(CHAT, TALK)[-1]["error"]["message"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to send")
@pytest.mark.parametrize(
    ("sent", "options", "code", "end"),
    [
        ([signal.SIGTERM], ["--drain-seconds", "300"], 0, b"[DONE]"),
        ([signal.SIGTERM], ["--drain-seconds", "0"], 0, b"the server is stopping"),
        ([signal.SIGINT], [], 130, b"the server is stopping"),
        ([signal.SIGTERM, signal.SIGINT], ["--drain-seconds", "300"], 0, b"the server is stopping"),
    ],
    ids=["SIGTERM drains", "SIGTERM without patience", "Ctrl-C", "Ctrl-C while it drains"],
)
def test_the_command_serves_and_ends_cleanly(
    client: Any, long_checkpoint: Path, sent: list[signal.Signals], options: list[str], code: int, end: bytes
) -> None:
    command = [sys.executable, "-m", "tinylm.inference", "serve", str(long_checkpoint), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            found = re.search(rf"'{long_checkpoint.name}' at http://127\.0\.0\.1:(\d+)", line)
            assert found, line
            tokens = 1500 if end == b"[DONE]" else 4000  # longer than uvicorn takes to notice a signal, 0.1 s
            body = {**endless(client.llm), "model": long_checkpoint.name, "stream": True, "max_tokens": tokens}
            connection = type(client)(int(found[1])).send(COMPLETIONS, body)
            answer = connection.getresponse()
            answer.read(6)
            for number in sent:
                process.send_signal(number)
                time.sleep(0.3)
            assert end in answer.read()
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == code
    assert "Traceback" not in err
    assert len(err.split("\n")) <= 3  # the device, and an empty line after Ctrl-C
