"""The Triton kernels beside their references, forward and backward: by the interpreter on a CPU, for real on a GPU.

The interpreter computes bfloat16 wrongly, so that float32 is compared here, and bfloat16 in test_model_cuda.py. What it
does not check either, the compiler does: a test here compiles the kernels for GPUs that need not be here. The two large
ones have files of their own, test_model_kernels_attention.py and test_model_kernels_cross_entropy.py.
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
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="Triton is not installed: it has wheels for Linux only")

from tinylm.model import ModelError, Transformer, generate, kernels
from tinylm.model.attention import attend
from tinylm.model.kernels import _launch, attention
from tinylm.model.kernels.attention import attention_reference, flash_attention, flash_attention_varlen
from tinylm.model.kernels.cross_entropy import linear_cross_entropy
from tinylm.model.kernels.rmsnorm import rmsnorm, rmsnorm_reference
from tinylm.model.kernels.rope import rope, rope_reference
from tinylm.model.kernels.swiglu import swiglu, swiglu_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COMPILER = Path(__file__).parents[2] / "packages" / "tinylm-model" / "benchmarks" / "compile_kernels.py"
few = settings(max_examples=8, deadline=None, derandomize=True)


@few
@given(rows=st.integers(0, 70), size=st.integers(1, 300), layout=st.integers(0, 3), seed=st.integers(0, 9))
def test_rmsnorm(rows, size, layout, seed, numbers, same):
    torch.manual_seed(seed)
    x, weight = numbers(rows, 2, size, layout=layout), numbers(size)
    same(lambda x, w: rmsnorm(x, w, 1e-6), lambda x, w: rmsnorm_reference(x, w, 1e-6, x.dtype), x, weight, atol=1e-4)


def test_rmsnorm_of_many_rows_sums_its_weights_gradient_in_programs(monkeypatch, numbers, same):
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
def test_rope(batch, heads, time, half, layout, tables, seed, numbers, same):
    torch.manual_seed(seed)
    shape = {"time": (time, half), "one": (1, 1, time, half), "batch": (batch, 1, time, half)}[tables]
    angles = torch.randn(shape, device=DEVICE)
    cos, sin = angles.cos(), angles.sin()
    x = numbers(batch, heads, time, 2 * half, layout=layout)
    same(lambda x: rope(x, cos, sin), lambda x: rope_reference(x, cos, sin), x)


@few
@given(rows=st.integers(0, 9), size=st.integers(1, 2500), layouts=st.tuples(st.integers(0, 3), st.integers(0, 3)))
def test_swiglu(rows, size, layouts, numbers, same):
    torch.manual_seed(rows)
    same(swiglu, swiglu_reference, *(numbers(rows, 3, size, layout=layout) for layout in layouts))


def test_swiglu_of_large_numbers(numbers, same):
    same(swiglu, swiglu_reference, (numbers(4, 9) * 80).detach().requires_grad_(), numbers(4, 9), atol=1e-3)


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
