"""The chunked head: the same numbers as logits and cross_entropy, in bounded memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import tinylm.model.loss as module
from tinylm.model import ModelError
from tinylm.model.loss import chunked_cross_entropy


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 40),
    vocab=st.integers(2, 30),
    chunk=st.integers(1, 200),
    ignored=st.floats(0, 1),
    reduction=st.sampled_from(["mean", "sum", "none"]),
)
def test_chunked_equals_plain_autograd(rows, vocab, chunk, ignored, reduction):
    generator = torch.Generator().manual_seed(rows * 31 + vocab)
    hidden = torch.randn(rows, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(vocab, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    targets = torch.randint(0, vocab, (rows,), generator=generator)
    targets[torch.rand(rows, generator=generator) < ignored] = -100
    upstream = torch.randn(rows if reduction == "none" else (), generator=generator).double()

    plain = F.cross_entropy(hidden @ weight.T, targets, reduction="none")
    if reduction != "none":
        plain = plain.sum() / (max(1, int((targets != -100).sum())) if reduction == "mean" else 1)
    wanted = torch.autograd.grad(plain, (hidden, weight), upstream)
    names = ("CHUNK_NUMBERS", "CHUNK_BYTES", "PASS_NUMBERS")
    before = [getattr(module, name) for name in names]
    for name, value in zip(names, (chunk, chunk // 5, 1 + chunk // 3), strict=True):
        setattr(module, name, value)
    try:
        loss = chunked_cross_entropy(hidden, weight, targets, reduction)
        got = torch.autograd.grad(loss, (hidden, weight), upstream.to(loss.dtype))
    finally:
        for name, value in zip(names, before, strict=True):
            setattr(module, name, value)
    torch.testing.assert_close(loss, plain, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(got, wanted, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("preset", ["gpt2", "llama", "qwen3"])
def test_the_models_loss_and_gradients(preset, small, ids):
    model, tokens = small(preset), ids(3, 17)
    targets = tokens.roll(-1, 1)
    targets[:, -4:] = -100
    F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten()).backward()
    wanted = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model.loss(tokens, targets).backward()
    for parameter, gradient in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_all_ignored_is_zero_with_zero_gradients(reduction, small, ids):
    model, tokens = small("qwen3"), ids(2, 5)
    loss = model.loss(tokens, torch.full_like(tokens, -100), reduction=reduction)
    assert loss.eq(0).all()
    loss.sum().backward()
    assert all(parameter.grad.eq(0).all() for parameter in model.parameters())


def test_reductions_agree(small, ids):
    model, tokens = small("gpt2"), ids(2, 9)
    rows = model.loss(tokens, tokens, reduction="none")
    assert rows.shape == tokens.shape
    torch.testing.assert_close(rows.sum(), model.loss(tokens, tokens, reduction="sum"))
    torch.testing.assert_close(rows.mean(), model.loss(tokens, tokens))


def test_without_gradients_none_are_computed(small, ids):
    model, tokens = small("qwen3"), ids(2, 9)
    with torch.no_grad():
        loss = model.loss(tokens, tokens)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, model.loss(tokens, tokens).detach())


def test_the_whole_logits_are_never_made(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_NUMBERS", 8 * 50)
    monkeypatch.setattr(module, "CHUNK_BYTES", 12)
    sizes = []
    original = torch.log_softmax
    monkeypatch.setattr(torch, "log_softmax", lambda x, dim: sizes.append(x.shape) or original(x, dim))
    hidden, weight = torch.randn(20, 4, requires_grad=True), torch.randn(50, 4, requires_grad=True)
    chunked_cross_entropy(hidden, weight, torch.zeros(20, dtype=torch.long), "mean").backward()
    assert sizes == [(8, 50), (8, 50), (4, 50)]


def test_bfloat16_stays_near_float64(small, ids):
    model, tokens = small("qwen3"), ids(4, 16)
    exact = model.double().loss(tokens, tokens).item()
    rounded = model.bfloat16().loss(tokens, tokens)
    rounded.backward()
    assert rounded.item() == pytest.approx(exact, rel=0.02)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_autocast(small, ids):
    model, tokens = small("qwen3"), ids(4, 16)
    exact = model.loss(tokens, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(tokens, tokens)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)
    assert model.embed.weight.grad.dtype == torch.float32


def test_what_does_not_fit_is_refused(small, ids):
    model, tokens = small("qwen3"), ids(2, 5)
    with pytest.raises(ModelError, match="reduction"):
        model.loss(tokens, tokens, reduction="max")
    with pytest.raises(ModelError, match="shape"):
        model.loss(tokens, tokens[:, 1:])
    for wrong in (97, -1, -101):
        with pytest.raises(ModelError, match=f"targets: wanted 0 to 96 .* got {wrong}"):
            model.loss(tokens, torch.full_like(tokens, wrong))
    for dtype in (torch.float32, torch.bool):
        with pytest.raises(ModelError, match="targets: wanted whole numbers"):
            model.loss(tokens, tokens.to(dtype))
    assert torch.equal(model.loss(tokens, tokens.int()), model.loss(tokens, tokens))
