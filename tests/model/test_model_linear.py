"""What is computed by hand in 16 bits on the CPU: linear layers, LayerNorm, the head whose gradient waits. Each against
autograd in float64, and beside what plain autocast gives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tinylm.model.linear import Linear, narrow_gradients
from tinylm.model.loss import Tied, chunked_cross_entropy
from tinylm.model.norm import LayerNorm


def relative(got, wanted):
    return float(((got.double() - wanted).norm() / wanted.norm()).detach())


def gradients(layer, x, upstream, dtype):
    """Of x and the layer's parameters, under autocast to `dtype`, or plainly in x's type."""
    inputs = [x.clone().requires_grad_(), *layer.parameters()]
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        y = layer(inputs[0])
    return y, torch.autograd.grad(y, inputs, upstream.to(y.dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("inputs", "outputs", "bias"), [(24, 96, True), (96, 24, True), (40, 40, False)])
def test_a_linear_layers_gradients(dtype, inputs, outputs, bias):
    torch.manual_seed(inputs)
    layer, x, upstream = Linear(inputs, outputs, bias), torch.randn(3, 50, inputs), torch.randn(3, 50, outputs)
    exact_layer = torch.nn.Linear(inputs, outputs, bias).double()
    exact_layer.load_state_dict(layer.state_dict())
    y, got = gradients(layer, x, upstream, dtype)
    exact, wanted = gradients(exact_layer, x.double(), upstream.double(), None)
    assert y.dtype == dtype
    assert relative(y, exact) < 0.005
    for mine, theirs in zip(got, wanted, strict=True):
        assert mine.dtype == torch.float32
        assert relative(mine, theirs) < 0.005
    layer.__class__ = torch.nn.Linear
    plain, others = gradients(layer, x, upstream, dtype)
    assert torch.equal(y, plain)
    for mine, autocasts in zip(got, others, strict=True):
        torch.testing.assert_close(mine, autocasts, atol=1e-6, rtol=2 * torch.finfo(dtype).eps)


def test_what_stands_still_gets_no_gradient_and_float64_goes_torchs_way():
    layer, x = Linear(8, 8).requires_grad_(False), torch.randn(4, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is None
    assert x.grad.dtype == torch.float32
    exact = Linear(8, 8).double()
    assert torch.autograd.gradcheck(exact, (torch.randn(4, 8, dtype=torch.float64, requires_grad=True),))


def test_narrow_gradients_are_the_same_numbers(small, ids):
    model, tokens = small("gpt2"), ids(2, 24)
    found = []
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.loss(tokens, tokens)
        loss.backward()
        found.append([parameter.grad for parameter in model.parameters()])
        model.zero_grad(set_to_none=True)
        narrow_gradients(model)
    narrow = {id(module.weight) for module in model.modules() if isinstance(module, Linear)} | {id(model.embed.weight)}
    assert len(narrow) == 2 * 6 + 1
    for parameter, wide, kept in zip(model.parameters(), *found, strict=True):
        assert kept.dtype == (torch.bfloat16 if id(parameter) in narrow else torch.float32)
        assert torch.equal(wide if kept.dtype == wide.dtype else wide.bfloat16(), kept)  # a tied table's sum is rounded
    model.loss(tokens, tokens).backward()  # float32: nothing is rounded
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


def test_a_linear_layer_keeps_no_copy_of_its_matrix():
    layer, x, kept = Linear(32, 64), torch.randn(4, 32, requires_grad=True), []
    keep = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t)
    with keep, torch.autocast("cpu", torch.bfloat16):
        layer(x)
    assert {t.data_ptr() for t in kept if t.shape == layer.weight.shape} == {layer.weight.data_ptr()}


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_layer_norm_keeps_less_and_its_gradients_stay_near_float64s(offset):
    torch.manual_seed(0)
    norm, x, upstream = LayerNorm(64), torch.randn(40, 64) * 3 + offset, torch.randn(40, 64)
    with torch.no_grad():
        norm.weight.add_(torch.randn(64) * 0.3)
    exact = torch.nn.LayerNorm(64).double()
    exact.load_state_dict(norm.state_dict())
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        y, got = gradients(norm, x, upstream, torch.bfloat16)
    _, wanted = gradients(exact, x.double(), upstream.to(torch.bfloat16).double(), None)
    assert y.dtype == torch.bfloat16
    assert sum(kept) < x.nbytes
    assert all(relative(mine, theirs) < 0.003 for mine, theirs in zip(got, wanted, strict=True))


@pytest.mark.parametrize("rows", [40, 200])
@pytest.mark.parametrize("tied", [False, True])
def test_the_heads_gradient_whether_it_waits_or_is_computed_at_once(rows, tied):
    """40 rows of 16 bits are less than the gradient's 64 columns of 32, 200 are not."""
    torch.manual_seed(rows)
    table, ids, targets = torch.randn(300, 64), torch.randint(0, 300, (rows,)), torch.randint(0, 300, (rows,))
    targets[:3] = -100
    exact = table.double().requires_grad_()
    F.cross_entropy(F.embedding(ids, exact) @ exact.T / 8, targets).mul(3).backward()
    weight = torch.nn.Parameter(table.clone())
    look_up = Tied(weight)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(tuple(t.shape)) or t, lambda t: t):
        hidden = look_up.look_up(ids) if tied else F.embedding(ids, weight)
        with torch.autocast("cpu", torch.bfloat16):
            loss = chunked_cross_entropy((hidden / 8).bfloat16(), weight, targets, "mean", look_up if tied else None)
    (loss * 3).backward()
    assert ((rows, 300) in sizes) == (rows == 40)
    assert weight.grad.dtype == torch.float32
    assert relative(weight.grad, exact.grad) < 0.01
