"""The scalar rungs' gradients: autograd against torch's, by hand against autograd, one training curve for all."""

from __future__ import annotations

import math
import random
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylm.model import ModelError, Transformer
from tinylm.model.scalar import derived, gpt, training
from tinylm.model.scalar.autograd import Value, exp, log, tanh

NUMBERS = st.floats(-3, 3, allow_nan=False).filter(lambda x: abs(x) > 0.1)
SHAPE = {"width": 12, "heads": 3, "mlp_width": 20, "context": 12, "vocab_size": 29}


@given(NUMBERS, NUMBERS)
def test_autograd_is_torchs(a, b):
    def formula(x, y, exp, log, tanh):
        z = x * y + exp(-x) - 2.0 * y / x + 1.5
        z = z * x - (x - 3.0) / (y * y + 1.0) + 1.0 / (x * x)
        return tanh(z) * log(x * x + y * y) + (z * z + 1.0) ** -0.5 + z * z + (2.0 - y)

    x, y = Value(a), Value(b)
    result = formula(x, y, exp, log, tanh)
    result.backward()
    tx, ty = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (a, b))
    wanted = formula(tx, ty, torch.exp, torch.log, torch.tanh)
    wanted.backward()
    assert result.data == pytest.approx(wanted.item(), rel=1e-12, abs=1e-12)
    assert formula(a, b, math.exp, math.log, math.tanh) == pytest.approx(result.data, rel=1e-12, abs=1e-12)
    assert x.grad == pytest.approx(tx.grad.item(), rel=1e-10, abs=1e-10)
    assert y.grad == pytest.approx(ty.grad.item(), rel=1e-10, abs=1e-10)


def test_autograd_walks_long_and_shared_paths():
    x = Value(0.5)
    total = x
    for _ in range(5000):  # far deeper than Python's recursion limit
        total = total + x
    total.backward()
    assert x.grad == 5001
    y = Value(3.0)
    z = y * y
    (z * z).backward()  # y⁴, z used twice
    assert y.grad == pytest.approx(4 * 27)


def numbers(shape, chance):
    if len(shape) == 1:
        return [chance.gauss(0, 1) for _ in range(shape[0])]
    return [numbers(shape[1:], chance) for _ in range(shape[0])]


def by_autograd(function, inputs, dy):
    """∂(Σ y ⊙ dy) of nested lists, by our own engine."""
    values = [gpt._map(Value, x) for x in inputs]
    total = Value(0.0)
    for row, d_row in zip(function(*values), dy, strict=True):
        for y, d in zip(row, d_row, strict=True):
            total = total + y * d
    total.backward()
    return [gpt._map(lambda v: v.grad, x) for x in values]


def close(got, wanted, tolerance=1e-11):
    torch.testing.assert_close(
        torch.tensor(got, dtype=torch.float64),
        torch.tensor(wanted, dtype=torch.float64),
        atol=tolerance,
        rtol=tolerance,
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 7), st.integers(1, 6), st.integers(1, 5), st.integers(0, 99))
def test_each_backward_is_autograds(time, size, out, seed):
    chance = random.Random(seed)
    x, dy = numbers((time, size), chance), numbers((time, size), chance)
    weight, bias, wide = numbers((size, out), chance), numbers((out,), chance), numbers((time, out), chance)
    got = derived.linear_backward(wide, x, weight)
    wanted = by_autograd(lambda x, w, b: [gpt.linear(row, w, b) for row in x], (x, weight, bias), wide)
    for one, other in zip(got, wanted, strict=True):
        close(one, other)

    ids, table = [chance.randrange(3) for _ in range(time)], numbers((3, size), chance)
    d_table, d_places = ([[0.0] * size for _ in range(rows)] for rows in (3, time))
    derived.embed_backward(dy, ids, d_table, d_places)
    wanted = by_autograd(lambda e, p: derived.embed(ids, e, p), (table, x), dy)
    for one, other in zip((d_table, d_places), wanted, strict=True):
        close(one, other)

    scale, shift = numbers((size,), chance), numbers((size,), chance)
    _, saved = derived.layer_norm(x, scale, shift, 1e-3)
    wanted = by_autograd(lambda x, w, b: [gpt.layer_norm(row, w, b, 1e-3) for row in x], (x, scale, shift), dy)
    for one, other in zip(derived.layer_norm_backward(dy, scale, saved), wanted, strict=True):
        close(one, other, 1e-9)

    _, t = derived.gelu(x)
    (wanted,) = by_autograd(lambda x: [[gpt.gelu(v) for v in row] for row in x], (x,), dy)
    close(derived.gelu_backward(dy, x, t), wanted)

    q, k, v = (numbers((time, size), chance) for _ in range(3))
    y, pattern = derived.attention(q, k, v)
    close(y, gpt.attention(q, k, v))
    for one, other in zip(
        derived.attention_backward(dy, q, k, v, pattern), by_autograd(gpt.attention, (q, k, v), dy), strict=True
    ):
        close(one, other)

    targets = [chance.choice([gpt.IGNORED, *range(size)]) for _ in range(time)]
    loss, p = derived.cross_entropy(x, targets)
    assert loss == pytest.approx(gpt.cross_entropy(x, targets), rel=1e-12, abs=1e-12)
    if any(target != gpt.IGNORED for target in targets):
        (wanted,) = by_autograd(lambda x: [[gpt.cross_entropy(x, targets)]], (x,), [[1.0]])
        close(derived.cross_entropy_backward(p, targets), wanted)


