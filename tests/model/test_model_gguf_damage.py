"""GGUF files that are damaged or hostile: each is one ModelError that says what was wanted and what was got."""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylm.model import ModelError, Transformer, TransformerConfig, read_config
from tinylm.model._contents import read_contents
from tinylm.model._convert import convert
from tinylm.model.gguf import files
from tinylm.model.gguf.blocks import NAMED
from tinylm.model.gguf.reader import ARRAY, BOOL, FLOAT32, GGUF, INT32, STRING, UINT32, Pair
from tinylm.model.gguf.tokenizer import NO_VOCABULARY
from tinylm.model.gguf.writer import Source, write
from tinylm.model.rope_scaling import LinearScaling


def config(**changes):
    fields = {"width": 32, "heads": 2, "head_dim": 16, "mlp_width": 64, "context": 16} | changes
    return TransformerConfig.preset("llama", 40, 1, **fields)


@pytest.fixture
def good(tmp_path):
    """A small file that loads."""
    path = tmp_path / "good.gguf"
    torch.manual_seed(0)
    extra = {
        "a.list": Pair(ARRAY, ["x", "yy"], STRING),
        "a.numbers": Pair(ARRAY, [1, 2], INT32),
        "a.b": Pair(BOOL, True),
    }
    files.save(Transformer(config()), path, "q8_0", NO_VOCABULARY | extra)
    return path


def refused(path, words):
    with pytest.raises(ModelError, match=words) as caught:
        Transformer.load(path)
    message = str(caught.value)
    assert str(path) in message
    assert "wanted" in message
    assert "got" in message
    assert "\n" not in message


def test_every_cut_is_refused(good, tmp_path):
    data = good.read_bytes()
    end = max(tensor.offset + tensor.size for tensor in GGUF(good).tensors.values())
    path = tmp_path / "cut.gguf"
    for length in [*range(0, 1200, 7), *range(1200, end, 997), end - 1]:
        path.write_bytes(data[:length])
        refused(path, "wanted")


def test_the_header(good, tmp_path):
    data, path = good.read_bytes(), tmp_path / "bad.gguf"
    for at, new, words in [
        (0, b"GGML", "no GGUF file"),
        (4, struct.pack("<I", 1), "version 1"),
        (4, struct.pack("<I", 4), "version 4"),
        (4, struct.pack(">I", 3), "big-endian"),
        (8, struct.pack("<Q", 2**60), "tensors"),
        (16, struct.pack("<Q", 2**60), "pairs"),
        (24, struct.pack("<Q", 2**62), "bytes of a key"),
    ]:
        path.write_bytes(data[:at] + new + data[at + len(new) :])
        refused(path, words)


def test_huge_counts_cost_no_memory(tmp_path):
    path = tmp_path / "huge.gguf"
    start = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k"
    tracemalloc.start()
    for kind in (STRING, UINT32, FLOAT32):
        path.write_bytes(start + struct.pack("<IIQ", ARRAY, kind, 2**40) + b"\0" * 100)
        refused(path, "1,099,511,627,776")
    path.write_bytes(start + struct.pack("<IIQ", ARRAY, ARRAY, 3) + b"\0" * 100)
    refused(path, "array of numbers or strings")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def rewritten(path, tmp_path, pairs=None, drop=(), tensors=None):
    """The file with some pairs and tensors changed."""
    file = GGUF(path)
    sources = {name: Source(t.shape, NAMED["F32"], lambda n=name: file.numbers(n)) for name, t in file.tensors.items()}
    kept = {name: source for name, source in (sources | (tensors or {})).items() if name not in drop}
    out = tmp_path / "changed.gguf"
    write(out, {key: pair for key, pair in (file.pairs | (pairs or {})).items() if key not in drop}, kept)
    return out


def ones(*shape):
    return Source(shape, NAMED["F32"], lambda: np.ones(shape, np.float32))


