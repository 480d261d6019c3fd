"""Mixtures of experts: the sorted form beside a loop over tokens, its backward by hand, the load-balancing loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylm.model import ModelError, Transformer, TransformerConfig
from tinylm.model.experts import Experts, balance_loss, grouped_linear


def make(experts, per_token, **overrides):
    fields = {"width": 16, "head_dim": 16, "mlp_width": 12, "experts": experts, "experts_per_token": per_token}
    torch.manual_seed(0)
    layer = Experts(TransformerConfig.preset("qwen3-moe", 9, 1, **fields | overrides)).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    return layer


def by_token(layer, x):
    """Each token by itself, and every expert of it by itself."""
    rows = []
    for row in x.flatten(0, 1):
        p = torch.softmax(row @ layer.router.weight.T, dim=0)
        chosen = p.argsort(descending=True)[: layer.per_token].tolist()
        total = p[chosen].sum() if layer.normalise else 1.0
        y = torch.zeros_like(row)
        for e in chosen:
            inner = F.silu(layer.gate.weight[e] @ row) * (layer.up.weight[e] @ row)
            y = y + p[e] / total * (layer.down.weight[e] @ inner)
        rows.append(y)
    return torch.stack(rows).view(x.shape)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_the_sorted_form_and_its_gradients_are_those_of_a_loop_over_tokens(data):
    experts = data.draw(st.integers(1, 6))
    layer = make(experts, data.draw(st.integers(1, experts)), normalize_experts=data.draw(st.booleans()))
    shape = (data.draw(st.integers(1, 3)), data.draw(st.integers(1, 7)), 16)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(shape, dtype=torch.float64)
    inputs = (x, *layer.parameters())
    y, wanted = layer(x, layer.route(x)), by_token(layer, x)
    torch.testing.assert_close(y, wanted, atol=1e-10, rtol=1e-10)
    got = torch.autograd.grad(y, inputs, upstream)
    for mine, theirs in zip(got, torch.autograd.grad(wanted, inputs, upstream), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("ends", [[2, 2, 5], [0, 0, 5], [5, 5, 5], [1, 3, 5]])
def test_the_backward_by_hand_beside_finite_differences(ends):
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: grouped_linear(a, b, torch.tensor(ends)), (x, weight), rtol=1e-6)


def test_the_balance_is_transformers_layer_by_layer(small, ids):
    module = pytest.importorskip("transformers.models.qwen3_moe.modeling_qwen3_moe")
    model, tokens, items = small("qwen3-moe", depth=3), ids(2, 20), {}
    taps: dict[str, torch.Tensor] = {}
    model(tokens, taps=taps)
    layers = [taps[f"blocks.{i}.mlp.router"].flatten(0, 1).log() for i in range(3)]
    wanted = torch.stack([module.load_balancing_loss_func((logits,), 8, 2) for logits in layers]).mean()
    loss = model.loss(tokens, tokens, items=items)
    torch.testing.assert_close(items["balance"], wanted)
    torch.testing.assert_close(loss, items["cross_entropy"] + 0.001 * wanted)
    assert not items["balance"].requires_grad
    assert not items["cross_entropy"].requires_grad


def test_only_the_training_loss_has_the_balance_in_it(small, ids):
    model, tokens, items = small("qwen3-moe", balance_weight=10.0), ids(2, 9), {}
    each, total = model.loss(tokens, tokens, "none"), model.loss(tokens, tokens, "sum", items=items)
    torch.testing.assert_close(each.sum(), total)
    torch.testing.assert_close(items["cross_entropy"], total)
    torch.testing.assert_close(model.loss(tokens, tokens), total / 18 + 10 * items["balance"])
    dense: dict[str, torch.Tensor] = {}
    loss = small("qwen3").loss(tokens, tokens, items=dense)
    assert dense.keys() == {"cross_entropy"}
    assert torch.equal(dense["cross_entropy"], loss)


def test_even_choices_are_balanced_and_one_favourite_is_not():
    even = torch.full((8, 4), 0.25)
    chosen = torch.arange(8)[:, None].add(torch.arange(2)) % 4
    assert balance_loss([(even, chosen)]).item() == pytest.approx(2.0)
    favourite = torch.tensor([[0.97, 0.01, 0.01, 0.01]]).repeat(8, 1)
    assert balance_loss([(favourite, torch.zeros(8, 1, dtype=torch.long))]).item() == pytest.approx(4 * 0.97)


def test_the_router_learns_to_balance():
    torch.manual_seed(0)
    shape = {"width": 32, "heads": 2, "head_dim": 16, "mlp_width": 16, "balance_weight": 1.0}
    model = Transformer(TransformerConfig.preset("qwen3-moe", 40, 1, **shape))
    with torch.no_grad():
        model.blocks[0].mlp.router.weight[0] += 1.0 * model.embed.weight.mean(0).sign()
    tokens, items = torch.randint(0, 40, (4, 32)), {}
    optimizer = torch.optim.Adam(model.blocks[0].mlp.router.parameters(), lr=0.02)
    balances = []
    for _ in range(30):
        optimizer.zero_grad()
        model.loss(tokens, tokens, items=items).backward()
        optimizer.step()
        balances.append(items["balance"].item())
    assert balances[-1] < balances[0]
    assert balances[-1] < 2.05  # 2 is even


def test_autocast_and_bfloat16(small, ids):
    model, tokens = small("qwen3-moe"), ids(2, 16)
    plain = model.loss(tokens, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(tokens, tokens)
    loss.backward()
    assert loss.item() == pytest.approx(plain.item(), rel=0.02)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert model.bfloat16()(tokens).isfinite().all()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"window": 5}, "sliding window"),
        ({"attention_bias": "qkv"}, "q, k and v alone"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2}}, "RoPE scaling"),
        ({"experts": 2, "experts_per_token": 1, "qk_norm": True}, "experts"),
    ],
)
def test_what_the_lower_rungs_do_not_carry_is_refused_in_words(overrides, words, small, tmp_path):
    from tinylm.model.arrays import transformer as arrays
    from tinylm.model.tensors import transformer as tensors

    model = small("llama", **overrides)
    model.save(tmp_path)
    for attempt in (arrays.Transformer.load, tensors.Transformer.load):
        with pytest.raises(ModelError, match=f"carry.*{words}"):
            attempt(tmp_path)
    for rung in (arrays, tensors):
        with pytest.raises(ModelError, match=f"carry.*{words}"):
            rung.Transformer(model.config, {"embed.weight": model.embed.weight.detach().numpy()}, dtype="float32")
