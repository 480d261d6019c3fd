"""The same model on a GPU: fp32 against the CPU, bf16 against float64, the cache, and the chunked loss."""

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
