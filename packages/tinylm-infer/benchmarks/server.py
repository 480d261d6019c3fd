"""The server under load: clients that stream, tokens per CPU-second, time to the first token, time between tokens.

    python packages/tinylm-infer/benchmarks/server.py [--only WORD ...] [--long-seconds 120] [--json FILE] [--quick]

GPT-2's shape (124M), random weights, one thread a server (`--threads 2` is for a quiet machine), prompts of 64 random
tokens, 64 new ones, greedy. 8 clients, each with 4 requests one after the other, then 64 clients for two minutes: how
many requests failed (429 apart), and by how much the server's memory grew between the first quarter and the end. CPU
time is that of the server's processes; the clients are in this one and not counted. Peer: vLLM's CPU build, in an
environment of its own (its requirements are not ours), eager and without a prefix cache: `--vllm PYTHON`, left out
where that is not given.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

from tinylm.model import Transformer, TransformerConfig
from tinylm.observability.tables import cells, new_table, write_table

PROMPT, COUNT, VOCABULARY = 64, 64, 50257
COLUMNS = [
    "server",
    "clients",
    "tokens per CPU-s",
    "tokens/s",
    "first token, s (median)",
    "between tokens, ms (median)",
    "requests",
    "refused (429)",
    "failed",
    "memory grew, MB",
]
QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
VLLM = {"VLLM_CPU_KVCACHE_SPACE": "1", **QUIET}


@dataclass
class Load:
    """What the clients of one run saw."""

    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    tokens: int = 0
    statuses: list[int] = field(default_factory=list)

    def ask(self, port: int, model: str, seed: int) -> None:
        """One request, read to its end."""
        chance = random.Random(seed)
        prompt = [chance.randrange(1, VOCABULARY) for _ in range(PROMPT)]
        body = {"model": model, "prompt": prompt, "max_tokens": COUNT, "ignore_eos": True, "temperature": 0}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=600)) as connection:
            start = time.perf_counter()
            connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            self.statuses.append(answer.status)
            if answer.status != 200:
                time.sleep(float(answer.headers.get("Retry-After", 0)))
                return
            arrived, usage = [start], 0
            while (line := answer.readline()) and line != b"data: [DONE]\n":
                if line.startswith(b"data: "):
                    event = json.loads(line[6:])
                    arrived += [time.perf_counter()] if event["choices"] else []
                    usage = (event.get("usage") or {}).get("completion_tokens", usage)
        self.tokens += usage
        self.first.append(arrived[1] - start)
        # A server may send several tokens in one event: the mean over the text says what a reader sees.
        self.between.append((arrived[-1] - arrived[1]) / max(1, usage - 1))


def checkpoint(folder: Path) -> Path:
    """Random weights, and a tokenizer in which each of the 50,257 ids is some ASCII text: every token is an event."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    torch.manual_seed(0)
    directory = folder / "gpt2-shape"
    Transformer(TransformerConfig.preset("gpt2", vocab_size=VOCABULARY, depth=12)).save(directory)
    letters = [chr(code) for code in range(33, 127)]
    pairs = list(itertools.product(letters, letters))
    triples = ((a + b, c) for a, b in pairs for c in letters)
    merges = [*pairs, *itertools.islice(triples, VOCABULARY - 256 - len(pairs))]
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
    made = tokenizers.Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=made).save_pretrained(directory)
    return directory


def ours(directory: Path, kind: str) -> list[str]:
    options = ["--quantization", kind] if kind.startswith("int") else ["--dtype", kind]
    return [sys.executable, "-m", "tinylm.inference", "serve", str(directory), *options]


def vllm(directory: Path, python: str) -> list[str]:
    options = ["--dtype", "bfloat16", "--enforce-eager", "--no-enable-prefix-caching", "--max-model-len", "1024"]
    return [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(directory), *options]