@pytest.mark.parametrize("kind", [gpt.GPT, derived.GPT])
@pytest.mark.parametrize("tie", [True, False])
def test_whole_model_gradients_are_finite_differences(kind, tie, small, tmp_path):
    small("gpt2", **SHAPE, tie_embeddings=tie).double().save(tmp_path)
    model, chance = kind.load(tmp_path), random.Random(0)
    ids, targets = [1, 28, 1, 3, 0], [28, 1, gpt.IGNORED, 0, 7]
    _, gradients = model.loss_and_gradients(ids, targets)
    for name, tensor in model.weights.items():
        for row, slopes in zip(training.rows(tensor), training.rows(gradients[name]), strict=True):
            at, step = chance.randrange(len(row)), 1e-4
            middle, around = row[at], []
            for offset in (-2, -1, 1, 2):
                row[at] = middle + offset * step
                around.append(model.loss(ids, targets))
            row[at] = middle
            slope = (around[0] - 8 * around[1] + 8 * around[2] - around[3]) / (12 * step)
            assert slopes[at] == pytest.approx(slope, rel=1e-6, abs=1e-9), name


def test_one_training_curve_and_it_falls():
    names = training.made_names(200)
    assert training.CONFIG.parameter_count() == 4192
    curves = [
        training.train(kind(training.CONFIG, training.start(training.CONFIG)), names, 8)
        for kind in (gpt.GPT, derived.GPT)
    ]
    assert curves[0] == pytest.approx(curves[1], rel=1e-12)
    model = derived.GPT(training.CONFIG, training.start(training.CONFIG))
    curve = training.train(model, names, 200)
    assert sum(curve[:10]) / 10 == pytest.approx(math.log(27), rel=0.1)
    assert sum(curve[-20:]) / 20 < 2.5
    made = [training.sample(model, random.Random(seed)) for seed in range(5)]
    assert all(set(name) <= set(training.ALPHABET[1:]) for name in made)
    assert len(set(made)) > 1


def test_the_training_curve_is_torchs(tmp_path):
    """The same weights, names and rate with torch's autograd and torch's Adam."""
    names, steps = training.made_names(50), 12
    ours = derived.GPT(training.CONFIG, training.start(training.CONFIG))
    ours.save(tmp_path)
    model = Transformer.load(tmp_path)
    assert model.embed.weight.dtype == torch.float64
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.99))
    wanted = []
    for step, name in enumerate(names[:steps]):
        ids = torch.tensor([training.encode(name)])
        logits = model(ids[:, :-1])[0]
        loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:])
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        wanted.append(loss.item())
    assert training.train(ours, names, steps) == pytest.approx(wanted, rel=1e-9)
    ours.save(tmp_path / "trained")
    for name, parameter in Transformer.load(tmp_path / "trained").named_parameters():
        torch.testing.assert_close(parameter, dict(model.named_parameters())[name], atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize(
    ("ids", "targets"), [([1, 2], [1]), ([1, 2], [1, 29]), ([1], [-1]), ([], []), ([29], [0]), ([0] * 13, [0] * 13)]
)
def test_ids_and_targets_that_do_not_fit_are_refused(ids, targets, small, tmp_path):
    small("gpt2", **SHAPE).save(tmp_path)
    for kind in (gpt.GPT, derived.GPT):
        for method in (kind.load(tmp_path).loss, kind.load(tmp_path).loss_and_gradients):
            with pytest.raises(ModelError, match=r"wanted .*got"):
                method(ids, targets)


def test_weights_that_are_no_numbers_and_names_that_are_no_letters_are_refused(small, tmp_path):
    model = small("gpt2", **SHAPE)
    with torch.no_grad():
        model.blocks[0].mlp.up.weight[0, 0] = float("nan")
    model.save(tmp_path)
    with pytest.raises(ModelError, match=r"mlp\.c_fc\.weight, got 1 that are NaN"):
        gpt.GPT.load(tmp_path)
    with pytest.raises(ModelError, match="got"):
        training.encode("Zoë")


def test_the_demonstration_runs_without_torch_and_numpy():
    code = (
        "import sys; sys.modules.update(torch=None, numpy=None, safetensors=None)\n"
        "from tinylm.model.scalar.__main__ import main; main(beside=2, steps=20)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "4,192 parameters" in out
    assert "New names: " in out
