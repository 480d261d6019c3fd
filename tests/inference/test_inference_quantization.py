"""Quantised weights: rounding, the layout of the kernels, and every rung equal to the last bit.

Without compiled kernels (a pure wheel) the same tests run on the PyTorch rung, but for those that compare with C++.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from hypothesis import example, given, settings  # noqa: E402  # after importorskip
from hypothesis import strategies as st  # noqa: E402

from tinylm.inference import LLM, InferenceError, SamplingParams, kernels  # noqa: E402
from tinylm.inference.quantization import packing, quantize, reference  # noqa: E402
from tinylm.inference.quantization.linear import QuantizedLinear  # noqa: E402
from tinylm.inference.quantization.weights import QuantizedWeight, round_weight  # noqa: E402
from tinylm.model import Transformer, TransformerConfig  # noqa: E402

needs_kernels = pytest.mark.skipif(not kernels.available(), reason="installed without a compiler")
SHAPES = st.tuples(st.integers(1, 70), st.integers(1, 200))
KINDS = st.sampled_from(["int8", "int8 in groups", "int4", "int4 with minima"])


def random_weight(shape: tuple[int, int], kind: str, seed: int) -> QuantizedWeight:
    """Any numbers that the type can hold, the extremes among them; scales of both signs and 0."""
    chance = torch.Generator().manual_seed(seed)
    bits = 8 if "int8" in kind else 4
    numbers = torch.randint(-127 if bits == 8 else 0, 128 if bits == 8 else 16, shape, generator=chance)
    groups = 1 if kind == "int8" else -(-shape[1] // 32)
    scales, minima = torch.randn(2, shape[0], groups, generator=chance).half()
    scales[0, 0] = 0
    return QuantizedWeight(numbers.to(torch.int8), scales, minima if "minima" in kind else None, bits)


def random_input(tokens: int, inputs: int, seed: int) -> torch.Tensor:
    x = torch.randn(tokens, inputs, generator=torch.Generator().manual_seed(seed))
    x[0, 0] = 40.0  # an outlier, as real activations have
    x[-1] *= 0.0 if seed % 3 == 0 else 1.0
    return x


@needs_kernels
@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, tokens=st.integers(1, 9), kind=KINDS, seed=st.integers(0, 1000))
@example(shape=(1, 159), tokens=4, kind="int8 in groups", seed=171)  # 127 / max is not 127 times the reciprocal
def test_every_instruction_set_gives_pytorchs_bits(shape: tuple[int, int], tokens: int, kind: str, seed: int) -> None:
    weight, x = random_weight(shape, kind, seed), random_input(tokens, shape[1], seed)
    bias = torch.randn(shape[0], generator=torch.Generator().manual_seed(seed)) if seed % 2 else None
    wanted = reference.linear(x, weight, bias)
    for name in kernels.instruction_sets():
        assert torch.equal(QuantizedLinear(weight, bias, instruction_set=name)(x), wanted), name


@needs_kernels
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_long_row_of_extremes_does_not_overflow(kind: str) -> None:
    weight = random_weight((17, 5000), kind, 0)
    weight.numbers.fill_(-127 if kind == "int8" else 15)
    x = torch.full((2, 5000), -3.0)
    for name in kernels.instruction_sets():
        got = QuantizedLinear(weight, instruction_set=name)(x)
        assert torch.equal(got, reference.linear(x, weight, None)), name


@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, kind=KINDS, seed=st.integers(0, 1000))
def test_the_reference_is_the_dequantised_matrix_times_the_rounded_input(
    shape: tuple[int, int], kind: str, seed: int
) -> None:
    weight, x = random_weight(shape, kind, seed), random_input(3, shape[1], seed)
    p, t, _ = reference.round_activations(x, weight.scales.shape[1])
    rounded = (p * t[..., None]).flatten(1)[:, : shape[1]].double()
    assert (rounded - x).abs().max() <= x.abs().max() / 254 * 1.001
    wanted = rounded @ weight.dequantize().double().T
    allowed = 1e-6 * (rounded.abs() @ weight.dequantize().double().abs().T) * weight.scales.shape[1] + 1e-4
    assert ((reference.linear(x, weight, None) - wanted).abs() <= allowed).all()


@needs_kernels
@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, kind=KINDS, seed=st.integers(0, 1000))
def test_packing_loses_nothing(shape: tuple[int, int], kind: str, seed: int) -> None:
    weight = random_weight(shape, kind, seed)
    back = QuantizedLinear(weight).weight()
    assert torch.equal(back.numbers, weight.numbers)
    assert torch.equal(back.scales, weight.scales)
    assert back.bits == weight.bits
    assert (back.minima is None) == (weight.minima is None)
    if back.minima is not None and weight.minima is not None:
        assert torch.equal(back.minima, weight.minima)


@pytest.mark.parametrize("bits", [8, 4])
def test_rounding_loses_about_half_a_step(bits: int) -> None:
    weight = torch.randn(40, 100, generator=torch.Generator().manual_seed(0))
    weight[3] = 0
    rounded = round_weight(weight, bits)
    error = (rounded.dequantize() - weight).abs()
    if bits == 8:
        step = weight.abs().amax(dim=1, keepdim=True) / 127
        assert (error <= step / 2 * 1.01).all()
    else:  # the scale with the least squared error may clip a little: in the mean it is no worse than steps of 1 / 8
        padded = torch.nn.functional.pad(weight, (0, 28)).view(40, 4, 32)
        step = (padded.abs().amax(dim=2) / 8).repeat_interleave(32, dim=1)[:, :100]
        assert error.square().mean() <= (step.square() / 12).mean() * 1.05
    assert torch.equal(rounded.dequantize()[3], weight[3])


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_weights_that_cannot_be_rounded_are_refused(bits: int, value: float) -> None:
    weight = torch.ones(3, 40)
    weight[1, 5] = value
    with pytest.raises(InferenceError, match="wanted"):
        round_weight(weight, bits)


@needs_kernels
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_tokens_result_does_not_depend_on_its_batch_or_the_threads(kind: str) -> None:
    linear = QuantizedLinear(random_weight((333, 96), kind, 1))
    x = random_input(37, 96, 1)
    alone = torch.cat([linear(row[None]) for row in x])
    together = torch.empty_like(alone)
    for threads in (1, 2, 3):
        linear.matrix.linear(x.numpy(), together.zero_().numpy(), threads)
        assert torch.equal(together, alone)


@needs_kernels
def test_shapes_that_do_not_fit_are_refused() -> None:
    linear = QuantizedLinear(random_weight((20, 40), "int8", 0))
    with pytest.raises(ValueError, match="wanted x"):
        linear.matrix.linear(torch.zeros(2, 41).numpy(), torch.zeros(2, 20).numpy(), 1)
    packed = packing.allocate([16])[0].numpy()
    with pytest.raises(ValueError, match="wanted 2176 bytes"):
        kernels._compiled().Matrix(packed, 20, 40, 8, False, False, None, kernels.instruction_set())


def small(preset: str, **overrides: object) -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig.preset(preset, vocab_size=307, depth=2, context=48, **overrides)
    model = Transformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("preset", ["gpt2", "qwen3", "llama"])
@pytest.mark.parametrize(("scheme", "most"), [("int8", 0.06), ("int4", 0.6)])
@torch.inference_mode()
def test_a_quantised_model_is_near_its_own(preset: str, scheme: str, most: float) -> None:
    model = small(preset)
    quantized = quantize(model, scheme)
    ids = torch.randint(0, 307, (2, 20), generator=torch.Generator().manual_seed(0))
    wanted, got = model(ids), quantized(ids)
    assert 0 < (got - wanted).square().mean().sqrt() / wanted.std() < most
    assert torch.equal(quantized(ids, logits_at=[-1, 3]), got[:, [-1, 3]])
    targets = ids.roll(-1, dims=1)
    targets[0, :5] = -100
    each = torch.nn.functional.cross_entropy(got.flatten(0, 1), targets.flatten(), reduction="none")
    assert torch.allclose(quantized.loss(ids, targets, reduction="none"), each.view(2, 20))
    assert torch.allclose(quantized.loss(ids, targets), each.sum() / 35)
    assert torch.allclose(quantized.loss(ids, targets, reduction="sum"), each.sum())
    assert torch.equal(model(ids), wanted), "the given model was changed"


def test_an_untied_head_is_quantised_too() -> None:
    model = small("llama")
    assert model.head is not None
    quantized = quantize(model, "int8")
    assert torch.allclose(
        quantized.head_weight, model.head.weight, atol=float(model.head.weight.detach().abs().max()) / 200
    )
    with pytest.raises(InferenceError, match="saved from"):
        quantized.save("anywhere")


def test_without_the_kernels_the_results_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of the kernels one by one (taps={}); test_inference_decoder.py compares them as a whole."""
    model = small("qwen3")
    ids = torch.arange(10)[None]
    with torch.inference_mode():
        wanted = {scheme: quantize(model, scheme)(ids, taps={}) for scheme in ("int8", "int4")}
        monkeypatch.setattr(kernels, "_compiled", lambda: None)
        kernels._warn_once.cache_clear()
        with pytest.warns(RuntimeWarning, match="install a C\\+\\+20 compiler") as warned:
            got = {scheme: quantize(model, scheme)(ids, taps={}) for scheme in ("int8", "int4")}
    assert len([warning for warning in warned if "compiler" in str(warning.message)]) == 1
    assert kernels.backend().startswith("python")
    for scheme in wanted:
        assert torch.equal(got[scheme], wanted[scheme])


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_llm_writes_with_quantised_weights(checkpoint: Path, scheme: str) -> None:
    llm = LLM(str(checkpoint), quantization=scheme, device="cpu")
    assert (llm.device.type, llm.dtype) == ("cpu", torch.float32)
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    first, second = (llm.generate("The cook", params)[0].outputs[0].token_ids for _ in range(2))
    assert first == second
    assert len(first) == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantization": "awq"}, "wanted one of int8, int4, got 'awq'"),
        ({"quantization": "int8", "dtype": "bfloat16"}, "computes in float32"),
        ({"quantization": "int4", "device": "cuda"}, "runs on the CPU"),
    ],
)
def test_what_quantisation_cannot_do_is_refused(checkpoint: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(InferenceError, match=message):
        LLM(str(checkpoint), **options)


def test_experts_are_refused() -> None:
    config = TransformerConfig.preset("qwen3-moe", vocab_size=40, depth=1)
    with pytest.raises(InferenceError, match="experts"):
        quantize(Transformer(config), "int8")


@needs_kernels
def test_the_environment_chooses_the_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in kernels.instruction_sets():
        monkeypatch.setenv("TINYLM_INSTRUCTION_SET", name)
        assert kernels.backend() == f"kernels (C++, {name})"
        assert QuantizedLinear(random_weight((3, 4), "int8", 0)).matrix.instruction_set == name


@needs_kernels
def test_an_unknown_instruction_set_is_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tinylm.inference", "--version"],
        env=os.environ | {"TINYLM_INSTRUCTION_SET": "mmx"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert "TINYLM_INSTRUCTION_SET: wanted one of" in done.stderr
