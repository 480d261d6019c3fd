"""Each sampling step against its formula, and against transformers where it has the same step."""

import math
import random

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from tinylm.inference import InferenceError, SamplingParams  # noqa: E402
from tinylm.inference import sampling as s  # noqa: E402

LOGITS = torch.tensor([1.5, -0.5, 3.0, 0.0, 2.9, -4.0])
rows = st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=40).map(torch.tensor)


def kept(logits: torch.Tensor) -> set[int]:
    return set(logits.isfinite().nonzero().flatten().tolist())


def softmax(values: list[float]) -> list[float]:
    powers = [math.exp(v - max(values)) for v in values]
    return [p / sum(powers) for p in powers]


def test_temperature_divides_the_logits() -> None:
    expected = softmax([v / 0.7 for v in LOGITS.tolist()])
    assert s.apply_temperature(LOGITS, 0.7).softmax(0).tolist() == pytest.approx(expected, rel=1e-5)


def test_a_very_cold_temperature_overflows_nothing() -> None:
    cold = s.apply_temperature(LOGITS, 1e-5).softmax(0)
    assert cold.argmax() == 2
    assert cold[2] == pytest.approx(1)


@given(rows, st.integers(1, 45))
def test_top_k_keeps_the_k_largest_and_their_equals(logits: torch.Tensor, k: int) -> None:
    ordered = sorted(logits.tolist(), reverse=True)
    threshold = ordered[min(k, len(ordered)) - 1]
    assert kept(s.apply_top_k(logits, k)) == {i for i, v in enumerate(logits.tolist()) if v >= threshold}


@pytest.mark.parametrize("k", [0, -1])
def test_top_k_off_keeps_all(k: int) -> None:
    assert torch.equal(s.apply_top_k(LOGITS, k), LOGITS)


@given(rows, st.floats(0.01, 0.999))
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits: torch.Tensor, p: float) -> None:
    probabilities = softmax(logits.tolist())
    chosen = kept(s.apply_top_p(logits, p))
    mass = sum(probabilities[i] for i in chosen)
    rest = [probabilities[i] for i in range(len(logits)) if i not in chosen]
    assert chosen
    assert mass >= p - 1e-5
    assert mass - min(probabilities[i] for i in chosen) < p + 1e-5  # without its least likely token it falls short
    assert not rest or max(rest) <= min(probabilities[i] for i in chosen) + 1e-6


@given(rows, st.floats(0.001, 1))
def test_min_p_is_relative_to_the_likeliest(logits: torch.Tensor, min_p: float) -> None:
    result = s.apply_min_p(logits, min_p)
    ratio = (logits - logits.max()).exp()
    assert int(logits.argmax()) in kept(result)
    assert all(ratio[i] >= min_p - 1e-5 for i in kept(result))
    assert all(ratio[i] < min_p + 1e-5 for i in set(range(len(logits))) - kept(result))


def test_steps_equal_transformers() -> None:
    warpers = pytest.importorskip("transformers.generation.logits_process")
    generator = torch.Generator().manual_seed(0)
    ids = torch.tensor([[3, 3, 17, 40]])
    for _ in range(20):
        row = torch.randn(1, 200, generator=generator) * 3
        assert torch.equal(s.apply_top_k(row[0], 7), warpers.TopKLogitsWarper(7)(ids, row)[0])
        assert torch.equal(s.apply_top_p(row[0], 0.8), warpers.TopPLogitsWarper(0.8)(ids, row)[0])
        assert torch.equal(s.apply_min_p(row[0], 0.05), warpers.MinPLogitsWarper(0.05)(ids, row)[0])
        ours = s.apply_repetition_penalty(row[0], ids[0].tolist(), 1.3)
        assert torch.allclose(ours, warpers.RepetitionPenaltyLogitsProcessor(1.3)(ids, row)[0])


def test_presence_and_frequency_follow_openai() -> None:
    result = s.apply_presence_and_frequency(LOGITS, [2, 2, 0], presence=0.5, frequency=0.25)
    expected = LOGITS.tolist()
    expected[2] -= 0.5 + 2 * 0.25
    expected[0] -= 0.5 + 0.25
    assert result.tolist() == pytest.approx(expected)


def test_logit_bias_adds_and_refuses_ids_outside_the_vocabulary() -> None:
    assert s.apply_logit_bias(LOGITS, {3: 2.5})[3] == pytest.approx(2.5)
    with pytest.raises(InferenceError, match="outside the model's vocabulary of 6"):
        s.apply_logit_bias(LOGITS, {6: 1.0})


def test_top_p_is_of_what_min_p_left() -> None:
    """As in vLLM. 0.5, 0.3 and 0.15 are at least 0.2 of 0.5; the first two are 0.84 of these three, 0.8 of all four."""
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    for params, wanted in (
        (SamplingParams(min_p=0.2, top_p=0.82), {0, 1}),
        (SamplingParams(top_p=0.82), {0, 1, 2}),
        (SamplingParams(min_p=0.2), {0, 1, 2}),
    ):
        assert {s.sample(logits, params, [], [], random.Random(seed)) for seed in range(200)} == wanted


def test_no_step_changes_its_input() -> None:
    before = LOGITS.clone()
    s.sample(
        LOGITS,
        SamplingParams(
            top_k=3, top_p=0.5, min_p=0.1, logit_bias={1: 1.0}, repetition_penalty=2.0, presence_penalty=1.0, seed=0
        ),
        [1],
        [2],
        random.Random(0),
    )
    assert torch.equal(LOGITS, before)


def test_draw_gives_each_token_its_share_of_the_interval() -> None:
    points = 20_000
    counts = [0] * len(LOGITS)
    for i in range(points):
        counts[s.draw(LOGITS, (i + 0.5) / points)] += 1
    assert [c / points for c in counts] == pytest.approx(softmax(LOGITS.tolist()), abs=1.5 / points)


@settings(max_examples=200)
@given(rows, st.floats(0, 1, exclude_max=True), st.integers(1, 5))
def test_draw_never_hits_a_token_that_was_ruled_out(logits: torch.Tensor, uniform: float, k: int) -> None:
    masked = s.apply_top_k(logits, k)
    assert s.draw(masked, uniform) in kept(masked)


def test_draw_at_the_edges() -> None:
    masked = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf])
    assert s.draw(masked, 0.0) == 1
    assert s.draw(masked, math.nextafter(1.0, 0.0)) == 3


def test_greedy_takes_the_largest_and_draws_nothing() -> None:
    rng = random.Random(5)
    state = rng.getstate()
    assert s.sample(LOGITS, SamplingParams(temperature=0, top_k=1, top_p=0.1), [], [], rng) == 2
    assert rng.getstate() == state


def test_temperature_comes_before_top_p() -> None:
    """At temperature 5 the nucleus of 0.5 is wider than at 1: the order of the steps shows."""
    hot = SamplingParams(temperature=5.0, top_p=0.5, seed=0)
    drawn = {s.sample(LOGITS, hot, [], [], random.Random(i)) for i in range(200)}
    assert drawn == kept(s.apply_top_p(LOGITS / 5.0, 0.5))
    assert drawn != kept(s.apply_top_p(LOGITS, 0.5))


def test_nothing_left_to_draw_is_an_error() -> None:
    with pytest.raises(InferenceError, match="rule out every token"):
        s.sample(torch.full((4,), -torch.inf), SamplingParams(), [], [], random.Random(0))
