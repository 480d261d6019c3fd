"""The cache and the two decoding rungs: the same tokens, whatever is remembered."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylm.model import KVCache, ModelError, Transformer, TransformerConfig, generate
from tinylm.model.decoding import kv_cache, recompute

PRESETS = ("gpt2", "llama", "qwen3")
torch.manual_seed(0)
CHUNK_MODEL = Transformer(TransformerConfig.preset("qwen3", 50, 2, width=32, head_dim=8, kv_heads=2, context=40)).eval()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_any_cutting_into_chunks_gives_the_same_logits(sizes):
    ids = torch.randint(0, 50, (2, sum(sizes[:4])), generator=torch.Generator().manual_seed(0))
    sizes = sizes[:4]
    cache = KVCache(CHUNK_MODEL.config, 2, ids.shape[1])
    with torch.no_grad():
        pieces = [CHUNK_MODEL(piece, cache=cache) for piece in ids.split(sizes, dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), CHUNK_MODEL(ids), atol=2e-5, rtol=1e-5)
    assert cache.length == ids.shape[1]


@pytest.mark.parametrize("preset", PRESETS)
def test_cached_decoding_equals_recomputation(preset, small, ids):
    model, prompt = small(preset, kv_heads=4 if preset == "gpt2" else 2), ids(3, 5)
    new = recompute(model, prompt, 40)
    assert new.shape == (3, 40)
    assert torch.equal(kv_cache(model, prompt, 40), new)
    assert generate is kv_cache


@pytest.mark.parametrize("preset", PRESETS)
def test_left_padded_batches_write_what_each_row_writes_alone(preset, small, ids):
    model = small(preset)
    rows = [ids(1, n)[0] for n in (2, 7, 11)]
    batch, mask = torch.zeros(3, 11, dtype=torch.long), torch.zeros(3, 11, dtype=torch.bool)
    for i, row in enumerate(rows):
        batch[i, 11 - len(row) :], mask[i, 11 - len(row) :] = row, True
    together = kv_cache(model, batch, 20, mask=mask)
    assert torch.equal(together, recompute(model, batch, 20, mask=mask))
    for i, row in enumerate(rows):
        assert torch.equal(together[i], kv_cache(model, row[None], 20)[0])


def test_a_seed_gives_the_same_draw_on_both_rungs(small, ids):
    model, prompt = small("qwen3"), ids(2, 4)
    draws = [
        rung(model, prompt, 30, temperature=1.0, generator=torch.Generator().manual_seed(seed))
        for seed in (5, 6)
        for rung in (recompute, kv_cache)
    ]
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[2], draws[3])
    assert not torch.equal(draws[0], draws[2])


def test_drawn_tokens_follow_the_softmax(small, ids):
    model, prompt = small("llama", vocab_size=7), ids(1, 4, 7)
    drawn = kv_cache(model, prompt.expand(4000, -1), 1, temperature=2.0, generator=torch.Generator().manual_seed(0))
    seen = torch.bincount(drawn[:, 0], minlength=7) / 4000
    wanted = torch.softmax(model(prompt)[0, -1] / 2.0, dim=-1)
    assert (seen - wanted).abs().max() < 0.04  # five standard deviations of a share of 4000


def test_the_cache_says_when_it_is_full(small, ids):
    model = small("qwen3")
    cache = KVCache(model.config, 1, 6)
    with torch.no_grad():
        model(ids(1, 4), cache=cache)
        with pytest.raises(ModelError, match=r"wanted room for 7 tokens \(4 cached \+ 3 new\), got max_length=6"):
            model(ids(1, 3), cache=cache)
        assert cache.length == 4
        with pytest.raises(ModelError, match="batch of 1, got 2"):
            model(ids(2, 1), cache=cache)
    with pytest.raises(ModelError, match="at least 1"):
        KVCache(model.config, 0, 6)


def test_a_cache_that_does_not_fit_is_refused(small, ids):
    model = small("qwen3")
    with torch.no_grad():
        for other in ({"depth": 3}, {"head_dim": 8}):
            with pytest.raises(ModelError, match="made for this model"):
                model(ids(1, 4), cache=KVCache(small("qwen3", **other).config, 1, 6))
        with pytest.raises(ModelError, match=r"own type torch\.float64"):
            model(ids(1, 4), cache=KVCache(model.config, 1, 6, dtype=torch.float64))
    with pytest.raises(ModelError, match="no gradient"):
        model(ids(1, 4), cache=KVCache(model.config, 1, 6))


def test_a_cache_without_a_common_length_needs_positions(small, ids):
    class Own:
        """A cache as inference may bring one: only `attend`."""

        def attend(self, layer, q, k, v, mask=None):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    model, tokens = small("qwen3"), ids(1, 6)
    torch.testing.assert_close(model(tokens, positions=torch.arange(6), cache=Own()), model(tokens))
    with pytest.raises(ModelError, match="positions"):
        model(tokens, cache=Own())


def test_what_cannot_be_written_is_refused(small, ids):
    model = small("qwen3")
    for rung in (recompute, kv_cache):
        with pytest.raises(ModelError, match="context"):
            rung(model, ids(1, 60), 5)
        with pytest.raises(ModelError, match="max_tokens"):
            rung(model, ids(1, 6), 0)
        with pytest.raises(ModelError, match="temperature"):
            rung(model, ids(1, 6), 1, temperature=-1.0)
        with pytest.raises(ModelError, match="at least one token"):
            rung(model, ids(1, 6)[:, :0], 1)
        with pytest.raises(ModelError, match="ids: wanted a tensor of whole numbers, got a list"):
            rung(model, [[1, 2]], 1)
        with pytest.raises(ModelError, match="mask: wanted a tensor of bool, got a list"):
            rung(model, ids(1, 2), 1, mask=[[True, True]])
        for wrong in (2.5, "2", None, True):
            with pytest.raises(ModelError, match="max_tokens to be a whole number"):
                rung(model, ids(1, 6), wrong)
        for wrong in ("1", None, True):
            with pytest.raises(ModelError, match="temperature to be a number"):
                rung(model, ids(1, 6), 1, temperature=wrong)


def test_what_was_written_can_be_trained_on(small, ids):
    """As it comes: GRPO and distillation do."""
    for rung in (recompute, kv_cache):
        model = small("gpt2")
        written = rung(model, ids(2, 3), 4)
        model.loss(written[:, :-1], written[:, 1:]).backward()
        assert model.embed.weight.grad is not None


@pytest.mark.parametrize("temperature", [1e-20, 1e-40, 1e-46, 5e-324])
def test_the_coldest_draw_is_the_likeliest(temperature, small, ids):
    model, tokens = small("qwen3"), ids(2, 6)
    assert torch.equal(kv_cache(model, tokens, 8, temperature), kv_cache(model, tokens, 8))


def test_decoding_leaves_no_gradient_and_the_mode_alone(small, ids):
    model = small("gpt2")
    model.train()
    assert not kv_cache(model, ids(1, 3), 2).requires_grad
    assert model.training
