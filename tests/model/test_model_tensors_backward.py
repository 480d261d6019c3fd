"""Every backward of tensors/: ≤ 1e-6 of finite differences, ≤ 1e-10 of torch's autograd, in float64; random shapes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylm.model.attention import attend
from tinylm.model.tensors import activations, attention, blocked_attention, layers, loss, norms, positions

SIZES, SEEDS = st.integers(1, 7), st.integers(0, 2**16)
some = settings(max_examples=15, deadline=None)


def relative(got, wanted):
    """Largest difference over the largest size of any of the wanted numbers (or 1e-3, where all are tiny)."""
    if not wanted.numel():
        return 0.0
    return ((got - wanted).abs().max() / wanted.abs().max().clamp(min=1e-3)).item()


def by_differences(forward, inputs, dy, step=3e-4):
    """∂(Σ y ⊙ dy) for every number of every input, from four points around it (error of order step⁴)."""
    gradients = []
    for at, x in enumerate(inputs):
        flat, slope = x.reshape(-1), torch.empty(x.numel(), dtype=x.dtype)
        for i in range(x.numel()):
            around = []
            for offset in (-2, -1, 1, 2):
                moved = flat.clone()
                moved[i] += offset * step
                others = [moved.view(x.shape) if j == at else other.clone() for j, other in enumerate(inputs)]
                around.append((forward(*others) * dy).sum())
            slope[i] = (around[0] - 8 * around[1] + 8 * around[2] - around[3]) / (12 * step)
        gradients.append(slope.view(x.shape))
    return gradients


def check(forward, backward, torchs, *inputs):
    """y and every gradient of a pair; backward(dy, *inputs) -> the gradients."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    wanted = torchs(*leaves)
    dy = torch.randn(wanted.shape, dtype=torch.float64)
    exact = torch.autograd.grad(wanted, leaves, dy)
    with torch.inference_mode():
        assert relative(forward(*(x.clone() for x in inputs)), wanted.detach()) <= 1e-12
        got = backward(dy.clone(), *(x.clone() for x in inputs))
        numeric = by_differences(forward, inputs, dy)
        for one, automatic, differences in zip(got, exact, numeric, strict=True):
            assert one.shape == automatic.shape
            assert relative(one, automatic) <= 1e-10
            assert relative(one, differences) <= 1e-6


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear_backward(dy, x, weight, bias):
    d_weight, d_bias = torch.empty_like(weight), torch.empty_like(bias)
    layers.bias_backward(dy, d_bias)
    return layers.linear_backward(dy, x, weight, d_weight), d_weight, d_bias


@some
@given(SIZES, SIZES, SIZES, SEEDS)
def test_linear(rows, size, out, seed):
    inputs = normal(seed, rows, size), normal(seed + 1, out, size), normal(seed + 2, out)
    check(layers.linear, linear_backward, F.linear, *inputs)
    assert relative(layers.linear(*inputs[:2]), F.linear(*inputs[:2])) <= 1e-12


@some
@given(SIZES, SIZES, SIZES, SEEDS)
def test_embedding(rows, vocabulary, size, seed):
    ids = torch.randint(0, vocabulary, (rows,), generator=torch.Generator().manual_seed(seed))

    def backward(dy, table):
        d_table = torch.zeros_like(table)
        layers.embedding_backward(dy, ids, d_table)
        return (d_table,)

    forward = lambda table: layers.embedding(ids, table)  # noqa: E731
    check(forward, backward, lambda table: F.embedding(ids, table), normal(seed, vocabulary, size))


def test_a_sixteen_bit_embedding_adds_up_thousands_of_rows():
    d_table = torch.ones(2, 3, dtype=torch.bfloat16)  # what a tied head left there
    layers.embedding_backward(torch.ones(5000, 3, dtype=torch.bfloat16), torch.zeros(5000, dtype=torch.long), d_table)
    assert d_table[0].tolist() == [4992.0] * 3  # 5001 in bfloat16's 8 bits; one by one they would stop at 256
    assert d_table[1].tolist() == [1.0] * 3


@some
@given(st.lists(SIZES, min_size=2, max_size=3), SEEDS)
def test_norms(shape, seed):
    x, weight, bias = normal(seed, *shape), normal(seed + 1, shape[-1]), normal(seed + 2, shape[-1])

    def layer_backward(dy, x, weight, bias):
        _, saved = norms.layer_norm(x, weight, bias, 1e-2)
        d_weight, d_bias = torch.empty_like(weight), torch.empty_like(bias)
        return norms.layer_norm_backward(dy, weight, saved, d_weight, d_bias), d_weight, d_bias

    def rms_backward(dy, x, weight):
        _, saved = norms.rms_norm(x, weight, 1e-2)
        d_weight = torch.empty_like(weight)
        return norms.rms_norm_backward(dy, weight, saved, d_weight), d_weight

    check(
        lambda x, w, b: norms.layer_norm(x, w, b, 1e-2)[0],
        layer_backward,
        lambda x, w, b: F.layer_norm(x, w.shape, w, b, 1e-2),
        x,
        weight,
        bias,
    )
    check(
        lambda x, w: norms.rms_norm(x, w, 1e-2)[0],
        rms_backward,
        lambda x, w: F.rms_norm(x, w.shape, w, 1e-2),
        x,
        weight,
    )


