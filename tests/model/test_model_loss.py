"""The chunked head: the same numbers as logits and cross_entropy, in bounded memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import tinylm.model.loss as module
from tinylm.model import ModelError
from tinylm.model.gelu import gelu
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


def test_a_tied_table_has_one_gradient(small, ids):
    """The head's, with the looked-up rows added: the same with a hook on the embedding, which takes the usual way, over
    two backward passes, and with no gradient for anything else."""
    model, tokens = small("gpt2"), ids(3, 17)
    assert module.tied_on_cpu(model.embed) is not None
    for _ in range(2):
        model.loss(tokens, tokens).backward()
    got = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    (alone,) = torch.autograd.grad(model.loss(tokens, tokens), model.embed.weight)
    handle = model.embed.register_forward_hook(lambda *_: None)
    assert module.tied_on_cpu(model.embed) is None
    for _ in range(2):
        model.loss(tokens, tokens).backward()
    handle.remove()
    for parameter, gradient in zip(model.parameters(), got, strict=True):
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(2 * alone, model.embed.weight.grad, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("rows", [2, 200])  # the head's gradient computed at the end of the backward, or before it
@pytest.mark.parametrize(("preset", "tied"), [("gpt2", True), ("gpt2", False), ("qwen3", True)])
def test_a_graph_that_is_kept_gives_its_gradients_again(preset, tied, rows, small, ids):
    """What a first backward hands over instead of copying, it copies with retain_graph=True."""
    model, tokens = small(preset, tie_embeddings=tied), ids(rows, 9)
    loss = model.loss(tokens, tokens)
    first = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    for wanted, got in zip(first, torch.autograd.grad(loss, list(model.parameters())), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    loss = model.loss(tokens, tokens)
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_finite_differences_of_the_head_and_gelu(reduction):
    """By torch's gradcheck, which goes backwards through one graph several times."""
    torch.manual_seed(0)
    hidden, weight = (torch.randn(rows, 3, dtype=torch.float64, requires_grad=True) for rows in (4, 5))
    targets = torch.tensor([0, 4, -100, 2])
    chosen = (hidden, weight)
    assert torch.autograd.gradcheck(lambda h, w: chunked_cross_entropy(gelu(h), w, targets, reduction), chosen)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gelu_and_its_derivative(dtype):
    """Against torch's in float64, in blocks of which the last is short, at both ends and at zero."""
    x = torch.cat([torch.linspace(-12, 12, 70001), torch.tensor([0.0, -1e4, 1e4])]).to(dtype)[None].requires_grad_()
    reference = x.detach().double().requires_grad_()
    upstream = torch.linspace(-1, 1, x.numel()).to(dtype)[None]
    y, wanted = gelu(x), F.gelu(reference, approximate="tanh")
    assert y.grad_fn is not None
    assert y.dtype == dtype
    y.backward(upstream)
    wanted.backward(upstream.double())
    bound = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2**-8}[dtype]
    torch.testing.assert_close(y.double(), wanted, atol=bound, rtol=bound)
    torch.testing.assert_close(x.grad.double(), reference.grad, atol=bound, rtol=bound)


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
    original = module._cross_entropy_

    def seen(z, *rest):
        sizes.append((len(z[0]), sum(block.shape[1] for block in z)))
        return original(z, *rest)

    monkeypatch.setattr(module, "_cross_entropy_", seen)
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
    with pytest.raises(ModelError, match="ids: wanted a tensor of whole numbers, got a list"):
        model.loss(tokens.tolist(), tokens)
    with pytest.raises(ModelError, match="targets: wanted a tensor of whole numbers, got a list"):
        model.loss(tokens, tokens.tolist())
    for dtype in (torch.float32, torch.bool):
        with pytest.raises(ModelError, match="targets: wanted whole numbers"):
            model.loss(tokens, tokens.to(dtype))
    assert torch.equal(model.loss(tokens, tokens.int()), model.loss(tokens, tokens))
