"""Every backward by hand: ≤ 1e-6 of finite differences, ≤ 1e-10 of torch's autograd, both in float64; random shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylm.model.arrays import activations, attention, blocked_attention, layers, loss, norms, positions
from tinylm.model.attention import attend

SIZES, SEEDS = st.integers(1, 9), st.integers(0, 2**16)
many = settings(max_examples=40, deadline=None)


def relative(got, wanted):
    """Largest difference over the largest size of any of the wanted numbers (or 1e-3, where all are tiny)."""
    return np.abs(np.asarray(got) - np.asarray(wanted)).max(initial=0) / max(np.abs(wanted).max(initial=0), 1e-3)


def by_differences(forward, inputs, dy, step=3e-4):
    """∂(Σ y ⊙ dy) for every number of every input, from four points around it (error of order step⁴)."""
    gradients = []
    for x in inputs:
        slope, flat = np.empty(x.size), x.reshape(-1)
        for i in range(x.size):
            middle, around = flat[i], []
            for offset in (-2, -1, 1, 2):
                flat[i] = middle + offset * step
                around.append((np.asarray(forward(*inputs)) * dy).sum())
            flat[i] = middle
            slope[i] = (around[0] - 8 * around[1] + 8 * around[2] - around[3]) / (12 * step)
        gradients.append(slope.reshape(x.shape))
    return gradients


def check(forward, backward, torchs, inputs, generator):
    """y, and every gradient, of forward/backward pairs that take and give NumPy arrays."""
    y = forward(*inputs)
    dy = generator.standard_normal(np.shape(y))
    tensors = [torch.tensor(x, requires_grad=True) for x in inputs]
    wanted = torchs(*tensors)
    assert relative(y, wanted.detach().numpy()) <= 1e-12
    before = [x.copy() for x in inputs]
    got = backward(dy, *inputs)
    assert all(np.array_equal(x, old) for x, old in zip(inputs, before, strict=True))  # inputs are left alone
    exact = torch.autograd.grad(wanted, tensors, torch.tensor(dy))
    for one, automatic, numeric in zip(got, exact, by_differences(forward, inputs, dy), strict=True):
        assert one.shape == automatic.shape
        assert relative(one, automatic.numpy()) <= 1e-10
        assert relative(one, numeric) <= 1e-6


@many
@given(SIZES, SIZES, SIZES, SEEDS)
def test_linear(rows, size, out, seed):
    g = np.random.default_rng(seed)
    inputs = [g.standard_normal((rows, size)), g.standard_normal((out, size)), g.standard_normal(out)]
    check(
        layers.linear,
        lambda dy, x, w, b: (*layers.linear_backward(dy, x, w), layers.bias_backward(dy)),
        F.linear,
        inputs,
        g,
    )


@many
@given(SIZES, SIZES, SIZES, SEEDS)
def test_embedding(rows, vocabulary, size, seed):
    g = np.random.default_rng(seed)
    ids = g.integers(0, vocabulary, rows)

    def backward(dy, table):
        d = np.zeros_like(table)
        layers.embedding_backward(dy, ids, d)
        return (d,)

    check(
        lambda table: layers.embedding(ids, table),
        backward,
        lambda table: F.embedding(torch.tensor(ids), table),
        [g.standard_normal((vocabulary, size))],
        g,
    )


@many
@given(st.lists(SIZES, min_size=2, max_size=4), SEEDS)
def test_norms(shape, seed):
    g = np.random.default_rng(seed)
    x, w, b = g.standard_normal(shape), g.standard_normal(shape[-1]), g.standard_normal(shape[-1])
    check(
        lambda x, w, b: norms.layer_norm(x, w, b, 1e-2)[0],
        lambda dy, x, w, b: norms.layer_norm_backward(dy, w, norms.layer_norm(x, w, b, 1e-2)[1]),
        lambda x, w, b: F.layer_norm(x, w.shape, w, b, 1e-2),
        [x, w, b],
        g,
    )
    check(
        lambda x, w: norms.rms_norm(x, w, 1e-2)[0],
        lambda dy, x, w: norms.rms_norm_backward(dy, w, norms.rms_norm(x, w, 1e-2)[1]),
        lambda x, w: F.rms_norm(x, w.shape, w, 1e-2),
        [x, w],
        g,
    )


PAIRS = {
    "gelu": (
        lambda x: activations.gelu(x)[0],
        lambda dy, x: (activations.gelu_backward(dy, x, activations.gelu(x)[1]),),
        lambda x: F.gelu(x, approximate="tanh"),
    ),
    "silu": (activations.silu, lambda dy, x: (activations.silu_backward(dy, x),), F.silu),
    "relu_squared": (
        activations.relu_squared,
        lambda dy, x: (activations.relu_squared_backward(dy, x),),
        lambda x: F.relu(x).square(),
    ),
    "softmax": (
        activations.softmax,
        lambda dy, x: (activations.softmax_backward(dy, activations.softmax(x)),),
        lambda x: torch.softmax(x, -1),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
@many
@given(rows=SIZES, size=SIZES, seed=SEEDS)
def test_activations(name, rows, size, seed):
    g = np.random.default_rng(seed)
    x = g.standard_normal((rows, size)) * 2
    x[np.abs(x) < 1e-2] = 1.0  # ReLU² has a corner in its slope at 0, where differences see both sides
    check(*PAIRS[name], [x], g)


@many
@given(SIZES, SIZES, SEEDS)
def test_swiglu(rows, size, seed):
    g = np.random.default_rng(seed)
    inputs = [g.standard_normal((rows, size)), g.standard_normal((rows, size))]
    check(activations.swiglu, activations.swiglu_backward, lambda a, b: F.silu(a) * b, inputs, g)


def test_activations_do_not_overflow():
    x = np.array([[-1e4, -800.0, 0.0, 800.0, 1e4]])
    with np.errstate(over="raise", invalid="raise"):
        assert np.allclose(activations.silu(x), [[0, 0, 0, 800, 1e4]])
        assert np.allclose(activations.silu_backward(np.ones_like(x), x), [[0, 0, 0.5, 1, 1]])
        assert activations.softmax(x)[0, -1] == 1
        assert loss.cross_entropy(x, np.array([0]))[0] == pytest.approx(2e4)


@many
@given(SIZES, st.integers(1, 4), st.integers(1, 3), SEEDS)
def test_rope(time, half, heads, seed):
    from tinylm.model.transformer import rotate

    g = np.random.default_rng(seed)
    cos, sin = positions.rotations(time, 2 * half, 100.0, np.dtype(float))
    check(
        lambda x: positions.rope(x, cos, sin),
        lambda dy, x: (positions.rope_backward(dy, cos, sin),),
        lambda x: rotate(x, (torch.tensor(cos), torch.tensor(sin))),
        [g.standard_normal((2, heads, time, 2 * half))],
        g,
    )


def test_rope_sees_distances_only():
    g = np.random.default_rng(0)
    cos, sin = positions.rotations(20, 8, 10000.0, np.dtype(float))
    q, k = (positions.rope(np.tile(g.standard_normal(8), (20, 1)), cos, sin) for _ in range(2))
    products = q @ k.T
    for distance in range(20):
        assert np.ptp(np.diagonal(products, distance)) < 1e-12


HEADS = st.sampled_from([(1, 1), (2, 2), (4, 2), (3, 1), (6, 2)])


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 2), HEADS, st.integers(1, 7), st.integers(1, 4), st.integers(1, 8), SEEDS)
def test_attention_whole_and_in_blocks(batch, heads, time, size, block, seed):
    g = np.random.default_rng(seed)
    inputs = [g.standard_normal((batch, count, time, size)) for count in (heads[0], heads[1], heads[1])]
    check(
        lambda q, k, v: attention.attention(q, k, v)[0],
        lambda dy, q, k, v: attention.attention_backward(dy, q, k, v, attention.attention(q, k, v)[1]),
        attend,
        inputs,
        g,
    )
    check(
        lambda q, k, v: blocked_attention.blocked_attention(q, k, v, block)[0],
        lambda dy, q, k, v: blocked_attention.blocked_attention_backward(
            dy, q, k, v, *blocked_attention.blocked_attention(q, k, v, block), block
        ),
        attend,
        inputs,
        g,
    )


@pytest.mark.parametrize("time", [63, 64, 65, 131, 257])
def test_blocks_of_the_usual_size_at_odd_lengths(time):
    g = np.random.default_rng(time)
    q, k, v = (g.standard_normal((2, heads, time, 8)) * 3 for heads in (4, 2, 2))
    y, log_sum = blocked_attention.blocked_attention(q, k, v)
    wanted, saved = attention.attention(q, k, v)
    assert relative(y, wanted) < 1e-13
    dy = g.standard_normal(y.shape)
    got = blocked_attention.blocked_attention_backward(dy, q, k, v, y, log_sum)
    for one, other in zip(got, attention.attention_backward(dy, q, k, v, saved), strict=True):
        assert relative(one, other) < 1e-12


@many
@given(SIZES, SIZES, SEEDS)
def test_cross_entropy(rows, vocabulary, seed):
    g = np.random.default_rng(seed)
    targets = g.integers(0, vocabulary, rows)
    targets[g.random(rows) < 0.3] = loss.IGNORED
    if (targets == loss.IGNORED).all():
        value, saved = loss.cross_entropy(g.standard_normal((rows, vocabulary)), targets)
        assert value == 0
        assert not loss.cross_entropy_backward(saved).any()
        return
    check(
        lambda z: loss.cross_entropy(z, targets)[0],
        lambda dy, z: (dy * loss.cross_entropy_backward(loss.cross_entropy(z, targets)[1]),),
        lambda z: F.cross_entropy(z, torch.tensor(targets)),
        [g.standard_normal((rows, vocabulary))],
        g,
    )


@many
@given(SIZES, SIZES, st.floats(0, 0.9), SEEDS)
def test_dropout(rows, size, rate, seed):
    g = np.random.default_rng(seed)
    x = g.standard_normal((rows, size))
    _, keep = layers.dropout(x, rate, np.random.default_rng(seed))
    assert set(np.unique(keep)) <= {0.0, 1 / (1 - rate)}
    check(
        lambda x: layers.dropout(x, rate, np.random.default_rng(seed))[0],
        lambda dy, x: (layers.dropout_backward(dy, keep),),
        lambda x: x * torch.tensor(keep),
        [x],
        g,
    )


def test_dropout_keeps_the_mean():
    y, keep = layers.dropout(np.ones(100_000), 0.3, np.random.default_rng(0))
    assert y.mean() == pytest.approx(1, abs=0.01)
    assert (keep == 0).mean() == pytest.approx(0.3, abs=0.01)
