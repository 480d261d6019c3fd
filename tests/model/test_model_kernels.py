"""Every Triton kernel beside its reference, forward and backward: by the interpreter on a CPU, for real on a GPU.

The interpreter computes bfloat16 wrongly, so that float32 is compared here, and bfloat16 in test_model_cuda.py. What it
does not check either, the compiler does: the last test compiles the kernels for GPUs that need not be here.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="Triton is not installed: it has wheels for Linux only")

from tinylm.model import ModelError, Transformer, generate, kernels
from tinylm.model.attention import attend
from tinylm.model.kernels import _launch, attention, attention_backward, attention_forward, cross_entropy
from tinylm.model.kernels.attention import attention_reference, flash_attention, flash_attention_varlen
from tinylm.model.kernels.cross_entropy import cross_entropy_reference, linear_cross_entropy
from tinylm.model.kernels.rmsnorm import rmsnorm, rmsnorm_reference
from tinylm.model.kernels.rope import rope, rope_reference
from tinylm.model.kernels.swiglu import swiglu, swiglu_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COMPILER = Path(__file__).parents[2] / "packages" / "tinylm-model" / "benchmarks" / "compile_kernels.py"
few = settings(max_examples=8, deadline=None, derandomize=True)


def numbers(*shape: int, layout: int = 0) -> torch.Tensor:
    """Random numbers of `shape`: 0 in order in memory, 1 with the two middle axes swapped there, 2 every other one of a
    larger tensor, 3 a slice that begins somewhere in a larger one."""
    if layout == 1 and len(shape) > 2:
        x = torch.randn(shape[0], shape[2], shape[1], *shape[3:]).transpose(1, 2)
    elif layout == 2:
        x = torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2]
    elif layout == 3:
        x = torch.randn(*(size + 3 for size in shape))[tuple(slice(1, size + 1) for size in shape)]
    else:
        x = torch.randn(shape)
    return x.to(DEVICE).requires_grad_()


def same(kernel, reference, *inputs, atol=2e-5) -> None:
    """Both give the same result, and the same gradients for an upstream gradient that is not in order in memory."""
    got, wanted = kernel(*inputs), reference(*inputs)
    upstream = torch.randn(*wanted.shape[:-1], wanted.shape[-1] + 1)[..., 1:] if wanted.ndim else torch.randn(())
    torch.testing.assert_close(got, wanted, atol=atol, rtol=1e-4)
    upstream = upstream.to(DEVICE)
    for mine, theirs in zip(
        torch.autograd.grad(got, inputs, upstream), torch.autograd.grad(wanted, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=atol, rtol=1e-4)


@few
@given(rows=st.integers(0, 70), size=st.integers(1, 300), layout=st.integers(0, 3), seed=st.integers(0, 9))
def test_rmsnorm(rows, size, layout, seed):
    torch.manual_seed(seed)
    x, weight = numbers(rows, 2, size, layout=layout), numbers(size)
    same(lambda x, w: rmsnorm(x, w, 1e-6), lambda x, w: rmsnorm_reference(x, w, 1e-6, x.dtype), x, weight, atol=1e-4)


def test_rmsnorm_of_many_rows_sums_its_weights_gradient_in_programs(monkeypatch):
    monkeypatch.setattr("tinylm.model.kernels.rmsnorm.PROGRAMS", 2)
    same(
        lambda x, w: rmsnorm(x, w, 1e-6), lambda x, w: rmsnorm_reference(x, w, 1e-6, x.dtype),
        numbers(400, 70), numbers(70), atol=1e-4,
    )  # fmt: skip


@few
@given(
    batch=st.integers(1, 3), heads=st.integers(1, 5), time=st.integers(0, 20), half=st.integers(1, 40),
    layout=st.integers(0, 3), tables=st.sampled_from(["time", "one", "batch"]), seed=st.integers(0, 9),
)  # fmt: skip
def test_rope(batch, heads, time, half, layout, tables, seed):
    torch.manual_seed(seed)
    shape = {"time": (time, half), "one": (1, 1, time, half), "batch": (batch, 1, time, half)}[tables]
    angles = torch.randn(shape, device=DEVICE)
    cos, sin = angles.cos(), angles.sin()
    x = numbers(batch, heads, time, 2 * half, layout=layout)
    same(lambda x: rope(x, cos, sin), lambda x: rope_reference(x, cos, sin), x)


@few
@given(rows=st.integers(0, 9), size=st.integers(1, 2500), layouts=st.tuples(st.integers(0, 3), st.integers(0, 3)))
def test_swiglu(rows, size, layouts):
    torch.manual_seed(rows)
    same(swiglu, swiglu_reference, *(numbers(rows, 3, size, layout=layout) for layout in layouts))


def test_swiglu_of_large_numbers():
    same(swiglu, swiglu_reference, (numbers(4, 9) * 80).detach().requires_grad_(), numbers(4, 9), atol=1e-3)


@few
@given(
    batch=st.integers(1, 2), kv_heads=st.integers(1, 2), group=st.integers(1, 3), queries=st.integers(0, 90),
    keys=st.integers(0, 90), size=st.sampled_from([1, 16, 20, 64, 80, 96, 128]),
    window=st.sampled_from([None, None, 1, 7, 40, 1000]), layout=st.integers(0, 3),
)  # fmt: skip
def test_attention(batch, kv_heads, group, queries, keys, size, window, layout):
    """Also with fewer keys than queries: the first of these see nothing, and give zeros."""
    torch.manual_seed(queries)
    q = numbers(batch, kv_heads * group, queries, size, layout=layout)
    k, v = numbers(batch, kv_heads, keys, size, layout=layout), numbers(batch, kv_heads, keys, size)
    same(
        lambda q, k, v: flash_attention(q, k, v, window), lambda q, k, v: attention_reference(q, k, v, window), q, k, v
    )


@pytest.mark.parametrize("window", [None, 100])
def test_attention_over_many_blocks(window):
    """Blocks on the diagonal, on the window's edge, and whole ones between."""
    torch.manual_seed(0)
    q, k, v = (numbers(1, 1, 300, 16) for _ in range(3))
    same(
        lambda q, k, v: flash_attention(q, k, v, window), lambda q, k, v: attention_reference(q, k, v, window), q, k, v
    )


