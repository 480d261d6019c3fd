"""Inference tests: small checkpoints of random weights, and helpers that several test files share.

No trained model is needed: what is tested is that text, tokens and stopping are right, not that the text is good.
"""

import contextlib
import hashlib
import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tinylm.inference import LLM  # noqa: E402  # after importorskip
from tinylm.model import Transformer, TransformerConfig  # noqa: E402
from tinylm.tokenizer import Tokenizer  # noqa: E402

torch.set_num_threads(1)  # the models are tiny: threads would only wait for each other
os.environ["OMP_NUM_THREADS"] = "1"  # the same for the commands that tests start

MADE_TEXT = "The cook says: good soup! The king says: naïve wörld, 你好 🙂.\nWho sings? The bird sings in the tree.\n"
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return Tokenizer.train([MADE_TEXT * 20], vocab_size=300, special_tokens=special, chat_template=CHATML)


@pytest.fixture(scope="session")
def make_checkpoint(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """make_checkpoint(preset="qwen3", depth=1, context=64, ...) writes a checkpoint directory like the trainer's."""

    def make(preset: str = "qwen3", depth: int = 1, context: int = 64, seed: int = 0, **overrides: object) -> Path:
        directory = tmp_path_factory.mktemp("checkpoint")
        torch.manual_seed(seed)
        overrides = {"vocab_size": tokenizer.vocab_size, **overrides}
        model = Transformer(TransformerConfig.preset(preset, depth=depth, context=context, **overrides))
        with torch.no_grad():  # larger than for training: the texts then wander instead of repeating one token
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(std=0.25)
        tokenizer.save(directory)
        sha256 = hashlib.sha256((directory / "tokenizer.json").read_bytes()).hexdigest()
        model.save(directory, {"tokenizer_sha256": sha256})
        (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": tokenizer.eos_id}))
        return directory

    return make


@pytest.fixture(scope="session")
def checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint(depth=2)


@pytest.fixture(scope="session")
def llm(checkpoint: Path) -> LLM:
    return LLM(str(checkpoint), dtype="float32", device="cpu")


@pytest.fixture
def write(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[int]], None]:
    """write(ids): from now on the "model" draws exactly these ids, one after the other."""

    def script(ids: list[int]) -> None:
        drawn = iter(ids)
        monkeypatch.setattr("tinylm.inference.sampler.choose", lambda rows, _: [next(drawn) for _ in rows])

    return script


@pytest.fixture(scope="session")
def recompute() -> Callable[..., list[int]]:
    """The lowest rung, with sampling: the whole text through the model again for every token, no cache."""
    import random

    from tinylm.inference.sampling import sample

    @torch.inference_mode()
    def run(llm: LLM, prompt: list[int], params: object, count: int) -> list[int]:
        rng, output = random.Random(params.seed), []
        for _ in range(count):
            ids = torch.tensor([[*prompt, *output]], device=llm.device)
            logits = llm.model(ids)[0, -1].float().cpu()
            output.append(sample(logits, params, prompt, output, rng))
        return output

    return run


@pytest.fixture(scope="session")
def regret() -> Callable[..., list[float]]:
    """How far each greedy token's logit is below the best one, both recomputed without a cache: 0 if it is the best.

    In fractions of the largest logit. Rounding may swap two tokens that are nearly equal; a wrong cache does far worse.
    """

    @torch.inference_mode()
    def run(llm: LLM, prompt: list[int], output: list[int]) -> list[float]:
        lost = []
        for position, token_id in enumerate(output):
            ids = torch.tensor([[*prompt, *output[:position]]], device=llm.device)
            logits = llm.model(ids)[0, -1].float()
            lost.append(float((logits.max() - logits[token_id]) / logits.abs().max()))
        return lost

    return run


class Client:
    """Requests to one server, each over a connection of its own. Only the standard library: see what is sent."""

    def __init__(self, port: int, llm: LLM | None = None, app: Any = None) -> None:
        self.port, self.llm, self.app = port, llm, app

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

    def metrics(self) -> dict[str, float]:
        """/metrics by name, labels included."""
        with contextlib.closing(self.send("/metrics")) as connection:
            lines = connection.getresponse().read().decode().splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}

    def wait_for(self, name: str, holds: Callable[[float], bool]) -> None:
        """Asks for the metrics until it holds; for ever where it never does (pytest-timeout says where)."""
        while not holds(self.metrics().get(name, 0)):
            time.sleep(0.01)

    def events(self, path: str, body: dict[str, Any]) -> list[Any]:
        """The events of a stream; the last is "[DONE]"."""
        with contextlib.closing(self.send(path, {**body, "stream": True})) as connection:
            answer = connection.getresponse()
            assert (answer.status, answer.headers.get_content_type()) == (200, "text/event-stream")
            *parts, rest = answer.read().decode("ascii").split("\n\n")
        assert rest == ""
        assert all(part.startswith("data: ") for part in parts)
        return [part[6:] if part == "data: [DONE]" else json.loads(part[6:]) for part in parts]


@pytest.fixture(scope="session")
def served() -> Callable[..., contextlib.AbstractContextManager[Client]]:
    """`with served(llm) as client`: a server in a thread, at a free port, for a model called "tiny"."""
    from tinylm.inference import server
    from tinylm.inference.server_limits import ServerLimits

    @contextlib.contextmanager
    def start(llm: LLM, **limits: Any) -> Iterator[Client]:
        asked = ServerLimits(**limits)
        app = server.build_app(llm, "tiny", asked)
        running = server._Server(app, "tiny", asked)
        with server.bind("127.0.0.1", 0) as listener:
            # Little fits between server and client: one that does not read is soon noticed.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            listener.listen()
            thread = threading.Thread(target=running.run, args=([listener],))
            thread.start()
            try:
                yield Client(listener.getsockname()[1], llm, app)
            finally:
                running.should_exit = True
                thread.join(timeout=60)

    return start


@pytest.fixture(scope="session")
def long_checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint(depth=1, context=4096)


@pytest.fixture(scope="session")
def long_llm(long_checkpoint: Path) -> LLM:
    return LLM(str(long_checkpoint), dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def client(long_checkpoint: Path, served: Callable[..., contextlib.AbstractContextManager[Client]]) -> Iterator[Client]:
    """A server of the model of `long_llm`, in an engine of its own: an engine belongs to one thread."""
    with served(LLM(str(long_checkpoint), dtype="float32", device="cpu")) as running:
        yield running
