"""The backwards by hand within the transformer's own files: ≤ 1e-6 of finite differences, ≤ 1e-10 of torch's autograd,
in float64; the whole model by differences; and that each backward of the package has a test and shows its equation."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import tinylm.model
from tinylm.model import attention, experts, gelu, linear, loss, norm

SIZES, SEEDS = st.integers(1, 7), st.integers(0, 2**16)
some = settings(max_examples=15, deadline=None)
PACKAGE, TESTS = Path(tinylm.model.__file__).parent, Path(__file__).parent


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relative(got, wanted):
    """Largest difference over the largest size of any of the wanted numbers (or 1e-3, where all are tiny)."""
    return ((got - wanted).abs().max() / wanted.abs().max().clamp(min=1e-3)).item() if wanted.numel() else 0.0


def slope(value, x, at, step=3e-4):
    """d value() / d x[at] from four points around it (error of order step⁴)."""
    flat, around = x.view(-1), []
    middle = flat[at].item()
    for offset in (-2, -1, 1, 2):
        flat[at] = middle + offset * step
        around.append(float(value()))
    flat[at] = middle
    return (around[0] - 8 * around[1] + 8 * around[2] - around[3]) / (12 * step)


def check(by_hand, plain, *inputs):
    """`by_hand`, whose backward is ours, beside `plain`, whose backward is torch's, and beside differences."""
    mine, theirs = ([x.clone().requires_grad_() for x in inputs] for _ in range(2))
    y, wanted = by_hand(*mine), plain(*theirs)
    assert relative(y.detach(), wanted.detach()) <= 1e-12
    dy = normal(1, *wanted.shape)
    exact = torch.autograd.grad(wanted, theirs, dy)
    got = torch.autograd.grad(y, mine, dy)
    with torch.no_grad():
        for x, one, automatic in zip(inputs, got, exact, strict=True):
            assert relative(one, automatic) <= 1e-10
            numeric = [slope(lambda: (by_hand(*inputs) * dy).sum(), x, at) for at in range(x.numel())]
            assert relative(one, torch.tensor(numeric, dtype=torch.float64).view(x.shape)) <= 1e-6


@some
@given(SIZES, SIZES, SIZES, st.booleans(), SEEDS)
def test_linear(rows, inputs, outputs, has_bias, seed):
    x, weight, bias = normal(seed, 2, rows, inputs), normal(seed + 1, outputs, inputs), normal(seed + 2, outputs)

    def by_hand(x, weight, bias=None):  # the clone stands for the cast, whose memory the gradient takes
        return linear._LinearOnCPU.apply(x, weight.clone(), bias)

    check(by_hand, F.linear, x, weight, *([bias] if has_bias else []))


@some
@given(SIZES, SIZES, SEEDS)
def test_norms(rows, size, seed):
    x, weight, bias = normal(seed, 2, rows, size), normal(seed + 1, size), normal(seed + 2, size)
    check(
        lambda x, w, b: norm._LayerNormOnCPU.apply(x, w, b, 1e-2, torch.float64),
        lambda x, w, b: F.layer_norm(x, w.shape, w, b, 1e-2),
        x, weight, bias,
    )  # fmt: skip
    check(
        lambda x, w: norm._RMSNormOnCPU.apply(x, w, 1e-2, torch.float64),
        lambda x, w: F.rms_norm(x, w.shape, w, 1e-2),
        x, weight,
    )  # fmt: skip


@some
@given(SIZES, SIZES, SEEDS)
def test_gelu(rows, size, seed):
    check(gelu._GELUOnCPU.apply, lambda x: F.gelu(x, approximate="tanh"), 2 * normal(seed, rows, size))


@some
@given(st.integers(2, 7), st.integers(1, 2), st.integers(1, 2), st.integers(1, 4), st.integers(1, 8), SEEDS)
def test_attention(time, kv_heads, group, size, block, seed):
    q = normal(seed, 1, kv_heads * group, time, size)
    k, v = (normal(seed + i, 1, kv_heads, time, size) for i in (1, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "BLOCK", block)
        check(
            attention._AttentionOnCPU.apply,
            lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True),
            q, k, v,
        )  # fmt: skip