@few
@given(
    lengths=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=3),
    window=st.sampled_from([None, None, 5]), same_keys=st.booleans(),
)  # fmt: skip
def test_attention_of_sequences_of_different_lengths(lengths, window, same_keys):
    torch.manual_seed(len(lengths))
    if same_keys:
        lengths = [(queries, queries) for queries, _ in lengths]
    starts, key_starts = (
        torch.tensor([0, *part], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(DEVICE)
        for part in zip(*lengths, strict=True)
    )
    longest, longest_keys = (max(part) for part in zip(*lengths, strict=True))
    q, k, v = numbers(starts[-1], 4, 16, layout=3), numbers(key_starts[-1], 2, 16), numbers(key_starts[-1], 2, 16)

    def kernel(q, k, v):
        if same_keys:
            return flash_attention_varlen(q, k, v, starts, longest, window)
        return flash_attention_varlen(q, k, v, starts, longest, window, key_starts, longest_keys)

    def reference(q, k, v):
        pieces = [
            attention_reference(*(x.transpose(0, 1)[None] for x in parts), window)[0].transpose(0, 1)
            for parts in zip(
                q.split([a for a, _ in lengths]), k.split([b for _, b in lengths]), v.split([b for _, b in lengths]),
                strict=True,
            )
        ]  # fmt: skip
        return torch.cat(pieces)

    same(kernel, reference, q, k, v)


@pytest.mark.parametrize(("size", "window"), [(64, None), (64, 70), (128, None)])
def test_attention_in_float16(size, window):
    """The blocks of 16-bit types, which are others than float32's: within 4 roundings of 2^-11 of float64."""
    torch.manual_seed(0)
    q, k, v, dy = (torch.randn(1, heads, 200, size, device=DEVICE).half() for heads in (2, 1, 1, 2))
    inputs, exact = ([x.to(kind).requires_grad_() for x in (q, k, v)] for kind in (torch.half, torch.double))
    got, wanted = flash_attention(*inputs, window), attention_reference(*exact, window)
    pairs = zip(torch.autograd.grad(got, inputs, dy), torch.autograd.grad(wanted, exact, dy.double()), strict=True)
    for mine, theirs in ((got, wanted), *pairs):
        assert (mine.double() - theirs).abs().max() <= 4 * 2**-11 * theirs.abs().max()


@few
@given(
    rows=st.integers(0, 30), vocab=st.integers(1, 200), ignored=st.sampled_from([0.0, 0.3, 1.0]),
    reduction=st.sampled_from(["mean", "sum", "none"]), layout=st.integers(0, 3),
)  # fmt: skip
def test_linear_cross_entropy(rows, vocab, ignored, reduction, layout):
    torch.manual_seed(rows)
    targets = torch.randint(0, vocab, (rows,), device=DEVICE)
    targets[torch.rand(rows, device=DEVICE) < ignored] = -100

    def plain(hidden, weight):
        losses = F.cross_entropy(hidden @ weight.T, targets, reduction="none")
        if reduction == "none":
            return losses
        return losses.sum() / (max(1, int((targets != -100).sum())) if reduction == "mean" else 1)

    before = cross_entropy.CHUNK_NUMBERS, cross_entropy.BLOCK
    cross_entropy.CHUNK_NUMBERS, cross_entropy.BLOCK = 7 * vocab, 64  # several chunks, several blocks a row
    try:
        hidden, weight = numbers(rows, 8, layout=layout), numbers(vocab, 8, layout=layout)
        same(lambda h, w: linear_cross_entropy(h, w, targets, reduction), plain, hidden, weight, atol=1e-4)
    finally:
        cross_entropy.CHUNK_NUMBERS, cross_entropy.BLOCK = before


def test_a_graph_that_is_kept_gives_its_gradients_again():
    torch.manual_seed(0)
    chosen = [torch.randn(rows, 8, device=DEVICE).requires_grad_() for rows in (5, 11)]
    loss = linear_cross_entropy(*chosen, torch.arange(5, device=DEVICE), "mean")
    first = torch.autograd.grad(loss, chosen, torch.tensor(3.0, device=DEVICE), retain_graph=True)
    again = torch.autograd.grad(loss, chosen, torch.tensor(3.0, device=DEVICE))
    for wanted, got in zip(first, again, strict=True):
        assert torch.equal(got, wanted)


def test_the_cross_entropy_reference_is_torchs():
    logits, targets = numbers(6, 9), torch.tensor([0, 8, -100, 3, 3, 1], device=DEVICE)
    losses = F.cross_entropy(logits, targets, reduction="none")
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    torch.testing.assert_close(cross_entropy_reference(logits.detach(), targets), (losses.detach(), gradient))


@pytest.fixture
def anywhere(monkeypatch):
    """The model takes the kernels on this machine's device, be it a CPU."""
    monkeypatch.setattr(kernels, "_DEVICES", {"cpu", "cuda"})


@pytest.mark.parametrize(
    ("preset", "options"), [("gpt2", {}), ("qwen3", {"kv_heads": 2}), ("llama", {"kv_heads": 2, "window": 6})]
)
def test_the_model_with_kernels_is_the_model_without(preset, options, small, ids, anywhere):
    model = small(preset, **options).to(DEVICE)
    tokens = ids(2, 21).to(DEVICE)
    targets = tokens.roll(-1, 1)
    targets[:, -3:] = -100
    with kernels.disabled():
        wanted = model.loss(tokens, targets)
        gradients = torch.autograd.grad(wanted, list(model.parameters()))
    loss = model.loss(tokens, targets)
    assert "_Total" in loss.grad_fn.name()
    torch.testing.assert_close(loss, wanted, atol=1e-5, rtol=1e-5)
    for mine, theirs in zip(torch.autograd.grad(loss, list(model.parameters())), gradients, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(("preset", "options"), [("llama", {}), ("qwen3", {"norm": "layernorm"})])
def test_under_autocast_keys_and_queries_may_be_of_another_type(preset, options, small, ids, anywhere):
    """A float32 cache, and a LayerNorm of queries and keys, which gives float32 on CUDA under autocast."""
    model, tokens = small(preset, **options).to(DEVICE), ids(2, 7).to(DEVICE)
    with torch.autocast(DEVICE, torch.float16):
        written = generate(model, tokens, 3)
        model.loss(tokens, tokens).backward()
    assert written.shape == (2, 3)
    q = torch.randn(1, 2, 5, 16, device=DEVICE)
    with torch.autocast(DEVICE, torch.float16):
        y = attend(q, q, q.half())
    assert y.dtype == torch.float16
    torch.testing.assert_close(y.float(), attention_reference(q, q, q), atol=3e-3, rtol=0)


@pytest.mark.parametrize("target", [50, 55, -1, -101])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_target_outside_the_vocabulary_is_not_a_number(target, reduction):
    hidden, weight = numbers(3, 8), numbers(50, 8)
    loss = linear_cross_entropy(hidden, weight, torch.tensor([1, target, -100], device=DEVICE), reduction)
    if reduction == "none":
        assert loss.isnan().tolist() == [False, True, False]
        loss = loss.sum()
    assert loss.isnan()
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert gradient.isnan().any(dim=1).tolist()[1:] == [True, False]


def test_every_grid_has_one_axis(monkeypatch):
    """A second one would end at 65,535 programs: so many sequences and heads are a batch."""
    grids = []

    class Recorded:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            grids.append(grid)
            return self.kernel[grid]

    for module, name in ((attention_forward, "_forward"), (attention_backward, "_delta"),
                         (attention_backward, "_key_gradients"), (attention_backward, "_query_gradients")):  # fmt: skip
        monkeypatch.setattr(module, name, Recorded(getattr(module, name)))
    q, k = numbers(2, 4, 70, 8), numbers(2, 2, 70, 8)
    same(flash_attention, attention_reference, q, k, k)
    assert [len(grid) for grid in grids] == [1, 1, 1, 1]


def test_every_launch_is_on_the_tensors_own_device(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "device", asked.append)
    _launch.on(SimpleNamespace(is_cuda=True, device="cuda:1"))
    assert asked == ["cuda:1"]
    for path in Path(kernels.__file__).parent.glob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        launches = {node for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript)}
        guarded = {
            inner
            for node in nodes
            if isinstance(node, ast.With) and ast.unparse(node.items[0]).startswith("_launch.on(")
            for inner in ast.walk(node)
        }
        assert launches <= guarded, path


def test_training_compiles_without_a_graph_break(small, ids, anywhere):
    model, tokens = small("qwen3", kv_heads=2, depth=1).to(DEVICE), ids(1, 9).to(DEVICE)
    wanted = model.loss(tokens, tokens)
    compiled = torch.compile(model.loss, fullgraph=True, backend="aot_eager")
    loss = compiled(tokens, tokens)
    loss.backward()
    torch.testing.assert_close(loss, wanted, atol=1e-5, rtol=1e-5)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_each_kernel_is_chosen_and_can_be_switched_off(anywhere):
    x = torch.randn(2, 8, device=DEVICE)
    for name in kernels.NAMES:
        assert kernels.chosen(name, x)
        with kernels.disabled(name):
            assert [other for other in kernels.NAMES if not kernels.chosen(other, x)] == [name]
        assert kernels.chosen(name, x)
    with kernels.disabled():
        assert not any(kernels.chosen(name, x) for name in kernels.NAMES)


def test_where_no_kernel_is_chosen(anywhere, monkeypatch):
    assert not kernels.chosen("rmsnorm", torch.randn(2, 8, dtype=torch.float64, device=DEVICE))
    assert not kernels.chosen("attention", torch.randn(1, 1, 8, 129, device=DEVICE))
    monkeypatch.setattr(kernels, "_missing", True)
    x = torch.randn(2, 8, device=DEVICE)
    with pytest.warns(UserWarning, match=r"pip install 'tinylm-model\[triton\]'") as said:
        assert not any(kernels.chosen(name, x) for name in kernels.NAMES)
    assert len(said) == 1


def test_on_a_cpu_nothing_changes(small, ids):
    if DEVICE == "cpu":
        assert not any(kernels.chosen(name, torch.randn(2, 8)) for name in kernels.NAMES)


@pytest.mark.parametrize(("value", "on"), [("all", kernels.NAMES), ("none", ()), ("rope, swiglu", ("rope", "swiglu"))])
def test_the_environment_variable(value, on):
    assert kernels._from_environment(value) == frozenset(on)


@pytest.mark.parametrize("value", ["rmsnorm,flash", "None"])
def test_an_unknown_name_is_refused(value):
    program = "import tinylm.model.transformer"
    environment = os.environ | {"TINYLM_KERNELS": value}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "ModelError: TINYLM_KERNELS" in done.stderr
    with pytest.raises(ModelError, match="flash"), kernels.disabled("flash"):
        pass


def test_what_a_kernel_does_not_take_is_refused():
    x = torch.randn(1, 2, 8, 16, device=DEVICE)
    for call, message in (
        (lambda: flash_attention(x, x[:, :, :, :8], x), "wanted q"),
        (lambda: flash_attention(x[:, :1].repeat(1, 3, 1, 1), x, x), "dividing"),
        (lambda: flash_attention(x.double(), x.double(), x.double()), "float64"),
        (lambda: flash_attention(x, x.half(), x), "one device and type"),
        (lambda: flash_attention(x, x, x, window=0), "window"),
        (lambda: flash_attention(*[torch.randn(1, 1, 4, 130, device=DEVICE)] * 3), "at most 128"),
        (lambda: flash_attention_varlen(x[0], x[0], x[0], torch.tensor([0, 2]), 2), "int32"),
        (lambda: rmsnorm(x, torch.ones(5, device=DEVICE), 1e-6), "a weight for each"),
        (lambda: rmsnorm(torch.randn(1, 20000), torch.ones(20000), 1e-6), "16384"),
        (lambda: rope(x, x[0, 0], x[0, 0]), "tables"),
        (lambda: swiglu(x, x[:, :1]), "one shape"),
        (lambda: linear_cross_entropy(x[0, 0], x[0, 0, :, :9], torch.zeros(8).long(), "mean"), "hidden"),
        (lambda: linear_cross_entropy(x[0, 0], x[0, 0], torch.zeros(8).long(), "max"), "reduction"),
    ):
        with pytest.raises(ModelError, match=message):
            call()
    if DEVICE == "cpu":
        with pytest.raises(ModelError, match="bfloat16"):
            swiglu(x.bfloat16(), x.bfloat16())


def test_the_same_gradients_bit_for_bit():
    torch.manual_seed(0)
    q, k, v = numbers(1, 4, 70, 16), numbers(1, 2, 70, 16), numbers(1, 2, 70, 16)
    runs = [torch.autograd.grad(flash_attention(q, k, v).sin().sum(), (q, k, v)) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.skipif(not COMPILER.exists(), reason="the benchmarks are not here, only the installed package")
def test_the_compiler_takes_every_kernel():
    """Triton's own compiler and ptxas, for sm_90 in bfloat16; compile_kernels.py without options does all."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", str(COMPILER), "--quick", "--gpu", "90", "--type", "bf16"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kernels compiled by Triton" in done.stdout


def test_the_model_class_is_imported_without_triton():
    program = "import sys; from tinylm.model import Transformer; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert Transformer.__module__ == "tinylm.model.transformer"
    assert attention.__name__.endswith("kernels.attention")
