"""GGUF: every block type beside gguf's own, the real SmolLM2 file beside transformers, and files that we write."""

from __future__ import annotations

import dataclasses
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylm.model import ModelError, Transformer, TransformerConfig, read_config
from tinylm.model.gguf import blocks, files, layout, rope
from tinylm.model.gguf.metadata import architecture
from tinylm.model.gguf.reader import GGUF
from tinylm.model.gguf.tokenizer import NO_VOCABULARY
from tinylm.model.rope import frequencies

DATA = Path(os.environ.get("TINYLM_DATA", Path(__file__).parents[2] / "data" / "raw"))
SMOLLM2 = DATA / "vocabularies" / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
LINEAR = {"rope_type": "linear", "factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64}
CASES = [
    ("gpt2", {}),
    ("gpt2", {"tie_embeddings": False, "mlp_width": 40}),
    ("llama", {"kv_heads": 2}),
    ("llama", {"tie_embeddings": True, "attention_bias": True, "bias": True}),
    ("qwen3", {"kv_heads": 2, "head_dim": 32, "width": 64}),
    ("qwen3", {"tie_embeddings": False, "rope_theta": 1e6}),
    ("llama", {"attention_bias": "qkv", "head_dim": 12}),
    ("qwen3-moe", {"kv_heads": 2, "experts": 4, "mlp_width": 32}),
    ("llama", {"rope_scaling": LINEAR}),
    ("llama", {"rope_scaling": YARN}),
    ("llama", {"rope_scaling": LLAMA3, "head_dim": 32, "width": 128}),
]


def raw_blocks(kind: blocks.BlockType, count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, kind.size), dtype=np.uint8)