@contextlib.contextmanager
def running(command: list[str], threads: int) -> Iterator[tuple[int, str, psutil.Process]]:
    """(port, the model's name, the process) of a server that answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cores = ",".join(map(str, range(threads)))
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), **VLLM, "VLLM_CPU_OMP_THREADS_BIND": cores}
    if "vllm" in command[2]:
        environment.pop("PYTHONPATH", None)  # its environment holds other versions
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([*command, "--port", str(port)], env=environment, **silent) as process:
        try:
            yield port, model_name(process, port), psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(60)


def model_name(process: subprocess.Popen[bytes], port: int) -> str:
    while process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        with contextlib.suppress(OSError, ValueError, LookupError), contextlib.closing(connection):
            connection.request("GET", "/v1/models")
            return str(json.loads(connection.getresponse().read())["data"][0]["id"])
        time.sleep(0.5)
    raise RuntimeError(f"the server ended with code {process.returncode}")


def everything(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def cpu_seconds(process: psutil.Process) -> float:
    return float(sum(sum(p.cpu_times()[:2]) for p in everything(process)))


def megabytes(process: psutil.Process) -> float:
    return float(sum(p.memory_info().rss for p in everything(process)) / 1e6)


def measure(
    port: int, model: str, process: psutil.Process, clients: int, requests: int, seconds: float, turn: int
) -> list[Any]:
    """A row without the server's name: each client asks `requests` times, or until `seconds` are over (0: never).

    Another `turn` has other prompts: what is known from the turn before helps no cache of beginnings.
    """
    load, before, start = Load(), cpu_seconds(process), time.monotonic()
    end = start + seconds

    def client(number: int) -> None:
        for asked in range(requests):
            if seconds and time.monotonic() > end:
                return
            try:
                load.ask(port, model, (turn * clients + number) * 10_000 + asked)
            except (OSError, http.client.HTTPException, ValueError, LookupError):
                load.statuses.append(0)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    early = None
    if seconds:
        time.sleep(seconds / 4)
        early = megabytes(process)
    for thread in threads:
        thread.join()
    took = time.monotonic() - start
    refused = load.statuses.count(429)
    return [
        clients,
        load.tokens / (cpu_seconds(process) - before),
        load.tokens / took,
        statistics.median(load.first),
        1e3 * statistics.median(load.between),
        len(load.statuses),
        refused,
        len(load.statuses) - refused - load.statuses.count(200),
        None if early is None else megabytes(process) - early,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="The server under load, beside vLLM's.")
    parser.add_argument("--only", nargs="*", default=[], metavar="WORD", help="servers with a word in their name")
    parser.add_argument("--vllm", metavar="PYTHON", help="the Python of an environment with vllm-cpu")
    parser.add_argument("--long-seconds", type=float, default=120.0, help="how long 64 clients ask; 0: not at all")
    parser.add_argument("--rounds", type=int, default=3, help="of the 8 clients, every server in turn")
    parser.add_argument("--threads", type=int, default=1, help="of each server; with 2 the clock counts")
    parser.add_argument("--json", type=Path, help="write the table here as well")
    parser.add_argument("--quick", action="store_true", help="one round, 64 clients for 5 s, ours in bfloat16 only")
    options = parser.parse_args()
    words = options.only or (["tinylm bfloat16"] if options.quick else [])
    rounds, long_seconds = (1, 5.0) if options.quick else (options.rounds, options.long_seconds)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        directory = checkpoint(Path(temporary))
        commands = {f"tinylm {kind}": ours(directory, kind) for kind in ("float32", "bfloat16", "int8")}
        if options.vllm:
            commands["vLLM bfloat16"] = vllm(directory, options.vllm)
        else:
            print("left out: vLLM: --vllm PYTHON says which environment has its CPU build")
        commands = {n: c for n, c in commands.items() if not words or any(word in n for word in words)}
        with contextlib.ExitStack() as stack:
            servers = {
                name: stack.enter_context(running(command, options.threads)) for name, command in commands.items()
            }
            for server in servers.values():
                measure(*server, 8, 1, 0, turn=0)  # memory is touched and caches fill
            found: dict[str, list[list[Any]]] = {name: [] for name in servers}
            for number in range(1, rounds + 1):
                for name, server in servers.items():
                    found[name].append(measure(*server, 8, 4, 0, turn=number))
            for name, each in found.items():
                rows.append([name, *(middle(column) for column in zip(*each, strict=True))])
            if long_seconds:
                for name, server in servers.items():
                    rows.append([name, *measure(*server, 64, 10**6, long_seconds, turn=rounds)])
    command = "python packages/tinylm-infer/benchmarks/server.py"
    command += "".join(f" {word!r}" if " " in word else f" {word}" for word in (["--only", *words] if words else []))
    command += f" --rounds {rounds}" if rounds != 3 else ""
    command += f" --threads {options.threads}" if options.threads != 1 else ""
    command += " --vllm PYTHON" if any("vLLM" in name for name in commands) else ""
    command += "" if long_seconds == 120 else f" --long-seconds {long_seconds:g}"
    title = f"GPT-2's shape (124M), streaming clients; the server's CPU time, threads: {options.threads}"
    table = new_table(title, command, COLUMNS, rows)
    for line in [table["columns"], *cells(table)]:
        print("  ".join(text.ljust(16) for text in line))
    if options.json is not None:
        write_table(table, options.json)


def middle(column: tuple[Any, ...]) -> Any:
    return None if column[0] is None else statistics.median(column)


if __name__ == "__main__":
    main()
