"""Weights as they are through the compiled pass: PyTorch's numbers, the same bits however steps are cut or spread."""

import copy
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tinylm.inference import LLM, SamplingParams, kernels, paged_cache, plain_weights  # noqa: E402  # after importorskip
from tinylm.inference.decoder import CacheLayout, attend_few, attend_long, plain_matrix  # noqa: E402
from tinylm.inference.engine import Engine  # noqa: E402
from tinylm.inference.engine_config import EngineConfig  # noqa: E402
from tinylm.inference.plain_weights import MOST, KernelMLP, PlainTransformer, use_kernels  # noqa: E402
from tinylm.model import KVCache, Transformer, TransformerConfig, generate  # noqa: E402
from tinylm.model.attention import attend  # noqa: E402

pytestmark = pytest.mark.skipif(not kernels.available(), reason="installed without a compiler")

TAKE_BFLOAT16 = ("amx", "avx512_bf16")  # instruction sets with products of bfloat16
SHAPES = {
    "gpt2": {},
    "qwen3": {"kv_heads": 1},
    "llama": {"head_dim": 24, "width": 72, "mlp_width": 100},  # no multiple of 16 anywhere
    "smollm2": {},
    "mistral": {"window": 7},
}


def small(shape: str, dtype: torch.dtype = torch.float32) -> Transformer:
    torch.manual_seed(0)
    options = {"depth": 2, "context": 64, **SHAPES[shape]}
    model = Transformer(TransformerConfig.preset(shape, vocab_size=211, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.to(dtype).eval()


def compiled(shape: str, dtype: torch.dtype = torch.float32) -> PlainTransformer:
    model = small(shape, dtype)
    use_kernels(model)
    assert isinstance(model, PlainTransformer)
    return model


def some_ids(batch: int, time: int) -> torch.Tensor:
    return torch.randint(0, 211, (batch, time), generator=torch.Generator().manual_seed(1))


def step_by_step(model: Transformer, ids: torch.Tensor, prompt: int, kept: torch.dtype = torch.float32) -> torch.Tensor:
    """(B, T, V): a prompt at once, then token by token, with a cache of the type `kept`."""
    cache = KVCache(model.config, *ids.shape, dtype=kept)
    parts = [model(ids[:, :prompt], cache=cache)]
    parts += [model(ids[:, at : at + 1], cache=cache) for at in range(prompt, ids.shape[1])]
    return torch.cat([part.float() for part in parts], dim=1)


def only_with(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name not in kernels.instruction_sets():
        pytest.skip(f"this processor has no {name}")
    monkeypatch.setenv("TINYLM_INSTRUCTION_SET", name)


@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_float32_computes_what_pytorch_does(shape: str) -> None:
    ids = some_ids(2, 30)
    wanted = small(shape)(ids)
    assert (step_by_step(compiled(shape), ids, 20) - wanted).abs().max() < 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_bfloat16_weights_are_nearer_to_the_exact_result_than_pytorchs_way(shape: str) -> None:
    """Both have the same weights; between them PyTorch keeps 8 bits of each number, the compiled pass 24."""
    ids, rounded = some_ids(1, 12), small(shape, torch.bfloat16)
    exact = small(shape, torch.bfloat16).double()(ids)
    ours = (step_by_step(compiled(shape, torch.bfloat16), ids, 1) - exact).abs().max()
    assert ours < 1e-4 * exact.abs().max()
    pytorchs = (rounded(ids).double() - exact).abs().max()
    assert ours < 0.1 * pytorchs
    kept = step_by_step(compiled(shape, torch.bfloat16), ids, 1, torch.bfloat16)  # only keys and values are rounded
    assert (kept - exact).abs().max() < 0.7 * pytorchs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_a_tokens_bits_do_not_depend_on_batch_or_threads(shape: str, dtype: torch.dtype) -> None:
    """But for bfloat16 where bfloat16 is multiplied: there a token alone goes another way, and two are the fewest."""
    fewest = 2 if dtype == torch.bfloat16 and kernels.instruction_set() in TAKE_BFLOAT16 else 1
    ids, threads = some_ids(int(compiled(shape, dtype)._most), 5), torch.get_num_threads()
    wanted = step_by_step(compiled(shape, dtype), ids, 1)
    few = torch.cat([step_by_step(compiled(shape, dtype), rows, 1) for rows in ids.split(fewest)])
    assert torch.equal(few, wanted)
    alone = torch.cat([step_by_step(compiled(shape, dtype), row[None], 1) for row in ids])
    assert (alone - wanted).abs().max() <= (1e-4 * wanted.abs().max() if fewest > 1 else 0)
    kept = step_by_step(compiled(shape, dtype), ids, 1, dtype)
    assert torch.equal(step_by_step(compiled(shape, dtype), ids[2 : 2 + fewest], 1, dtype), kept[2 : 2 + fewest])
    assert torch.equal(compiled(shape, dtype)(ids[:1]), kept[:1])
    assert torch.equal(step_by_step(compiled(shape, dtype), ids[:fewest], 4), wanted[:fewest])
    try:
        torch.set_num_threads(2)
        assert torch.equal(step_by_step(compiled(shape, dtype), ids[:2], 1), wanted[:2])
        assert torch.equal(step_by_step(compiled(shape, dtype), ids[:1], 1), alone[:1])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_every_instruction_set_gives_the_same_bits_but_those_for_bfloat16(
    shape: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take an activation as two bfloat16, 17 bits in all, and add in another order."""
    ids, got = some_ids(2, 5), {}
    for name in kernels.instruction_sets():
        monkeypatch.setenv("TINYLM_INSTRUCTION_SET", name)
        got[name] = step_by_step(compiled(shape, dtype), ids, 1)
        if name not in TAKE_BFLOAT16:
            kept = step_by_step(compiled(shape, dtype), ids, 1, dtype)
            assert torch.equal(kept, got.setdefault("narrow cache", kept))
    narrow = got.pop("narrow cache")
    assert torch.equal(narrow, got["portable"]) == (dtype == torch.float32)
    for name, other in got.items():
        near = 1e-4 if name in TAKE_BFLOAT16 and dtype == torch.bfloat16 else 0
        assert (other - got["portable"]).abs().max() <= near * got["portable"].abs().max()


@pytest.mark.parametrize("name", TAKE_BFLOAT16)
@pytest.mark.parametrize("tokens", [1, 2, 8, 9, 23, 40])
@pytest.mark.parametrize(("outputs", "inputs"), [(16, 32), (17, 96), (50, 64), (131, 768)])
def test_products_of_every_shape(
    name: str, tokens: int, outputs: int, inputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Odd numbers of outputs, whose last tile on AMX holds rows of the one before; groups of columns that are not full;
    added to what is there; between products of PyTorch, which configures AMX's tiles for itself."""
    only_with(name, monkeypatch)
    chance = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, inputs, generator=chance).bfloat16()
    bias, x = torch.randn(outputs, generator=chance), torch.randn(tokens, inputs, generator=chance)
    wanted = x.double() @ weight.double().T + bias.double()
    before = x.bfloat16() @ weight.T
    for threads in (1, 2):
        y = torch.full((tokens, outputs), torch.nan)
        plain_matrix(weight, bias).linear(x.numpy(), y.numpy(), threads)
        assert (y - wanted).abs().max() < 3e-5 * (x.abs() @ weight.float().abs().T).max()
        few = torch.empty(min(tokens, 2), outputs)  # the bits of two or more depend on no other token
        plain_matrix(weight, bias).linear(x[-2:].numpy(), few.numpy(), threads)
        assert torch.equal(few, y[-2:])
        assert torch.equal(x.bfloat16() @ weight.T, before)


@pytest.mark.parametrize("name", TAKE_BFLOAT16)
@pytest.mark.parametrize("tokens", [1, 32, 65, 300])
@pytest.mark.parametrize(("outputs", "inputs"), [(16, 32), (33, 96), (50, 64), (131, 768), (64, 3072)])
def test_a_prompts_products_of_every_shape(
    name: str, tokens: int, outputs: int, inputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strips and blocks that are not full, x in parts; a token's bits depend on no other token and no thread."""
    only_with(name, monkeypatch)
    chance = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, inputs, generator=chance).bfloat16() / inputs**0.5
    x, bias = torch.randn(tokens, inputs, generator=chance).bfloat16(), torch.randn(outputs, generator=chance)

    def product(x: torch.Tensor, bias: torch.Tensor | None, gelu: bool, threads: int = 1) -> torch.Tensor:
        y = torch.full((len(x) + 1, outputs), torch.nan, dtype=torch.bfloat16)
        numbers = (tensor.view(torch.uint16).numpy() for tensor in (x, y[:-1]))
        plain_matrix(weight, bias).product(*numbers, gelu, threads)
        assert y[-1].isnan().all()  # nothing behind the last token
        return y[:-1]

    for shift, gelu in ((None, False), (bias, False), (bias, True)):
        wanted = x.double() @ weight.double().T + (0 if shift is None else shift.double())
        wanted = torch.nn.functional.gelu(wanted, approximate="tanh") if gelu else wanted
        got = product(x, shift, gelu)
        assert torch.allclose(got.double(), wanted, rtol=2.0**-8, atol=1e-5)
        assert torch.equal(product(x, shift, gelu, threads=2), got)
        assert torch.equal(product(x[-1:].contiguous(), shift, gelu), got[-1:])


@pytest.mark.parametrize("name", TAKE_BFLOAT16)
def test_a_prompts_gelu_ends_where_gelu_ends(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Huge numbers, infinity and NaN through a matrix that changes nothing."""
    only_with(name, monkeypatch)
    x = torch.tensor([3e38, 100.0, 12.0, 0.0, -3.0, -12.0, -100.0, -3e38] * 4).bfloat16()[None]
    y = torch.empty_like(x)
    plain_matrix(torch.eye(32).bfloat16()).product(x.view(torch.uint16).numpy(), y.view(torch.uint16).numpy(), True, 1)
    wanted = torch.nn.functional.gelu(x.double(), approximate="tanh")
    usual = x.abs() < 1e30
    assert torch.allclose(y[usual].double(), wanted[usual], rtol=2.0**-8, atol=1e-6)
    assert y[0, 0] == x[0, 0]
    assert y.isfinite().all()
    x[0, 5] = torch.nan
    plain_matrix(torch.eye(32).bfloat16()).product(x.view(torch.uint16).numpy(), y.view(torch.uint16).numpy(), True, 1)
    assert y.isnan().all()


@pytest.mark.parametrize("name", TAKE_BFLOAT16)
@pytest.mark.parametrize(
    ("batch", "heads", "kv_heads", "tokens", "keys", "size", "window"),
    [
        (1, 3, 3, 16, 16, 64, None),
        (2, 4, 2, 33, 33, 32, None),
        (1, 4, 1, 40, 77, 96, None),
        (1, 2, 2, 100, 300, 128, None),
        (1, 4, 2, 65, 200, 64, 40),
        (1, 2, 1, 16, 16, 64, 1),
        (2, 2, 2, 31, 64, 128, 64),
    ],
)
def test_a_prompts_attention_of_every_shape(
    name: str,
    batch: int,
    heads: int,
    kv_heads: int,
    tokens: int,
    keys: int,
    size: int,
    window: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Near the exact result where PyTorch's is; what comes later, and what stands beside, changes no bit."""
    only_with(name, monkeypatch)
    chance = torch.Generator().manual_seed(0)
    shapes = (heads, tokens), (kv_heads, keys), (kv_heads, keys)
    q, k, v = (torch.randn(batch, h, t, size, generator=chance).bfloat16() for h, t in shapes)
    exact = attend(q.double(), k.double(), v.double(), None, window)
    pytorchs = (attend(q, k, v, None, window).double() - exact).abs().max()
    got = attend_long(q, k, v, None, window)
    assert got.shape == q.shape
    assert (got.double() - exact).abs().max() <= 1.2 * pytorchs + 2.0**-9 * exact.abs().max()
    if tokens == keys > 16:
        start = attend_long(q[:, :, :-1], k[:, :, :-1], v[:, :, :-1], None, window)
        assert torch.equal(start, got[:, :, :-1])
    assert torch.equal(attend_long(q[:, :, -16:], k, v, None, window), got[:, :, -16:])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(attend_long(q, k, v, None, window), got)
    finally:
        torch.set_num_threads(threads)


def test_attention_of_odd_shapes_is_refused_by_the_kernel_and_pytorchs_elsewhere() -> None:
    q, k = torch.randn(1, 2, 40, 24).bfloat16(), torch.randn(1, 2, 40, 24).bfloat16()
    assert torch.equal(attend_long(q, k, k), attend(q, k, k))  # heads of 24 numbers
    wide = torch.randn(1, 2, 40, 64)
    assert torch.equal(attend_long(wide, wide, wide), attend(wide, wide, wide))  # float32
    bits = q.transpose(1, 2).contiguous().view(torch.uint16).numpy()
    set_in_use = kernels.instruction_set()
    with pytest.raises(ValueError, match="wanted heads of 32, 64, 96 or 128 numbers"):
        kernels._compiled().attend_long(bits, bits, bits, 0, bits.copy(), set_in_use, 1)
    with pytest.raises(ValueError, match="wanted q and out"):
        kernels._compiled().attend_long(bits, bits[:, :20].copy(), bits, 0, bits.copy(), set_in_use, 1)


@pytest.mark.parametrize("name", TAKE_BFLOAT16)
@torch.inference_mode()
def test_prompts_attend_in_the_kernels_with_both_caches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    only_with(name, monkeypatch)
    shape = TransformerConfig.preset("qwen3", vocab_size=211, depth=2, width=64, heads=2, kv_heads=1, head_dim=32)
    torch.manual_seed(0)
    model = Transformer(shape).bfloat16().eval()
    ids, exact = some_ids(1, 180), copy.deepcopy(model).double()
    use_kernels(model)
    calls = list[tuple[int, int]]()

    def watched(q: torch.Tensor, k: torch.Tensor, *rest: object) -> torch.Tensor:
        calls.append((q.shape[2], k.shape[2]))
        return attend_long(q, k, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(plain_weights, "attend_long", watched)
    monkeypatch.setattr(paged_cache, "attend_long", watched)
    wanted = exact(ids)
    cache = KVCache(shape, 1, 180, dtype=torch.bfloat16)
    parts = [model(ids[:, :80], cache=cache), model(ids[:, 80:], cache=cache)]
    assert calls == [(80, 80)] * 2 + [(100, 180)] * 2
    assert (torch.cat(parts, dim=1).double() - wanted).abs().max() < 0.03 * wanted.abs().max()
    calls.clear()
    engine = Engine(model, config=EngineConfig(max_num_batched_tokens=100))
    engine.add_request("one", ids[0].tolist(), SamplingParams(max_tokens=1, temperature=0))
    while engine.busy:
        engine.step()
    assert calls == [(100, 100)] * 2 + [(80, 180)] * 2


@torch.inference_mode()
def test_a_long_prompt_goes_through_pytorch_and_the_weights_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = compiled("qwen3"), list[int]()
    monkeypatch.setattr(model, "_compiled", lambda ids, *_: calls.append(ids.numel()))
    model(some_ids(1, MOST))
    model(some_ids(1, MOST + 1), cache=KVCache(model.config, 1, 20))
    assert calls == [MOST]
    before = small("qwen3").state_dict()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    parameters = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    assert len({parameter.untyped_storage().data_ptr() for parameter in parameters}) == 1


def test_what_the_kernels_do_not_carry_stays_as_it_is() -> None:
    for model in (
        small("gpt2", torch.float16),
        Transformer(TransformerConfig.preset("qwen3", vocab_size=50, depth=1, experts=2, experts_per_token=1)),
    ):
        use_kernels(model)
        assert type(model) is Transformer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gelu_of_every_bfloat16(dtype: torch.dtype) -> None:
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    exact = torch.nn.functional.gelu(every.double(), approximate="tanh")
    results = []
    for name in kernels.instruction_sets():
        x = every.to(dtype).clone()
        kernels._compiled().gelu((x.view(torch.uint16) if dtype == torch.bfloat16 else x).numpy(), name, 1)
        results.append(x)
    got, usual = results[0].double(), every.abs() < 1e30  # e^x ends at 88: beyond, -1e38 becomes -0.6 and not 0
    assert got[every.isnan()].isnan().all()
    assert not got[~every.isnan()].isnan().any()
    error = 2.0**-8 if dtype == torch.bfloat16 else 1e-6
    assert torch.allclose(got[usual], exact[usual], rtol=error, atol=1e-6)
    assert all(torch.equal(other.nan_to_num(), results[0].nan_to_num()) for other in results[1:])


@torch.inference_mode()
def test_a_prompts_gelu_is_the_kernels_and_near_pytorchs() -> None:
    model, plain, ids = compiled("gpt2", torch.bfloat16), small("gpt2", torch.bfloat16), some_ids(1, 40)
    assert any(type(module) is KernelMLP for module in model.modules())
    wanted = plain.double()(ids)
    assert (model(ids).double() - wanted).abs().max() < 0.03 * wanted.abs().max()


@torch.inference_mode()
def test_a_prompts_logits_come_from_the_kernels_head() -> None:
    model, ids = compiled("qwen3", torch.bfloat16), some_ids(2, 40)
    wanted = model(ids)
    assert wanted.dtype == torch.bfloat16
    few = model(ids, logits_at=[-1, 3])
    assert few.dtype == torch.float32
    assert (few - wanted[:, [-1, 3]].float()).abs().max() <= 2.0**-8 * wanted.float().abs().max()
    assert torch.equal(model(ids, logits_at=torch.tensor([[-1], [7]]))[0], few[:1, 0])
    assert model(ids, logits_at=list(range(40))).dtype == torch.bfloat16  # many rows: PyTorch's


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_prompt_that_is_read_in_several_steps(dtype: torch.dtype) -> None:
    """The steps before its last one want no row of logits."""
    model, ids, written = compiled("gpt2", dtype), some_ids(1, 50)[0].tolist(), list[list[int]]()
    for most in (20, 512):
        engine = Engine(model, config=EngineConfig(max_num_batched_tokens=most))
        engine.add_request("one", ids, SamplingParams(max_tokens=8, temperature=0))
        written.append([])
        while engine.busy:
            written[-1] += [output.token_id for output in engine.step()]
    assert len(written[0]) == 8
    assert dtype == torch.bfloat16 or written[0] == written[1]


def test_a_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="wanted 400 bytes for this shape, got 404"):
        kernels._compiled().Matrix(
            torch.zeros(404, dtype=torch.uint8).numpy(), 10, 10, 32, False, False, None, kernels.instruction_set()
        )
    x, y = torch.zeros(1, 12).numpy(), torch.zeros(1, 10).numpy()
    with pytest.raises(ValueError, match="wanted x"):
        plain_matrix(torch.zeros(10, 11)).linear(x, y, 1)
    short = torch.zeros(1, 12, dtype=torch.uint16).numpy()
    with pytest.raises(ValueError, match="wanted a bfloat16 matrix of at least 16 outputs"):
        plain_matrix(torch.zeros(10, 11).bfloat16()).product(short, short, False, 1)
    if kernels.instruction_set() in TAKE_BFLOAT16:
        with pytest.raises(ValueError, match="wanted x"):
            plain_matrix(torch.zeros(16, 32).bfloat16()).product(short, short, False, 1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_llm_takes_the_compiled_way_and_says_what_generate_says(checkpoint: Path, dtype: str) -> None:
    llm = LLM(str(checkpoint), device="cpu", dtype=dtype)
    assert isinstance(llm.model, PlainTransformer)
    assert llm.dtype == getattr(torch, dtype)
    prompt = [3, 5, 7]
    plain = Transformer.load(checkpoint, dtype=getattr(torch, dtype)).float().eval()
    wanted = generate(plain, torch.tensor([prompt]), max_tokens=12)[0].tolist()
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    got = llm.generate([{"prompt_token_ids": prompt}] * 2, params)
    assert [answer.outputs[0].token_ids for answer in got] == [wanted[-12:]] * 2
    assert type(LLM(str(checkpoint), device="cpu", batch_invariant=True).model) is not PlainTransformer


@pytest.mark.parametrize("window", [None, 5])
@torch.inference_mode()
def test_attention_of_many_texts_in_one_call_is_attention_of_each(window: int | None) -> None:
    """Steps of the engine above MOST tokens: PyTorch's matrices, the kernels' attention; long prompts beside them."""
    torch.manual_seed(0)
    shape = {"window": window, "window_from": 1} if window else {}
    model = Transformer(TransformerConfig.preset("qwen3", vocab_size=97, depth=2, context=64, **shape)).eval()
    use_kernels(model)
    prompts = [torch.randint(0, 97, (length,)).tolist() for length in (3, 30, 9, 1, 17, 12, 2, 8, 25, 5, 7)]
    wanted = [generate(model, torch.tensor([prompt]), max_tokens=9)[0, -9:].tolist() for prompt in prompts]
    engine = Engine(model, config=EngineConfig(block_size=4, max_num_batched_tokens=40))
    params = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)
    for number, prompt in enumerate(prompts):
        engine.add_request(str(number), prompt, params)
    got: dict[str, list[int]] = {str(number): [] for number in range(len(prompts))}
    while engine.busy:
        for event in engine.step():
            got[event.request_id] += [event.token_id]
    assert list(got.values()) == wanted


def test_a_cache_of_two_types_is_refused() -> None:
    keys, values = torch.zeros(1, 1, 8, 4), torch.zeros(1, 1, 8, 4, dtype=torch.bfloat16)
    cache = CacheLayout(keys, values, torch.tensor([[0]]), torch.tensor([3]), 8, (32, 32, 32, 4))
    with pytest.raises(ValueError, match="wanted keys and values in float32, or both as the 16 bits"):
        attend_few(torch.zeros(1, 2, 4), torch.tensor([0, 1]), cache, 1, 0, None)


def test_a_cache_that_is_too_small_for_a_step_is_refused() -> None:
    cache = CacheLayout(
        torch.zeros(1, 1, 8, 4), torch.zeros(1, 1, 8, 4), torch.tensor([[1]]), torch.tensor([3]), 8, (32, 32, 32, 4)
    )
    with pytest.raises(ValueError, match="wanted blocks inside of the cache"):
        attend_few(torch.zeros(1, 2, 4), torch.tensor([0, 1]), cache, 1, 0, None)