def zeros(*shape):
    return Source(shape, NAMED["F32"], lambda: np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"drop": ["blk.0.attn_q.weight"]}, "1 missing"),
        ({"tensors": {"blk.0.surplus.weight": zeros(4)}}, "1 unknown"),
        ({"tensors": {"blk.0.attn_q.weight": zeros(32, 16)}}, r"shape \(32, 32\), got \(32, 16\)"),
        ({"tensors": {"rope_freqs.weight": zeros(8)}}, "numbers of at least 1"),
        ({"pairs": {"llama.rope.scaling.type": Pair(STRING, "linear")}}, "factor"),
        (
            {
                "pairs": {
                    "llama.rope.scaling.type": Pair(STRING, "yarn"),
                    "llama.rope.scaling.factor": Pair(FLOAT32, 4.0),
                }
            },
            "original",
        ),
        ({"drop": ["token_embd.weight"]}, "token_embd"),
        ({"drop": ["llama.block_count"]}, "block_count"),
        ({"pairs": {"llama.block_count": Pair(UINT32, 2**31)}}, "2,147,483,648 layers"),
        ({"pairs": {"llama.block_count": Pair(STRING, "1")}}, "block_count"),
        ({"pairs": {"llama.attention.head_count": Pair(UINT32, 3)}}, "wanted"),
        ({"pairs": {"llama.attention.head_count_kv": Pair(ARRAY, [1, 2], INT32)}}, "head_count_kv"),
        ({"pairs": {"llama.vocab_size": Pair(UINT32, 41)}}, "41 rows"),
        ({"pairs": {"llama.embedding_length": Pair(UINT32, 2**31)}}, "shape"),
        ({"pairs": {"llama.rope.dimension_count": Pair(UINT32, 8)}}, "whole head"),
        ({"pairs": {"llama.rope.scaling.type": Pair(STRING, "longrope")}}, "longrope"),
        ({"pairs": {"llama.rope.freq_base": Pair(FLOAT32, float("nan"))}}, "rope_theta"),
        ({"pairs": {"llama.attention.value_length": Pair(UINT32, 8)}}, "of one length"),
        ({"pairs": {"llama.attn_logit_softcapping": Pair(FLOAT32, 30.0)}}, "known here"),
        ({"pairs": {"llama.use_parallel_residual": Pair(BOOL, True)}}, "use_parallel_residual"),
        ({"pairs": {"general.architecture": Pair(STRING, "mamba")}}, "mamba"),
        ({"pairs": {"general.architecture": Pair(ARRAY, [1, 2], INT32)}}, "general.architecture"),
        ({"pairs": {"llama.use_parallel_residual": Pair(ARRAY, [1, 2], INT32)}}, "use_parallel_residual"),
        ({"pairs": {"llama.rope.scaling.type": Pair(ARRAY, ["linear"], STRING)}}, "scaling.type, a text"),
        ({"pairs": {"llama.rope.scaling.type": Pair(UINT32, 1)}}, "scaling.type, a text"),
        ({"pairs": {"llama.rope.scaling.factor": Pair(ARRAY, [1, 2], INT32)}}, "scaling.factor, a number"),
        ({"pairs": {"llama.rope.scaling.factor": Pair(STRING, "8")}}, "scaling.factor, a number"),
        ({"pairs": {"llama.rope.scaling.factor": Pair(FLOAT32, float("nan"))}}, "factor"),
        ({"pairs": {"llama.rope.scaling.original_context_length": Pair(ARRAY, [1, 2], INT32)}}, "original_context"),
        (
            {"tensors": {"rope_freqs.weight": ones(8)}, "pairs": {"llama.rope.scaling.factor": Pair(FLOAT32, 8.0)}},
            "one kind of RoPE scaling",
        ),
        ({"pairs": {"general.architecture": Pair(STRING, "qwen3")}}, "qwen3.context_length"),
        ({"pairs": {"general.alignment": Pair(UINT32, 24)}}, "power of two"),
        ({"pairs": {"general.alignment": Pair(UINT32, 0)}}, "power of two"),
    ],
)
def test_what_the_file_says_is_checked(changes, words, good, tmp_path):
    refused(rewritten(good, tmp_path, **changes), words)


def test_pairs_that_say_nothing_new_are_accepted(good, tmp_path):
    same = {"llama.attention.head_count_kv": Pair(ARRAY, [2], INT32), "llama.use_parallel_residual": Pair(BOOL, False)}
    path = rewritten(good, tmp_path, same, drop=["llama.vocab_size", "llama.attention.key_length"])
    assert read_config(path) == config()