def by_hand(name: str, block: bytes) -> list[float]:
    """The three types whose packing is intricate, one number at a time, from the specification."""
    half = lambda at: np.float32(struct.unpack_from("<e", block, at)[0])  # noqa: E731
    out = []
    if name == "Q4_0":
        for i in range(32):
            byte = block[2 + i % 16]
            out.append(half(0) * np.float32((byte & 15 if i < 16 else byte >> 4) - 8))
    elif name == "Q4_K":
        scales = block[4:16]
        for group in range(8):
            if group < 4:
                s, m = scales[group] & 63, scales[group + 4] & 63
            else:
                s = (scales[group + 4] & 15) | ((scales[group - 4] >> 6) << 4)
                m = (scales[group + 4] >> 4) | ((scales[group] >> 6) << 4)
            for i in range(32):
                byte = block[16 + 32 * (group // 2) + i]
                q = byte & 15 if group % 2 == 0 else byte >> 4
                out.append(half(0) * np.float32(s) * np.float32(q) - half(2) * np.float32(m))
    else:
        for i in range(256):
            part, inside = divmod(i, 128)
            low = block[64 * part + inside % 64]
            high = block[128 + 32 * part + inside % 32] >> (2 * (inside // 32))
            q = (low & 15 if inside < 64 else low >> 4) | ((high & 3) << 4)
            scale = struct.unpack_from("b", block, 192 + i // 16)[0]
            out.append(half(208) * np.float32(scale) * np.float32(q - 32))
    return out


@pytest.mark.parametrize("name", ["Q4_0", "Q4_K", "Q6_K"])
def test_blocks_by_hand(name):
    kind = blocks.NAMED[name]
    raw = raw_blocks(kind, 5, 3)
    raw[:, 1] &= 0x3F  # finite scales
    raw[:, 3] &= 0x3F
    raw[:, -1] &= 0x3F
    expected = np.array([by_hand(name, block.tobytes()) for block in raw], np.float32)
    assert np.array_equal(blocks.decode(raw, kind).reshape(5, -1), expected)


@pytest.mark.parametrize("name", blocks.NAMED)
def test_blocks_are_ggufs_bit_for_bit(name):
    gguf = pytest.importorskip("gguf")
    kind = blocks.NAMED[name]
    raw = raw_blocks(kind, 1000, 4)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name]).reshape(-1)
    got = blocks.decode(raw, kind)
    numbers = ~np.isnan(expected)
    assert numbers.sum() > 900
    assert np.array_equal(np.isnan(got), ~numbers)
    assert np.array_equal(got[numbers].view(np.uint32), expected[numbers].view(np.uint32))


@settings(deadline=None, max_examples=50)
@given(scale=st.floats(-30, 12), seed=st.integers(0, 2**32 - 1), name=st.sampled_from(["F32", "F16", "BF16", "Q8_0"]))
def test_what_is_written_is_near_what_was_given(scale, seed, name):
    kind = blocks.NAMED[name]
    numbers = (np.random.default_rng(seed).standard_normal((4, 64)) * 2.0**scale).astype(np.float32)
    back = blocks.decode(blocks.encode(numbers, kind), kind).reshape(4, 64)
    most = np.abs(numbers.reshape(4, 2, 32)).max(axis=-1, keepdims=True).repeat(32, axis=-1).reshape(4, 64)
    allowed = {
        "F32": 0 * most,
        "F16": np.maximum(np.abs(numbers) * 2.0**-11, 2.0**-25),
        "BF16": np.abs(numbers) * 2.0**-8,
        "Q8_0": np.maximum(most * (1 / 254 + 2.0**-11), most / 254 + 127 * 2.0**-25) * (1 + 1e-5),
    }[name]
    assert (np.abs(back - numbers) <= allowed).all()


@settings(deadline=None, max_examples=30)
@given(scale=st.floats(-40, 12), seed=st.integers(0, 2**32 - 1))
def test_q8_0_and_bf16_are_written_as_gguf_writes_them(scale, seed):
    gguf = pytest.importorskip("gguf")
    numbers = (np.random.default_rng(seed).standard_normal((4, 64)) * 2.0**scale).astype(np.float32)
    numbers[0, :32] = 0
    for name in ("Q8_0", "BF16", "F16"):
        with np.errstate(all="ignore"):
            expected = gguf.quants.quantize(numbers, gguf.GGMLQuantizationType[name])
        assert np.array_equal(blocks.encode(numbers, blocks.NAMED[name]), expected.view(np.uint8).reshape(-1))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_what_a_type_cannot_hold_is_refused(bad, small, tmp_path):
    model = small("llama")
    with torch.no_grad():
        model.blocks[1].mlp.up.weight[3, 4] = bad
    for kind in ("float16", "q8_0"):
        with pytest.raises(ModelError, match=r"blk\.1\.ffn_up\.weight: wanted numbers of at most"):
            files.save(model, tmp_path / "x.gguf", kind, NO_VOCABULARY)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("preset", "overrides"), CASES)
def test_there_and_back(preset, overrides, small, ids, tmp_path):
    model = small(preset, **overrides)
    tokens = ids(2, 20)
    path = tmp_path / "x.gguf"
    for kind, bound in {"float32": 0, "float16": 2e-3, "bfloat16": 1e-2, "q8_0": 1e-2}.items():
        files.save(model, path, kind, NO_VOCABULARY)
        back = Transformer.load(path)
        assert back.config == model.config == read_config(path)
        for (name, ours), theirs in zip(model.named_parameters(), back.parameters(), strict=True):
            assert (ours - theirs).abs().max() <= bound * ours.abs().max(), name
        if kind == "float32":
            assert torch.equal(back(tokens), model(tokens))
    half = Transformer.load(path, dtype="bfloat16")
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(("preset", "overrides"), CASES)
def test_gguf_reads_what_we_write(preset, overrides, small, tmp_path):
    gguf = pytest.importorskip("gguf")
    model = small(preset, **overrides)
    path = tmp_path / "x.gguf"
    files.save(model, path, "q8_0", NO_VOCABULARY)
    file = gguf.GGUFReader(path)
    family = architecture(model.config)
    assert file.get_field("general.architecture").contents() == family
    assert file.get_field(f"{family}.block_count").contents() == 2
    named = {tensor.name: tensor for tensor in file.tensors if tensor.name != "rope_freqs.weight"}
    assert set(named) == set(layout.tensors(model.config))
    with np.errstate(all="ignore"):
        for name, tensor in named.items():
            theirs = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            assert np.array_equal(theirs.reshape(-1), GGUF(path).numbers(name).reshape(-1))


def transformers_with_ggufs_weights(path, family, depth, config):
    """transformers' model, its weights taken from the file by the gguf package alone: its decoders, its table of names,
    and for "llama" the inverse of the reordering in llama.cpp's converter."""
    transformers, gguf = pytest.importorskip("transformers"), pytest.importorskip("gguf")
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, family.upper()), depth)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            tensor = stored[names.get_name(name, try_suffixes=(".weight", ".bias"))]
            numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            if family == "llama" and ("q_proj" in name or "k_proj" in name):
                heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
                order = np.arange(len(numbers)).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)
                numbers = numbers[np.argsort(order)]
            if "c_attn.weight" in name or "c_proj.weight" in name or "c_fc.weight" in name:
                numbers = numbers.T  # GPT-2's Conv1D
            parameter.copy_(torch.from_numpy(numbers.copy()))
    return model