@some
@given(SIZES, SIZES, st.integers(1, 60), st.booleans(), SEEDS)
def test_the_head_and_a_tied_table(rows, vocabulary, chunk, tied, seed):
    """Tied, the table is looked up first and has one gradient for both; a chunk may hold all rows or some."""
    generator = torch.Generator().manual_seed(seed)
    ids, targets = torch.randint(0, vocabulary, (2, rows), generator=generator)
    targets[1:][torch.rand(rows - 1, generator=generator) < 0.3] = -100
    table, hidden = normal(seed, vocabulary, 3), normal(seed + 1, rows, 3)

    def by_hand(table, hidden):
        one = loss.Tied(table) if tied else None
        x = hidden + one.look_up(ids) if tied else hidden
        return loss.chunked_cross_entropy(x, table, targets, "mean", one)

    def plain(table, hidden):
        x = hidden + F.embedding(ids, table) if tied else hidden
        return F.cross_entropy(x @ table.T, targets)

    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("CHUNK_NUMBERS", chunk), ("CHUNK_BYTES", 1), ("PASS_NUMBERS", chunk), ("COLUMNS", 3)):
            patch.setattr(loss, name, value)
        check(by_hand, plain, table, hidden)


@some
@given(st.lists(st.integers(0, 3), min_size=1, max_size=4), SIZES, SIZES, SEEDS)
def test_experts(counts, inputs, outputs, seed):
    """Of which some get no row."""
    ends = torch.tensor(counts).cumsum(0)
    x, weight = normal(seed, int(ends[-1]), inputs), normal(seed + 1, len(counts), outputs, inputs)
    check(
        lambda x, weight: experts.grouped_linear(x, weight, ends),
        lambda x, weight: torch.cat([rows @ w.T for rows, w in zip(x.split(counts), weight, strict=True)]),
        x, weight,
    )  # fmt: skip


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("preset", ["gpt2", "llama", "mistral", "qwen3", "qwen3-moe"])
def test_the_whole_models_gradients_are_differences(preset, tie, small, ids):
    """One number of every parameter, through the residual connections and the tied table."""
    model, tokens = small(preset, tie_embeddings=tie, kv_heads=4 if preset == "gpt2" else 2).double(), ids(2, 7)
    targets = tokens.roll(-1, 1)
    targets[0, :2] = -100
    model.loss(tokens, targets).backward()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            at = int(torch.randint(parameter.numel(), (1,), generator=generator))
            found = parameter.grad.view(-1)[at].item()
            numeric = slope(lambda: model.loss(tokens, targets), parameter.data, at, 1e-3)
            assert found == pytest.approx(numeric, rel=1e-6, abs=1e-9), name


def backwards(*places):
    """(file, module docstring, class or None, function) of every function whose name ends in backward."""
    for place in places:
        for path in sorted((PACKAGE / place).rglob("*.py")) if place else sorted(PACKAGE.glob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for kind in (None, *(node for node in tree.body if isinstance(node, ast.ClassDef))):
                for node in tree.body if kind is None else kind.body:
                    if isinstance(node, ast.FunctionDef) and node.name.rstrip("_").endswith("backward"):
                        yield path, ast.get_docstring(tree) or "", kind, node


def test_every_backward_has_a_test_here_or_beside():
    tests = {
        "arrays": TESTS / "test_model_arrays_backward.py",
        "tensors": TESTS / "test_model_tensors_backward.py",
        "scalar": TESTS / "test_model_scalar_gradients.py",
        "": Path(__file__),
    }
    for place, file in tests.items():
        source, names = file.read_text(encoding="utf-8"), []
        through = {"_backward": "grouped_linear", "_grouped_linear_backward": "grouped_linear", "_LookUp": "Tied",
                   "_FusedHead": "chunked_cross_entropy"}  # fmt: skip
        for path, _, kind, node in backwards(place):
            name = node.name if kind is None else kind.name
            if kind is None or any("Function" in ast.unparse(base) for base in kind.bases):
                names.append(f"{path.stem}.{through.get(name, name)}")
        assert names
        missing = [name for name in names if name not in source]
        assert not missing, (place, missing)


def test_every_backward_shows_its_equation():
    """In its own docstring, its class's or its file's; or it is put together from others that do."""
    found = 0
    for path, text, kind, node in backwards("", "scalar", "arrays", "tensors", "kernels"):
        found += 1
        own = "".join(ast.get_docstring(part) or "" for part in (node, kind) if part is not None)
        calls = [ast.unparse(inner.func) for inner in ast.walk(node) if isinstance(inner, ast.Call)]
        composed = any(name.rstrip("_").endswith("backward") for name in calls)
        assert "∂" in own + text or composed, f"{path}: {node.name}"
    assert found > 60
