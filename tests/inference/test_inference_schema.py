"""schemathesis over the published OpenAPI: whatever it sends, the answer is one that the schema announces."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
schemathesis = pytest.importorskip("schemathesis")
pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")

from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402  # after importorskip

from tinylm.inference import LLM  # noqa: E402

# What JSON Schema does not say of a body: which fields go together, what fits this model, what a grammar is.
BEYOND_THE_SCHEMA = re.compile(
    "n must be 1 when temperature is 0|must not be above max_tokens|only with|only in a message|"
    "the chat template failed|one request gives at most|"
    "give one of them|structured output|cannot go with structured_outputs|token ids? |the prompt has|"
    "two functions have|rule out every token|there is no function|the content of a message|does not show them|seed"
)


@pytest.fixture(scope="module")
def base(checkpoint: Path, served: Callable[..., Any]) -> Iterator[str]:
    with served(LLM(str(checkpoint), dtype="float32", device="cpu")) as running:  # a short context: short answers
        yield f"http://127.0.0.1:{running.port}"


def check(base: str, method: str, path: str, mode: str, examples: int) -> None:
    operation = schemathesis.openapi.from_url(f"{base}/openapi.json")[path][method]

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode[mode]))
    def every(case: Any) -> None:
        answer = case.call(base_url=base, timeout=60)
        excluded = []
        if mode == "POSITIVE" and answer.status_code == 400:
            assert BEYOND_THE_SCHEMA.search(answer.json()["error"]["message"])
            excluded = [schemathesis.checks.CHECKS.get_one("positive_data_acceptance")]
        case.validate_response(answer, excluded_checks=excluded)

    every()


@pytest.mark.parametrize("mode", ["POSITIVE", "NEGATIVE"])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_every_answer_to_a_body_is_one_that_the_schema_announces(base: str, path: str, mode: str) -> None:
    check(base, "POST", path, mode, examples=120)


@pytest.mark.parametrize("path", ["/health", "/metrics", "/v1/models", "/v1/models/{model}"])
def test_what_takes_no_body_answers_as_announced(base: str, path: str) -> None:
    check(base, "GET", path, "POSITIVE", examples=1)
