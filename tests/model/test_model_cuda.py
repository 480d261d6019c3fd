"""The same model on a GPU: fp32 against the CPU, bf16 against float64, the cache, and the chunked loss.

The kernels by themselves, compiled and run in float32: test_model_kernels*.py, which use the GPU where there is one.
"""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")

from tinylm.model import KVCache, Transformer  # noqa: E402  # after importorskip
from tinylm.model.decoding import kv_cache, recompute  # noqa: E402

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: torch.cuda.is_available() is False"),
]
PRESETS = ("gpt2", "llama", "qwen3")


@pytest.fixture(autouse=True)
def _no_tf32():
    """TF32 keeps 10 bits of each factor; these tests compare float32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("preset", PRESETS)
def test_logits_are_the_cpus(preset, small, ids):
    model, tokens = small(preset, kv_heads=4 if preset == "gpt2" else 2), ids(3, 40)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[0, :9] = False
    with torch.no_grad():
        plain, padded = model(tokens), model(tokens, mask=mask)
        model.cuda()
        torch.testing.assert_close(model(tokens.cuda()).cpu(), plain, atol=1e-4, rtol=1e-4)
        got = model(tokens.cuda(), mask=mask.cuda()).cpu()
    torch.testing.assert_close(got[mask], padded[mask], atol=1e-4, rtol=1e-4)
    assert got.isfinite().all()


@pytest.mark.parametrize("preset", PRESETS)
def test_bfloat16_is_within_bounds_of_float64(preset, small, ids):
    model, tokens = small(preset, depth=4), ids(2, 40)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(tokens)
        rounded = model.to("cuda", torch.bfloat16)(tokens.cuda()).cpu().double()
    # 8 bits of mantissa: 2^-8 relative per operation, some dozens of them, over the spread of the logits
    assert (rounded - exact).abs().max() < 0.15 * exact.std()
    assert (rounded - exact).pow(2).mean().sqrt() < 0.03 * exact.std()


@pytest.mark.parametrize("preset", PRESETS)
def test_cached_decoding_equals_recomputation(preset, small, ids):
    model, prompt = small(preset).cuda(), ids(3, 5).cuda()
    mask = torch.ones_like(prompt, dtype=torch.bool)
    mask[1, :3] = False
    assert torch.equal(kv_cache(model, prompt, 40), recompute(model, prompt, 40))
    assert torch.equal(kv_cache(model, prompt, 40, mask=mask), recompute(model, prompt, 40, mask=mask))


def test_the_cache_attends_in_chunks(small, ids):
    model, tokens = small("qwen3", kv_heads=2).cuda(), ids(2, 30).cuda()
    cache = KVCache(model.config, 2, 30, device="cuda")
    with torch.no_grad():
        pieces = [model(piece, cache=cache) for piece in tokens.split([11, 1, 18], dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_chunked_loss_and_its_backward(preset, small, ids, monkeypatch):
    import tinylm.model.loss as module

    monkeypatch.setattr(module, "CHUNK_NUMBERS", 97 * 16)
    model, tokens = small(preset), ids(3, 40)
    targets = tokens.roll(-1, 1)
    targets[:, -5:] = -100
    wanted = model.loss(tokens, targets)
    wanted.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.cuda()
    loss = model.loss(tokens.cuda(), targets.cuda())
    loss.backward()
    torch.testing.assert_close(loss.cpu(), wanted, atol=1e-5, rtol=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad.cpu(), gradients[name], atol=1e-5, rtol=1e-3, msg=name)


def test_a_training_step_in_autocast(small, ids):
    model, tokens = small("qwen3").cuda(), ids(4, 40).cuda()
    exact = model.loss(tokens, tokens).item()
    with torch.autocast("cuda", torch.bfloat16):
        loss = model.loss(tokens, tokens)
    loss.backward()
    assert loss.item() == pytest.approx(exact, rel=0.02)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_load_to_the_device(small, tmp_path):
    model = small("llama")
    model.save(tmp_path)
    loaded = Transformer.load(tmp_path, dtype="bfloat16", device="cuda")
    assert {parameter.device.type for parameter in loaded.parameters()} == {"cuda"}
    assert torch.equal(loaded.embed.weight.cpu(), model.embed.weight.bfloat16())
    loaded.save(tmp_path / "again")
    assert torch.equal(Transformer.load(tmp_path / "again").embed.weight, model.embed.weight.bfloat16())


@pytest.mark.parametrize("preset", PRESETS)
def test_the_tensors_rung_has_autograds_gradients(preset, small, ids):
    from tinylm.model.tensors.training import Adam
    from tinylm.model.tensors.transformer import Transformer as Tensors

    model, tokens = small(preset, kv_heads=4 if preset == "gpt2" else 2).double(), ids(3, 40)
    targets = tokens.roll(-1, 1)
    targets[:, -5:] = -100
    weights = dict(model.named_parameters())
    exact = Tensors(model.config, weights, "float64")
    wanted, gradients = exact.loss_and_gradients(tokens, targets)
    for dtype, bound in (("float64", 1e-10), ("float32", 1e-5), ("bfloat16", 0.06), ("float16", 0.01)):
        ours = Tensors(model.config, weights, dtype, "cuda")
        loss, got = ours.loss_and_gradients(tokens.cuda(), targets.cuda())
        assert loss.device.type == got.flat.device.type == "cuda"
        assert loss.item() == pytest.approx(wanted.item(), rel=bound)
        assert (got.flat.cpu() - gradients.flat).norm() <= bound * gradients.flat.norm()
        Adam().step(ours.weights.flat, got.flat, 0.001)
        assert ours.loss(tokens, targets).item() < wanted.item()  # ids on the CPU are taken to the weights


# What rounding to bfloat16 (2^-8 relative) may cost: the inputs are exact, the sums are in float32, and what is left is
# one rounding of the result and, in attention, one of every p and ∂S before its product.
ROUNDING = 2**-8


def near(got, exact, bound):
    """The largest error is at most `bound` of the largest number, and the root mean square error of that of all."""
    error = got.double() - exact
    assert error.abs().max() <= bound * exact.abs().max()
    assert error.square().mean().sqrt() <= bound * exact.square().mean().sqrt()


def against_float64(kernel, reference, *inputs, bound):
    """Result and gradients of a kernel on bfloat16 inputs, beside the reference on the same numbers in float64."""
    exact = [x.detach().double().requires_grad_() for x in inputs]
    got, wanted = kernel(*inputs), reference(*exact)
    upstream = torch.randn_like(got)
    near(got, wanted, bound)
    gradients = torch.autograd.grad(wanted, exact, upstream.double())
    for mine, theirs in zip(torch.autograd.grad(got, inputs, upstream), gradients, strict=True):
        assert mine.dtype == got.dtype or mine.dtype == torch.float32
        near(mine, theirs, bound)


def random(*shape):
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16).requires_grad_()


@pytest.mark.parametrize("size", [64, 100, 768, 4096, 16384])
def test_the_rmsnorm_kernel_in_bfloat16(size):
    from tinylm.model.kernels.rmsnorm import rmsnorm, rmsnorm_reference

    torch.manual_seed(0)
    inputs = random(777, size), random(size)
    against_float64(
        lambda x, w: rmsnorm(x, w, 1e-6), lambda x, w: rmsnorm_reference(x, w, 1e-6, x.dtype), *inputs,
        bound=2 * ROUNDING,
    )  # fmt: skip


def test_the_rope_kernel_in_bfloat16():
    from tinylm.model.kernels.rope import rope, rope_reference

    torch.manual_seed(0)
    angles = torch.randn(300, 64, device="cuda")
    cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
    against_float64(
        lambda x: rope(x.transpose(1, 2), cos, sin),
        lambda x: rope_reference(x.transpose(1, 2), cos.double(), sin.double()), random(2, 300, 6, 128),
        bound=2 * ROUNDING,
    )  # fmt: skip


def test_the_swiglu_kernel_in_bfloat16():
    from tinylm.model.kernels.swiglu import swiglu, swiglu_reference

    torch.manual_seed(0)
    against_float64(swiglu, swiglu_reference, random(300, 2050), random(300, 2050), bound=2 * ROUNDING)


@pytest.mark.parametrize("window", [None, 200])
@pytest.mark.parametrize("size", [16, 64, 80, 128])
def test_the_attention_kernels_in_bfloat16(size, window):
    from tinylm.model.kernels.attention import attention_reference, flash_attention

    torch.manual_seed(0)
    against_float64(
        lambda q, k, v: flash_attention(q, k, v, window), lambda q, k, v: attention_reference(q, k, v, window),
        random(2, 6, 700, size), random(2, 2, 700, size), random(2, 2, 700, size), bound=4 * ROUNDING,
    )  # fmt: skip


def test_the_attention_kernels_for_sequences_of_different_lengths_in_bfloat16():
    from tinylm.model.kernels.attention import attention_reference, flash_attention_varlen

    torch.manual_seed(0)
    lengths = [300, 0, 1, 129]
    starts = torch.tensor([0, *lengths], device="cuda").cumsum(0, dtype=torch.int32)

    def reference(*inputs):
        pieces = zip(*(x.split(lengths) for x in inputs), strict=True)
        return torch.cat(
            [attention_reference(*(x.transpose(0, 1)[None] for x in p))[0].transpose(0, 1) for p in pieces]
        )

    against_float64(
        lambda q, k, v: flash_attention_varlen(q, k, v, starts, 300), reference,
        random(430, 4, 64), random(430, 2, 64), random(430, 2, 64), bound=4 * ROUNDING,
    )  # fmt: skip


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_fused_head_in_bfloat16(reduction, monkeypatch):
    from tinylm.model.kernels import cross_entropy

    torch.manual_seed(0)
    monkeypatch.setattr(cross_entropy, "CHUNK_NUMBERS", 5003 * 256)
    targets = torch.randint(0, 5003, (700,), device="cuda")
    targets[::7] = -100

    def reference(hidden, weight):
        return torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction=reduction)

    hidden, weight = random(700, 64), (random(5003, 64) * 0.1).detach().requires_grad_()
    # the logits, as large as 4, are rounded before the exponential: that much relative to a probability
    against_float64(
        lambda h, w: cross_entropy.linear_cross_entropy(h, w, targets, reduction), reference, hidden, weight,
        bound=8 * ROUNDING,
    )  # fmt: skip


@pytest.mark.parametrize("options", [{"kv_heads": 2}, {"kv_heads": 2, "window": 9}])
@pytest.mark.parametrize("preset", ["llama", "qwen3"])
def test_kernels_on_and_off_agree(preset, options, small, ids):
    from tinylm.model import kernels

    model, tokens = small(preset, **options).cuda(), ids(3, 60).cuda()
    results = []
    for names in ((), kernels.NAMES):
        with kernels.disabled(*names) if names else torch.enable_grad():
            loss = model.loss(tokens, tokens)
        results.append((loss, *torch.autograd.grad(loss, list(model.parameters()))))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-3)


def test_kernels_are_chosen_by_themselves(small, ids):
    model, tokens = small("qwen3").cuda(), ids(2, 9).cuda()
    assert "_Total" in model.loss(tokens, tokens).grad_fn.name()


def test_training_compiles_without_a_graph_break(small, ids):
    model, tokens = small("qwen3").cuda(), ids(3, 60).cuda()
    wanted = model.loss(tokens, tokens)
    loss = torch.compile(model.loss, fullgraph=True)(tokens, tokens)
    loss.backward()
    torch.testing.assert_close(loss, wanted, atol=1e-4, rtol=1e-4)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