PAIRS = {
    "gelu": (activations.gelu, activations.gelu_backward, lambda x: F.gelu(x, approximate="tanh")),
    "silu": (activations.silu, activations.silu_backward, F.silu),
    "softmax": (
        lambda x: activations.softmax_(x)[0],
        lambda dy, x: activations.softmax_backward_(dy, activations.softmax_(x)[0]),
        lambda x: torch.softmax(x, -1),
    ),
    "log of softmax's sum": (
        lambda x: activations.softmax_(x)[1],
        lambda dy, x: dy * activations.softmax_(x)[0],
        lambda x: torch.logsumexp(x, -1, keepdim=True),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
@some
@given(rows=SIZES, size=SIZES, seed=SEEDS)
def test_activations(name, rows, size, seed):
    forward, backward, torchs = PAIRS[name]
    check(forward, lambda dy, x: (backward(dy, x),), torchs, normal(seed, rows, size) * 2)


@some
@given(SIZES, SIZES, SEEDS)
def test_swiglu(rows, size, seed):
    def backward(dy, gate, up):
        both = torch.empty(rows, 2 * size, dtype=dy.dtype)
        activations.swiglu_backward(dy, gate, up, *both.chunk(2, dim=1))
        return both.chunk(2, dim=1)

    inputs = normal(seed, rows, size), normal(seed + 1, rows, size)
    check(activations.swiglu, backward, lambda gate, up: F.silu(gate) * up, *inputs)


def test_activations_do_not_overflow():
    x = torch.tensor([[-1e4, -800.0, 0.0, 800.0, 1e4]])
    assert torch.equal(activations.silu(x), torch.tensor([[0, 0, 0, 800, 1e4]]))
    assert torch.allclose(activations.gelu(x), torch.tensor([[0, 0, 0, 800, 1e4]]))
    for backward in (activations.silu_backward, activations.gelu_backward):
        assert torch.allclose(backward(torch.ones_like(x), x), torch.tensor([[0, 0, 0.5, 1, 1]]))
    assert activations.softmax_(x.clone())[0][0, -1] == 1
    assert loss.cross_entropy(x.clone(), torch.tensor([0]))[0].item() == pytest.approx(2e4)


@some
@given(SIZES, st.integers(1, 3), st.integers(1, 3), SEEDS)
def test_rope(time, half, heads, seed):
    from tinylm.model.transformer import rotate

    x = normal(seed, 2, heads, time, 2 * half)
    turns = positions.rotations(time, 2 * half, 100.0, x)
    check(
        lambda x: positions.rope(x, *turns),
        lambda dy, x: (positions.rope_backward(dy, *turns),),
        lambda x: rotate(x, turns),
        x,
    )


@some
@given(st.integers(1, 2), st.sampled_from([(1, 1), (2, 2), (4, 2), (3, 1)]), SIZES, st.integers(1, 4), SEEDS)
def test_attention(batch, heads, time, size, seed):
    q, k, v = (normal(seed + i, batch, count, time, size) for i, count in enumerate((heads[0], heads[1], heads[1])))
    bias = attention.causal_bias(time, q)

    def backward(dy, q, k, v):
        y, log_sum = attention.attention(q, k, v, bias)
        return attention.attention_backward(dy, q, k, v, bias, y, log_sum)

    check(lambda q, k, v: attention.attention(q, k, v, bias)[0], backward, attend, q, k, v)


@some
@given(st.sampled_from([(1, 1), (2, 2), (4, 2), (3, 1)]), SIZES, st.integers(1, 4), st.integers(1, 8), SEEDS)
def test_attention_in_blocks(heads, time, size, block, seed):
    q, k, v = (normal(seed + i, 1, count, time, size) for i, count in enumerate((heads[0], heads[1], heads[1])))

    def forward(q, k, v):
        return blocked_attention.blocked_attention(q, k, v, block)[0]

    def backward(dy, q, k, v):
        kept = blocked_attention.blocked_attention(q, k, v, block)
        return blocked_attention.blocked_attention_backward(dy, q, k, v, *kept, block)

    check(forward, backward, attend, q, k, v)


@pytest.mark.parametrize("time", [63, 64, 65, 131, 257])
def test_blocks_of_the_usual_size_at_odd_lengths(time):
    q, k, v, dy = (3 * normal(time + i, 2, heads, time, 8) for i, heads in enumerate((4, 2, 2, 4)))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    wanted = attend(*leaves)
    exact = torch.autograd.grad(wanted, leaves, dy)
    with torch.no_grad():
        y, log_sum = blocked_attention.blocked_attention(q, k, v)
        assert relative(y, wanted) <= 1e-12
        got = blocked_attention.blocked_attention_backward(dy, q, k, v, y, log_sum)
    for one, automatic in zip(got, exact, strict=True):
        assert relative(one, automatic) <= 1e-10


@some
@given(SIZES, SIZES, SEEDS)
def test_cross_entropy(rows, vocabulary, seed):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, vocabulary, (rows,), generator=generator)
    targets[torch.rand(rows, generator=generator) < 0.3] = loss.IGNORED
    z = normal(seed, rows, vocabulary)
    if (targets == loss.IGNORED).all():
        value, saved = loss.cross_entropy(z, targets)
        assert value == 0
        assert not loss.cross_entropy_backward(saved).any()
        return
    check(
        lambda z: loss.cross_entropy(z, targets)[0],
        lambda dy, z: (loss.cross_entropy_backward(loss.cross_entropy(z, targets)[1]) * dy,),
        lambda z: F.cross_entropy(z, targets),
        z,
    )