@pytest.mark.parametrize(("factor", "found"), [(0.0, None), (1.0, None), (8.0, LinearScaling(factor=8.0))])
def test_a_factor_without_a_type_is_linear(factor, found, good, tmp_path):
    path = rewritten(good, tmp_path, {"llama.rope.scaling.factor": Pair(FLOAT32, factor)})
    assert read_config(path).rope_scaling == found


def test_a_tokenizers_pairs_of_other_types(good, tmp_path):
    numbers = {"tokenizer.ggml.tokens": Pair(UINT32, 5), "tokenizer.ggml.eos_token_id": Pair(ARRAY, [1, 2], INT32)}
    path = rewritten(good, tmp_path, numbers)
    with pytest.raises(ModelError, match=r"changed\.gguf: wanted tokenizer\.ggml\.tokens to be a list"):
        read_contents(path)
    convert(path, tmp_path / "out", "huggingface", None)
    assert not (tmp_path / "out/generation_config.json").exists()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_no_numbers(bad, good, tmp_path):
    path = rewritten(good, tmp_path)
    tensor = GGUF(path).tensors["blk.0.ffn_up.weight"]
    data = bytearray(path.read_bytes())
    struct.pack_into("<f", data, tensor.offset + 8, bad)
    path.write_bytes(data)
    refused(path, r"blk\.0\.ffn_up\.weight.*NaN or infinite")


def entry(data, name, shape):
    """Where a tensor's entry has its type; the offset stands four bytes later."""
    raw = name.encode()
    start = data.index(struct.pack("<Q", len(raw)) + raw)
    return start + 8 + len(raw) + 4 + 8 * shape


def test_the_tensors_places(good, tmp_path):
    data, path = good.read_bytes(), tmp_path / "bad.gguf"
    at = entry(data, "blk.0.attn_q.weight", 2)
    for where, new, words in [
        (at, struct.pack("<I", 13), "Q5_K"),
        (at, struct.pack("<I", 99), "unknown"),
        (at, struct.pack("<I", 12), "multiple of 256"),
        (at + 4, struct.pack("<Q", 7), "multiple of 32"),
        (at + 4, struct.pack("<Q", 0), "overlapping"),
        (at + 4, struct.pack("<Q", 2**63), "inside the file"),
        (at - 20, struct.pack("<I", 0), "1 to 4 dimensions"),
        (at - 20, struct.pack("<I", 2**31), "1 to 4 dimensions"),
        (at - 16, struct.pack("<Q", 0), "shape"),
        (at - 8, struct.pack("<Q", 2**62), "inside the file"),
    ]:
        path.write_bytes(data[:where] + new + data[where + len(new) :])
        refused(path, words)
    path.write_bytes(data.replace(b"blk.0.attn_k.weight", b"blk.0.attn_q.weight"))
    refused(path, "twice")
    path.write_bytes(data.replace(b"a.list", b"a.\xffist"))
    refused(path, "UTF-8")
    path.write_bytes(data.replace(b"llama.vocab_size", b"llama.block_count"[:16]))
    refused(path, "known here")


@settings(deadline=None, max_examples=150, database=None)
@given(changes=st.lists(st.tuples(st.integers(0, 2600), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4))
def test_a_changed_file_loads_or_is_refused_in_words(changes, tmp_path_factory):
    data = bytearray(fuzzed(tmp_path_factory))
    for at, new in changes:
        data[at : at + len(new)] = new
    path = tmp_path_factory.getbasetemp() / "fuzz.gguf"
    path.write_bytes(data)
    try:
        model, said = Transformer.load(path), f"{path}: wanted nothing more"
    except ModelError as error:
        model, said = None, str(error)
    assert str(path) in said
    assert "wanted" in said
    assert model is None or all(torch.isfinite(parameter).all() for parameter in model.parameters())


def fuzzed(factory, kept={}):  # noqa: B006  # made once
    if not kept:
        path = factory.mktemp("fuzz") / "good.gguf"
        files.save(Transformer(config()), path, "q8_0", NO_VOCABULARY)
        kept["data"] = path.read_bytes()
    return kept["data"]


def test_a_missing_file_and_a_directory(tmp_path):
    refused(tmp_path / "absent.gguf", "check the path")
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(ModelError, match=r"no config\.json"):
        Transformer.load(tmp_path / "folder.gguf")
