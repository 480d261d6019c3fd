"""The forward pass in C++: what PyTorch computes, the same bits however a text is cut, batched, paged or threaded."""

import pytest

torch = pytest.importorskip("torch")

from tinylm.inference import kernels  # noqa: E402  # after importorskip
from tinylm.inference.decoder import CacheLayout, Decoder, layout_of  # noqa: E402
from tinylm.inference.quantization import QuantizedTransformer, quantize  # noqa: E402
from tinylm.model import KVCache, Transformer, TransformerConfig  # noqa: E402

pytestmark = pytest.mark.skipif(not kernels.available(), reason="installed without a compiler")

SHAPES = {
    "gpt2": {},
    "qwen3": {"kv_heads": 1},
    "llama": {"head_dim": 24, "width": 72, "mlp_width": 100},
    "smollm2": {"depth": 5},
    "mistral": {"window": 7},
    "gpt2 with rope": {"position": "rope", "qk_norm": True},
}


def small(shape: str, scheme: str = "int8") -> QuantizedTransformer:
    torch.manual_seed(0)
    options = {"depth": 2, "context": 64, **SHAPES[shape]}
    model = Transformer(TransformerConfig.preset(shape.split()[0], vocab_size=211, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return quantize(model, scheme)


def some_ids(batch: int, time: int) -> torch.Tensor:
    return torch.randint(0, 211, (batch, time), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_pytorch_computes_the_same(shape: str) -> None:
    """Up to a sum's last bits, which may round an activation to the next whole number; most numbers show none."""
    model, ids = small(shape), some_ids(2, 20)
    compiled, plain = model(ids), model(ids, taps={})
    difference = (compiled - plain).abs()
    assert difference.median() < 1e-5 * plain.std() or difference.max() < 0.1 * plain.std()
    assert difference[:, 0].max() < 0.1 * plain.std()
    assert difference.square().mean().sqrt() < 0.05 * plain.std()


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_however_a_text_is_cut_the_bits_are_the_same(shape: str, scheme: str) -> None:
    model, ids = small(shape, scheme), some_ids(3, 20)
    wanted = model(ids)
    cache = KVCache(model.config, 3, 20)
    pieces = [model(ids[:, begin:end], cache=cache) for begin, end in [(0, 7), (7, 8), (8, 9), (9, 20)]]
    assert torch.equal(torch.cat(pieces, dim=1), wanted)
    assert cache.length == 20
    assert torch.equal(torch.cat([model(row[None]) for row in ids]), wanted)
    assert torch.equal(model(ids, logits_at=[-1, 0]), wanted[:, [-1, 0]])
    at = torch.tensor([[-1], [4], [0]])
    assert torch.equal(model(ids, logits_at=at), wanted.take_along_dim(at[..., None] % 20, dim=1))


@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_every_instruction_set_and_two_threads_give_the_same_bits(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, threads = some_ids(2, 11), torch.get_num_threads()
    logits = []
    for name in kernels.instruction_sets():
        monkeypatch.setenv("TINYLM_INSTRUCTION_SET", name)
        logits.append(small(shape)(ids))
    try:
        torch.set_num_threads(2)
        logits.append(small(shape)(ids))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(other, logits[0]) for other in logits[1:])


def pages(model: QuantizedTransformer, lengths: list[int], block_size: int = 4) -> CacheLayout:
    """An empty cache of blocks in a random order, tokens before heads."""
    config = model.config
    shape = (config.depth, 40, block_size, config.kv_heads, config.head_dim)
    keys, values = torch.full(shape, torch.nan), torch.full(shape, torch.nan)
    blocks = torch.randperm(40, generator=torch.Generator().manual_seed(2)).view(len(lengths), -1)
    layer, block, token, head, _ = keys.stride()
    return CacheLayout(keys, values, blocks, torch.tensor(lengths), block_size, (layer, block, head, token))


@pytest.mark.parametrize("shape", ["gpt2", "mistral"])
@torch.inference_mode()
def test_sequences_of_different_lengths_in_blocks(shape: str) -> None:
    model = small(shape)
    assert isinstance(model._decoder, Decoder)
    first, second = some_ids(2, 18)
    cache = pages(model, [0, 0])
    logits = []
    for counts in [(5, 1), (1, 9), (4, 2)]:  # new tokens of the two, in one call
        begins = cache.lengths.tolist()
        parts = [text[b : b + n] for text, b, n in zip((first, second), begins, counts, strict=True)]
        positions = torch.cat([torch.arange(b, b + n) for b, n in zip(begins, counts, strict=True)])
        starts = torch.tensor([0, counts[0], sum(counts)])
        out = model._decoder.forward(torch.cat(parts), positions, starts, cache, torch.arange(sum(counts)))
        logits.append(out.split(list(counts)))
        cache.lengths.add_(torch.tensor(counts))
    assert torch.equal(torch.cat([pair[0] for pair in logits]), model(first[None, :10])[0])
    assert torch.equal(torch.cat([pair[1] for pair in logits]), model(second[None, :12])[0])


@torch.inference_mode()
def test_what_is_out_of_range_is_refused() -> None:
    model = small("gpt2")
    assert model._decoder is not None
    good = {
        "ids": torch.tensor([1, 2]),
        "positions": torch.tensor([0, 1]),
        "starts": torch.tensor([0, 2]),
        "rows": torch.tensor([1]),
    }
    cache = pages(model, [0])
    model._decoder.forward(**good, cache=cache)
    for wrong in (
        {"ids": torch.tensor([1, 211])},
        {"positions": torch.tensor([-1, 0])},
        {"positions": torch.tensor([0, 64])},
        {"starts": torch.tensor([0, 1])},
        {"starts": torch.tensor([0, 1, 2])},
        {"rows": torch.tensor([2])},
    ):
        with pytest.raises(ValueError, match="wanted"):
            model._decoder.forward(**{**good, **wrong}, cache=cache)
    for lengths, blocks in ([-1], [[0]]), ([3], [[0]]), ([0], [[40]]), ([0], [[-1]]):
        outside = CacheLayout(
            cache.keys, cache.values, torch.tensor(blocks), torch.tensor(lengths), cache.block_size, cache.strides
        )
        with pytest.raises(ValueError, match="wanted"):
            model._decoder.forward(**good, cache=outside)


def test_caches_of_another_kind_take_the_way_through_pytorch() -> None:
    config = TransformerConfig.preset("gpt2", vocab_size=9, depth=1)
    assert layout_of(KVCache(config, 1, 4, dtype=torch.float16)) is None
    assert layout_of(object()) is None
    assert layout_of(KVCache(config, 1, 4)) is not None
    assert layout_of(KVCache(config, 1, 4, dtype=torch.bfloat16)) is not None


@torch.inference_mode()
def test_a_mask_leaves_padding_out() -> None:
    model, ids = small("qwen3"), some_ids(1, 12)
    padded = torch.cat((torch.zeros(1, 3, dtype=torch.int64), ids), dim=1)
    mask = torch.arange(15)[None] >= 3
    difference = model(padded, mask=mask)[:, 3:] - model(ids)
    assert difference.square().mean().sqrt() < 0.05 * model(ids).std()


@torch.inference_mode()
def test_a_full_cache_and_ids_that_do_not_exist_are_refused() -> None:
    model = small("gpt2")
    with pytest.raises(ValueError, match="wanted"):
        model(some_ids(1, 5), cache=KVCache(model.config, 1, 4))
    with pytest.raises(ValueError, match="wanted ids from 0 to 210"):
        model(torch.tensor([[300]]))
    with pytest.raises(ValueError, match="wanted positions"):
        model(some_ids(1, 65))
