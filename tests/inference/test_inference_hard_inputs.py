"""What nobody should send: each has a documented answer, and afterwards the server is as before, every block free."""

import contextlib
import http.client
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")

from tinylm.inference import LLM, SamplingParams, StructuredOutputsParams  # noqa: E402  # after importorskip
from tinylm.inference.engine import Engine  # noqa: E402
from tinylm.inference.engine_config import EngineConfig  # noqa: E402
from tinylm.model import Transformer, TransformerConfig  # noqa: E402

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
TEXT = {"model": "tiny", "prompt": "The cook says", "max_tokens": 8, "seed": 1}


@pytest.fixture
def small(make_checkpoint: Callable[..., Path]) -> LLM:
    return LLM(str(make_checkpoint(context=256)), dtype="float32", device="cpu", kv_cache_memory_bytes=1 << 16)


@pytest.fixture
def tested(client: Any) -> Iterator[Any]:
    """The server, which after the test answers as before and holds no block."""
    before = client.ask(COMPLETIONS, TEXT)[1]["choices"]
    yield client
    client.wait_for("tinylm_kv_cache_usage_ratio", lambda part: part == 0)
    client.wait_for("tinylm_requests_waiting", lambda count: count == 0)
    assert client.ask(COMPLETIONS, TEXT)[1]["choices"] == before


def test_an_empty_prompt_begins_at_the_end_of_text(tested: Any) -> None:
    for prompt in ("", []):
        status, told = tested.ask(COMPLETIONS, {**TEXT, "prompt": prompt})
        assert (status, told["usage"]["prompt_tokens"]) == (200, 1)
    assert tested.ask(CHAT, {"model": "tiny", "messages": [{"role": "user", "content": ""}], "max_tokens": 2})[0] == 200


def test_a_prompt_longer_than_the_context(tested: Any) -> None:
    for ids, status in ((4096, 400), (4095, 200)):
        answer, told = tested.ask(COMPLETIONS, {**TEXT, "prompt": [70] * ids})
        assert answer == status
    assert (told["usage"]["completion_tokens"], told["choices"][0]["finish_reason"]) == (1, "length")


def test_ten_thousand_stop_strings(tested: Any, long_llm: LLM) -> None:
    stops = [f"stop {i}" for i in range(9_999)] + ["e"]
    status, told = tested.ask(COMPLETIONS, {**TEXT, "stop": stops})
    assert (status, told["error"]["param"]) == (400, "stop")
    expected = long_llm.generate("The cook says", SamplingParams(max_tokens=8, seed=1, stop="e"))[0].outputs[0]
    many = long_llm.generate("The cook says", SamplingParams(max_tokens=8, seed=1, stop=stops))[0].outputs[0]
    assert many == expected  # in Python, where they are your own time
    assert tested.ask(COMPLETIONS, {**TEXT, "stop": stops[-1024:]})[1]["choices"][0]["text"] == expected.text


def test_a_schema_bomb_holds_nobody_up(tested: Any) -> None:
    bomb = {"type": "integer", "allOf": [{"multipleOf": 7919}, {"multipleOf": 7901}]}
    form = {"type": "json_schema", "json_schema": {"name": "bomb", "schema": bomb}}
    with ThreadPoolExecutor(1) as pool:
        refused = pool.submit(tested.ask, COMPLETIONS, {**TEXT, "response_format": form})
        assert tested.ask(COMPLETIONS, TEXT)[0] == 200
        status, told = refused.result()
    assert (status, "too complex" in told["error"]["message"]) == (400, True)
    deep = (
        b'{"model": "tiny", "prompt": "", "structured_outputs": {"json": ' + b'{"not":' * 10_000 + b"{}" + b"}" * 10_002
    )
    assert tested.ask(COMPLETIONS, deep)[0] == 400