@pytest.mark.parametrize(("preset", "overrides"), [case for case in CASES if case[0] != "qwen3-moe"])
def test_transformers_computes_the_same_from_what_we_write(preset, overrides, small, ids, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = small(preset, **overrides)
    files.save(model, tmp_path / "x.gguf", "float32", NO_VOCABULARY)
    model.save(tmp_path / "ours")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "ours")
    other = transformers_with_ggufs_weights(tmp_path / "x.gguf", architecture(model.config), 2, config)
    with torch.no_grad():
        torch.testing.assert_close(other(ids(2, 20)).logits, model(ids(2, 20)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("theta", "head_dim", "low", "high", "old"),
    [(5e5, 128, 1.0, 4.0, 8192), (5e5, 64, 1.0, 4.0, 8192), (1e4, 64, 2.0, 8.0, 4096), (1e6, 128, 1.0, 6.0, 2048)],
)
def test_llama_3s_scaling_is_found_again(theta, head_dim, low, high, old):
    given = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": low, "high_freq_factor": high}
    given["original_max_position_embeddings"] = old
    shape = {"width": 2 * head_dim, "head_dim": head_dim, "rope_theta": theta}
    config = TransformerConfig.preset("llama", 50, 1, **shape, rope_scaling=given)
    divisors = rope.llama3_divisors(config)
    plain = TransformerConfig.preset("llama", 50, 1, **shape)
    expected = frequencies(plain, torch.float64) / frequencies(config, torch.float64)
    assert np.allclose(divisors, expected, rtol=1e-6)
    found = rope.read_scaling({}, divisors, theta, head_dim)
    again = rope.llama3_divisors(dataclasses.replace(config, rope_scaling=found))
    assert np.allclose(again, divisors, rtol=1e-6)
    if low == 1:
        assert found == config.rope_scaling
    with pytest.raises(ModelError, match="got another"):
        rope.read_scaling({}, divisors[::-1], theta, head_dim)


@pytest.mark.parametrize(("low", "high", "old"), [(3.0, 16.0, 64), (1.0, 4.0, 16)])
def test_a_llama_3_scaling_that_would_not_be_found_again_is_not_written(low, high, old, small, tmp_path):
    given = LLAMA3 | {"low_freq_factor": low, "high_freq_factor": high, "original_max_position_embeddings": old}
    with pytest.raises(ModelError, match="GGUF: wanted a Llama 3 scaling"):
        files.save(small("llama", rope_scaling=given), tmp_path / "x.gguf", "float32", NO_VOCABULARY)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("preset", "overrides", "words"),
    [
        ("qwen3", {"rope_scaling": LLAMA3, "head_dim": 32}, "qwen3 without Llama 3's RoPE scaling"),
        ("llama", {"attention_bias": "qkv", "rope_scaling": LLAMA3, "head_dim": 12}, "qwen2 without Llama 3's"),
        ("llama", {"attention_bias": "qkv", "head_dim": 16}, "qwen2's heads to fill the width, got 4 of 16"),
    ],
)
def test_what_llama_cpp_would_not_open_is_not_written(preset, overrides, words, small, tmp_path):
    with pytest.raises(ModelError, match=words):
        files.save(small(preset, **overrides), tmp_path / "x.gguf", "float32", NO_VOCABULARY)
    assert list(tmp_path.iterdir()) == []


def test_a_scaling_that_is_found_is_of_plain_numbers():
    given = LLAMA3 | {"low_freq_factor": 2.0, "high_freq_factor": 8.0, "original_max_position_embeddings": 4096}
    config = TransformerConfig.preset("llama", 50, 1, width=128, head_dim=64, rope_scaling=given)
    found = rope.read_scaling({}, rope.llama3_divisors(config), 1e4, 64)
    assert {type(value) for value in dataclasses.astuple(found)} == {float, int, str}


@pytest.mark.parametrize("heads", [1, 3, 8])
def test_the_order_of_a_heads_rows(heads):
    rows = np.arange(heads * 8 * 2).reshape(heads * 8, 2)
    assert np.array_equal(layout.to_halves(layout.to_neighbours(rows, heads), heads), rows)
    assert layout.to_neighbours(rows, heads)[:4, 0].tolist() == [0, 8, 2, 10]  # rows 0, 4, 1, 5


def test_smollm2_beside_transformers():
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gguf")
    if not SMOLLM2.exists():
        pytest.skip(f"needs {SMOLLM2.name}: python packages/tinylm-tokenizer/benchmarks/fetch_data.py smollm2")
    model = Transformer.load(SMOLLM2).eval()
    assert model.config.parameter_count() == 134_515_008
    # "A language model assigns a probability to every sequence of words. The capital of France is"
    tokens = torch.tensor(
        [[49, 1789, 1743, 36810, 253, 8746, 288, 897, 5972, 282, 1924, 30, 378, 3575, 282, 4649, 314]]
    )
    with torch.no_grad():
        ours = model(tokens)
    config = transformers.LlamaConfig(
        vocab_size=49152,
        max_position_embeddings=8192,
        num_hidden_layers=30,
        hidden_size=576,
        intermediate_size=1536,
        num_attention_heads=9,
        num_key_value_heads=3,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
    )
    other = transformers_with_ggufs_weights(SMOLLM2, "llama", 30, config)
    with torch.no_grad():
        theirs = other(tokens).logits
    assert torch.equal(model.blocks[7].attention.k.weight, other.model.layers[7].self_attn.k_proj.weight)
    assert (ours - theirs).abs().max() < 1e-4
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))
