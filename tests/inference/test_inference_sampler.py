"""Decoding's rungs give what the rung below gives; the sampler draws, in a batch, what each row draws alone."""

import random

import pytest

torch = pytest.importorskip("torch")

from tinylm.inference import SamplingParams, _decoding_ladder, sampler, sampling  # noqa: E402  # after importorskip
from tinylm.inference.sequence import Sequence  # noqa: E402

RUNGS = {rung["rung"]: rung for rung in _decoding_ladder.rungs()}


@pytest.mark.parametrize("name", [name for name, rung in RUNGS.items() if rung["equals"] is not None])
def test_a_rung_equals_the_one_below(name: str) -> None:
    rung = RUNGS[name]
    work = rung["make"](3)
    assert rung["compare"](rung["run"](work), RUNGS[rung["equals"]]["run"](work)) == 0


def test_a_difference_would_be_seen() -> None:
    assert RUNGS["speculation"]["compare"]([[1, 2]], [[1, 3]]) == 0.5


def test_the_batch_draws_what_each_row_draws_alone() -> None:
    """All parameters mixed in one batch, many times; equal draws from equal distributions, and equal last bits."""
    chooser = random.Random(1)
    for trial in range(20):
        logits = 3 * torch.randn(12, 97, generator=torch.Generator().manual_seed(trial))
        sequences = []
        for row in range(12):
            params = SamplingParams(
                temperature=chooser.choice([0, 0.3, 1.0, 1.7]),
                top_k=chooser.choice([0, 1, 5, 200]),
                top_p=chooser.choice([1.0, 0.9, 0.2]),
                min_p=chooser.choice([0.0, 0.1]),
                repetition_penalty=chooser.choice([1.0, 1.3]),
                presence_penalty=chooser.choice([0.0, 0.7]),
                frequency_penalty=chooser.choice([0.0, -0.4]),
                logit_bias=chooser.choice([None, {3: 1.5, 90: -2.0}]),
                seed=trial * 100 + row,
            )
            text = Sequence("a", [1, 2, row], params, 64)
            text.tokens += [chooser.randrange(97) for _ in range(chooser.randrange(9))]
            sequences.append(text)
        expected = [
            sampling.sample(row, text.params, text.prompt_token_ids, text.output, random.Random(text.params.seed))
            for row, text in zip(logits, sequences, strict=True)
        ]
        assert sampler.choose(logits, sequences) == expected
    params = [text.params for text in sequences]
    warm = [p if p.temperature else SamplingParams() for p in params]
    together = sampler.apply_top_p(sampler.apply_top_k(sampler.apply_min_p(logits, params), params), params)
    for row, p in enumerate(params):
        alone = sampling.apply_top_p(sampling.apply_top_k(sampling.apply_min_p(logits[row], p.min_p), p.top_k), p.top_p)
        assert torch.equal(together[row], alone)
        assert torch.equal(
            sampler.apply_temperature(logits, warm)[row], sampling.apply_temperature(logits[row], warm[row].temperature)
        )