@pytest.mark.parametrize("stream", [False, True])
def test_a_grammar_that_fails_while_it_is_written_is_the_clients_error(
    small: LLM, served: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """Such as one whose step takes more work than allowed: no fault of the server, and the next request is served."""
    monkeypatch.setattr("tinylm.inference.structured.Matcher.error", "a step took too much work")
    body = {**TEXT, "structured_outputs": {"choice": ["soup", "bread"]}, "stream": stream}
    with served(small) as running:
        if stream:
            (told,) = running.events(COMPLETIONS, body)
        else:
            status, told = running.ask(COMPLETIONS, body)
            assert status == 400
        assert told["error"]["type"] == "invalid_request_error"
        assert "too much work" in told["error"]["message"]
        assert running.ask(COMPLETIONS, TEXT)[0] == 200
        assert running.metrics()['tinylm_requests_total{reason="refused"}'] == 1
    assert small.engine.blocks.free == small.engine.blocks.count


def test_invalid_utf8_and_half_characters(tested: Any) -> None:
    assert tested.ask(COMPLETIONS, b'{"model": "tiny", "prompt": "\xff\xfe"}')[0] == 400
    assert tested.ask(COMPLETIONS, b'{"model": "tiny", "prompt": "\\ud83d"}')[0] == 400
    whole = tested.ask(COMPLETIONS, {**TEXT, "max_tokens": 300})[1]["choices"][0]["text"]
    events = tested.events(COMPLETIONS, {**TEXT, "max_tokens": 300})
    assert "".join(event["choices"][0]["text"] for event in events[:-1]) == whole


def test_weights_that_give_no_numbers_end_one_request_only(small: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others of its batch go on, and get what they would have got alone."""
    params = SamplingParams(max_tokens=12, seed=1, ignore_eos=True)
    alone = small.generate("The king", params)[0].outputs[0]
    plain = small.engine._runner.run

    def damaged(chunks: Any) -> Any:
        logits, each = plain(chunks)
        logits = logits.clone()
        for chunk, rows in zip(chunks, each, strict=True):
            if chunk.sequence.request_id == "bad" and chunk.sequence.drawn == 3:
                logits[rows.start : rows.stop] = torch.nan
        return logits, each

    monkeypatch.setattr(small.engine._runner, "run", damaged)
    ids = small.prompt_ids("The king")
    (bad,), (good,) = (small.engine.add_request(name, ids, params) for name in ("bad", "good"))
    while small.engine.busy:
        small.engine.step()
    assert (bad.finish_reason, bad.drawn) == ("error", 3)
    assert (good.finish_reason, good.output) == ("length", alone.token_ids)
    assert small.engine.blocks.free == small.engine.blocks.count


def test_the_cache_exhausted_in_mid_batch(small: LLM, served: Callable[..., Any]) -> None:
    """Sixteen long texts in a cache that holds two: all are written to their end, as they would be alone."""
    room = small.engine.blocks.count * small.engine.blocks.block_size
    bodies = [{**TEXT, "seed": seed, "max_tokens": 100, "ignore_eos": True} for seed in range(16)]
    assert room < 3 * 110
    alone = [
        small.generate("The cook says", SamplingParams(seed=seed, max_tokens=100, ignore_eos=True))[0].outputs[0].text
        for seed in range(16)
    ]
    with served(small) as running, ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda body: running.ask(COMPLETIONS, body), bodies))
        assert [(status, told["choices"][0]["text"]) for status, told in together] == [(200, text) for text in alone]
        assert running.metrics()["tinylm_preemptions_total"] > 0
        status, told = running.ask(COMPLETIONS, {**TEXT, "max_tokens": room})
        assert (status, "the whole cache holds" in told["error"]["message"]) == (400, True)
    assert small.engine.blocks.free == small.engine.blocks.count


def test_too_many_at_a_time_are_told_to_come_again(small: LLM, served: Callable[..., Any]) -> None:
    held = threading.Event()
    step = small.engine.step

    def waiting_step() -> Any:
        held.wait()
        return step()

    small.engine.step = waiting_step  # type: ignore[method-assign]
    with served(small, waiting=2) as running, ThreadPoolExecutor(2) as pool:
        first = [pool.submit(running.ask, COMPLETIONS, TEXT) for _ in range(2)]
        running.wait_for("tinylm_requests_waiting", lambda count: count == 2)
        with contextlib.closing(running.send(COMPLETIONS, TEXT)) as connection:
            answer = connection.getresponse()
            assert (answer.status, int(answer.headers["retry-after"]) >= 1) == (429, True)
            assert json.loads(answer.read())["error"]["type"] == "invalid_request_error"
        held.set()
        assert [asked.result()[0] for asked in first] == [200, 200]
        assert running.ask(COMPLETIONS, TEXT)[0] == 200


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_takes_too_long(small: LLM, served: Callable[..., Any], stream: bool) -> None:
    held, step = threading.Event(), small.engine.step

    def waiting_step() -> Any:
        held.wait()
        return step()

    small.engine.step = waiting_step  # type: ignore[method-assign]
    with served(small, request_seconds=1.0) as running:
        if stream:
            (event,) = running.events(COMPLETIONS, TEXT)
            assert "not finished within 1 s" in event["error"]["message"]
        else:
            assert running.ask(COMPLETIONS, TEXT)[0] == 504
        held.set()
        running.wait_for("tinylm_kv_cache_usage_ratio", lambda part: part == 0)
        assert running.metrics()['tinylm_requests_total{reason="late"}'] == 1
    assert small.engine.blocks.free == small.engine.blocks.count


def test_a_client_that_never_ends_its_request(
    small: LLM, served: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinylm.inference.server_limits._GRACE", 0.1)
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n"
    with (
        served(small, request_seconds=1.0) as running,
        socket.create_connection(("127.0.0.1", running.port)) as slow,
    ):
        slow.sendall(head.encode() + b"{")
        assert slow.recv(100).startswith(b"HTTP/1.1 408")


def test_a_client_whose_headers_never_end(
    small: LLM, served: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is cut off, at its first request or a later one; who asks again and again is not."""
    monkeypatch.setattr("tinylm.inference.server._SILENT", 0.5)
    address = "127.0.0.1"
    with served(small) as running:
        slow, later = (socket.create_connection((address, running.port), timeout=60) for _ in range(2))
        busy = http.client.HTTPConnection(address, running.port, timeout=60)
        with slow, later, contextlib.closing(busy):
            slow.sendall(b"GET /health HTTP/1.1\r\nHost:")
            later.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /hea")
            for _ in range(15):
                busy.request("GET", "/health")
                assert busy.getresponse().read() == b'{"status":"ok"}'
                time.sleep(0.1)
            assert slow.recv(100) == b""
            answer = b""
            while piece := later.recv(100):
                answer += piece
            assert answer.count(b"HTTP/1.1 200") == 1


def raw(running: Any, request: bytes) -> bytes:
    """What comes back until the server closes the connection."""
    answer = b""
    with (
        socket.create_connection(("127.0.0.1", running.port), timeout=60) as connection,
        contextlib.suppress(ConnectionError),  # it may have closed it before all was sent
    ):
        connection.sendall(request)
        while piece := connection.recv(4096):
            answer += piece
    return answer


def test_headers_without_end_are_refused(tested: Any) -> None:
    answer = raw(tested, b"GET /health HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * (1 << 24))
    assert not answer or answer.startswith(b"HTTP/1.1 400")
    assert tested.ask("/health")[0] == 200


def test_a_client_that_would_rather_speak_http_2(tested: Any) -> None:
    """Java's asks so; and one of HTTP/1.0 gets a stream that ends with the connection, not in chunks."""
    body = json.dumps({**TEXT, "stream": True}).encode()
    head = f"Host: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n".encode()
    upgrade = b"Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"
    answer = raw(tested, f"POST {COMPLETIONS} HTTP/1.1\r\n".encode() + head + upgrade + b"\r\n" + body)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"data: [DONE]" in answer
    answer = raw(tested, f"POST {COMPLETIONS} HTTP/1.0\r\n".encode() + head + b"\r\n" + body)
    assert b"data: [DONE]" in answer
    assert b"chunked" not in answer


def test_a_client_that_reads_a_byte_at_a_time(tested: Any) -> None:
    """It gets its answer at its pace, while others get theirs at once; its blocks are free when its text is written."""
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", tested.port))
        body = json.dumps({**TEXT, "max_tokens": 1000, "ignore_eos": True, "stream": True}).encode()
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        slow.sendall(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
        got = b"".join(slow.recv(1) for _ in range(200))
        assert got.startswith(b"HTTP/1.1 200")
        assert tested.ask(COMPLETIONS, TEXT)[0] == 200
        tested.wait_for("tinylm_kv_cache_usage_ratio", lambda part: part == 0)
        while piece := slow.recv(4096):
            got += piece
    assert b"data: [DONE]" in got


def test_ids_are_the_servers_own(tested: Any) -> None:
    """Two requests that bring one id get an id each: it cannot be used to reach another's answer."""
    answers = []
    for _ in range(2):
        with contextlib.closing(tested.send(COMPLETIONS, TEXT, **{"X-Request-Id": "mine"})) as connection:
            answer = connection.getresponse()
            told = json.loads(answer.read())
            assert answer.headers["x-request-id"] == told["id"]
            answers.append(told)
    assert answers[0]["id"] != answers[1]["id"]
    assert answers[0]["choices"] == answers[1]["choices"]
    assert tested.ask(COMPLETIONS, {**TEXT, "request_id": "mine"})[0] == 400


def test_connections_that_break_anywhere(tested: Any) -> None:
    """Cut after any number of bytes, in the head, the body, or while the answer comes."""
    body = json.dumps({**TEXT, "max_tokens": 200, "ignore_eos": True, "stream": True}).encode()
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    whole, chance = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body, random.Random(0)
    for _ in range(60):
        with socket.create_connection(("127.0.0.1", tested.port)) as connection:
            connection.sendall(whole[: chance.randrange(1, len(whole) + 40)])
            if chance.random() < 0.5:
                connection.settimeout(0.01)
                with contextlib.suppress(TimeoutError):
                    connection.recv(100)
    for rubbish in (b"\x00" * 100, b"GET /\xff HTTP/1.1\r\n\r\n", b"POST /v1/completions HTTP/9\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", tested.port)) as connection:
            connection.sendall(rubbish)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(100)


@pytest.mark.parametrize("seed", range(6))
def test_random_arrivals_lengths_and_cancellations(seed: int, tokenizer: Any) -> None:
    """Every text ends exactly once, with nothing after its end, and every block comes back."""
    chance = random.Random(seed)
    torch.manual_seed(seed)
    size = {"width": 32, "head_dim": 16, "context": 96}
    model = Transformer(TransformerConfig.preset("qwen3", tokenizer.vocab_size, 1, **size)).eval()
    config = EngineConfig(
        block_size=chance.choice([1, 4, 16]),
        kv_cache_memory_bytes=1 << 17,
        max_num_seqs=chance.choice([1, 3, 8]),
        max_num_batched_tokens=chance.choice([5, 16, 64]),
        enable_prefix_caching=chance.random() < 0.5,
    )
    engine = Engine(model, tokenizer, [tokenizer.eos_id], config)
    texts: list[Any] = []
    events: Counter[Any] = Counter()
    ended: Counter[Any] = Counter()
    for step in range(300):
        if step < 200 and chance.random() < 0.3:
            form = StructuredOutputsParams(choice=["soup", "bread"]) if chance.random() < 0.3 else None
            params = SamplingParams(
                n=chance.choice([1, 1, 3]),
                max_tokens=chance.choice([1, 5, 40]),
                seed=step,
                logprobs=chance.choice([None, 2]),
                prompt_logprobs=chance.choice([None, 0]),
                structured_outputs=form,
                stop=None if form else chance.choice([None, "e"]),
            )
            prompt = [chance.randrange(tokenizer.vocab_size) for _ in range(chance.choice([1, 7, 50]))]
            texts += engine.add_request(str(step), prompt, params)
        if texts and chance.random() < 0.1:
            doomed = chance.choice(texts)
            engine.abort(chance.choice([doomed, doomed.request_id]))
        for event in engine.step():
            key = (event.request_id, event.index)
            assert not ended[key]
            events[key] += 1
            ended[key] += event.finish_reason is not None
    while engine.busy:
        for event in engine.step():
            ended[event.request_id, event.index] += event.finish_reason is not None
    assert len(texts) > 20
    assert [ended[text.request_id, text.index] for text in texts] == [1] * len(texts)
    assert all(text.finish_reason in ("stop", "length", "abort") for text in texts)
    assert engine.blocks.free == engine.blocks.count
    assert not any(engine.blocks._users)
    assert not engine.scheduler.waiting
    assert not engine.scheduler.running


def test_the_http_surface_under_random_clients(client: Any) -> None:
    """Clients that come, read, leave or send rubbish at random: each request ends once, and nothing is left behind."""
    before = sum(v for k, v in client.metrics().items() if k.startswith("tinylm_requests_total"))

    def one(seed: int) -> int:
        chance = random.Random(seed)
        body = {
            **TEXT,
            "max_tokens": chance.choice([1, 20, 200]),
            "ignore_eos": True,
            "n": chance.choice([1, 4]),
            "stream": chance.random() < 0.6,
            "seed": seed,
        }
        with contextlib.closing(client.send(COMPLETIONS, body)) as connection:
            if chance.random() < 0.4:
                return 0  # leaves at once
            answer = connection.getresponse()
            if body["stream"] and chance.random() < 0.5:
                answer.read(chance.choice([1, 50, 500]))
                return 0  # leaves in between
            assert answer.status == 200
            told = answer.read()
            assert (
                told.endswith(b"data: [DONE]\n\n") if body["stream"] else len(json.loads(told)["choices"]) == body["n"]
            )
        return 1

    with ThreadPoolExecutor(8) as pool:
        whole = sum(pool.map(one, range(60)))
    assert whole > 10
    client.wait_for("tinylm_kv_cache_usage_ratio", lambda part: part == 0)
    client.wait_for("tinylm_requests_waiting", lambda count: count == 0)
    counted = client.metrics()
    after = sum(v for k, v in counted.items() if k.startswith("tinylm_requests_total"))
    assert whole <= after - before <= 60
    assert counted["tinylm_texts_running"] == counted["tinylm_texts_waiting"] == 0
