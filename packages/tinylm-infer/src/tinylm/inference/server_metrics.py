"""tinylm.inference: what the server counts and times, as Prometheus reads it (text format 0.0.4).

Numbers only: `server_desk.py` reports what happens, `server.py` shows the text at `/metrics`.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping

from tinylm.inference.engine import Engine

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0)


class Histogram:
    """How many observations lie at or below each bound, their number and their sum."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_SECONDS) + 1)
        self.sum = 0.0

    @property
    def mean(self) -> float:
        return self.sum / max(1, sum(self._counts))

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(_SECONDS, seconds)] += 1
        self.sum += seconds

    def lines(self, name: str) -> list[str]:
        told, below = [], 0
        for bound, count in zip([*_SECONDS, "+Inf"], self._counts, strict=True):
            below += count
            told.append(f'{name}_bucket{{le="{bound}"}} {below}')
        return [*told, f"{name}_sum {self.sum}", f"{name}_count {below}"]


class Metrics:
    """`ended` counts requests by how they ended: stop, length, incomplete, error, refused, left, late, stopping."""

    def __init__(self) -> None:
        self.first_token, self.each_token, self.whole = Histogram(), Histogram(), Histogram()
        self.prompt_tokens = self.written_tokens = 0
        self.ended: Counter[str] = Counter()

    def text(self, engine: Engine, waiting: int) -> str:
        """`waiting`: requests without a first token."""
        prefix, scheduler = engine.blocks.prefix, engine.scheduler
        told = [
            *_told("requests_total", "counter", "Requests that have ended, and how.", self.ended, "reason"),
            *_told("prompt_tokens_total", "counter", "Tokens of prompts.", self.prompt_tokens),
            *_told("generation_tokens_total", "counter", "Tokens written.", self.written_tokens),
            *_told("requests_waiting", "gauge", "Requests without a first token.", waiting),
            *_told("texts_running", "gauge", "Texts in the batch.", len(scheduler.running)),
            *_told("texts_waiting", "gauge", "Texts that wait for a place in the batch.", len(scheduler.waiting)),
            *_told("preemptions_total", "counter", "Texts that had to give their blocks up.", scheduler.preemptions),
            *_told("kv_cache_usage_ratio", "gauge", "Part of the cache's blocks in use.", engine.cache_use),
        ]
        if prefix is not None:
            told += _told("prefix_cache_queries_total", "counter", "Tokens looked up.", prefix.asked_tokens)
            told += _told("prefix_cache_hits_total", "counter", "Tokens found.", prefix.hit_tokens)
        for name, description, histogram in (
            ("time_to_first_token_seconds", "From a request's arrival to its first token.", self.first_token),
            ("time_per_output_token_seconds", "Between two tokens of a text.", self.each_token),
            ("request_duration_seconds", "From a request's arrival to its end.", self.whole),
        ):
            told += [*_head(name, "histogram", description), *histogram.lines(f"tinylm_{name}")]
        return "\n".join(told) + "\n"


def _head(name: str, kind: str, description: str) -> list[str]:
    return [f"# HELP tinylm_{name} {description}", f"# TYPE tinylm_{name} {kind}"]


def _told(name: str, kind: str, description: str, value: float | Mapping[str, int], label: str = "") -> list[str]:
    if not isinstance(value, Mapping):
        return [*_head(name, kind, description), f"tinylm_{name} {value}"]
    lines = [f'tinylm_{name}{{{label}="{which}"}} {count}' for which, count in sorted(value.items())]
    return [*_head(name, kind, description), *lines]
