"""Checkpoints whose config, tensors or index is damaged are named or read, never half of them. Whole ones:
test_model_checkpoint.py; GGUF files: test_model_gguf_damage.py."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tinylm.model import ModelError, Transformer
from tinylm.model._contents import read_contents
from tinylm.model.arrays.checkpoint import read_checkpoint as read_arrays


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def nan(tensors):
    tensors["model.norm.weight"][3] = float("nan")


BROKEN = {
    "no config": (lambda d: (d / "config.json").unlink(), "no config.json"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "got neither"),
    "empty config": (lambda d: (d / "config.json").write_text(""), "does not parse"),
    "binary config": (lambda d: (d / "config.json").write_bytes(b"\xff\xfe\x00"), "does not parse"),
    "a number of 5,000 digits": (
        lambda d: (d / "config.json").write_text('{"hidden_size": ' + "9" * 5000 + "}"),
        "does not parse",
    ),
    "nested too deep": (lambda d: (d / "config.json").write_text("[" * 100_000), "does not parse"),
    "a list": (lambda d: (d / "config.json").write_text("[]"), "JSON object"),
    "another family": (lambda d: edit_config(d, model_type="mamba"), "model_type"),
    "higher format": (lambda d: edit_config(d, tinylm={"format": 2}), "newer tinylm-model"),
    "format of a wrong type": (lambda d: edit_config(d, tinylm={"format": "x"}), "format"),
    "a block that is none": (lambda d: edit_config(d, tinylm=3), "tinylm"),
    "missing field": (lambda d: edit_config(d, hidden_size=None), "hidden_size"),
    "a bool for a number": (lambda d: edit_config(d, hidden_size=True), "whole number"),
    "a string for a number": (lambda d: edit_config(d, num_attention_heads="4"), "whole number"),
    "a number for a bool": (lambda d: edit_config(d, tie_word_embeddings=1), "true or false"),
    "another activation": (lambda d: edit_config(d, hidden_act="relu"), "hidden_act"),
    "an unknown field": (lambda d: edit_config(d, logit_scale=2.0), "got logit_scale: not supported"),
    "packed weights": (lambda d: edit_config(d, quantization_config={"bits": 4}), "got quantization_config"),
    "a window of 0": (
        lambda d: edit_config(d, use_sliding_window=True, sliding_window=0, max_window_layers=0, layer_types=None),
        "window",
    ),
    "a window by text": (lambda d: edit_config(d, use_sliding_window="yes"), "use_sliding_window"),
    "unknown RoPE": (lambda d: edit_config(d, rope_parameters={"rope_type": "spiral"}), "got 'spiral'"),
    "dynamic RoPE": (lambda d: edit_config(d, rope_scaling={"type": "dynamic", "factor": 2}), "got 'dynamic'"),
    "RoPE of a list": (lambda d: edit_config(d, rope_scaling=[1]), "rope_scaling to be an object"),
    "RoPE without its factor": (lambda d: edit_config(d, rope_parameters={"rope_type": "yarn"}), "wanted factor"),
    "RoPE's unknown field": (
        lambda d: edit_config(d, rope_parameters={"rope_type": "linear", "factor": 2.0, "alpha": 1}),
        "got alpha",
    ),
    "a factor below 1": (lambda d: edit_config(d, rope_parameters={"rope_type": "linear", "factor": 0.5}), "0.5"),
    "two RoPEs": (lambda d: edit_config(d, rope_scaling={"type": "linear", "factor": 2}), "two that differ"),
    "partial RoPE": (lambda d: edit_config(d, partial_rotary_factor=0.5), "partial_rotary_factor"),
    "partial RoPE within": (
        lambda d: edit_config(d, rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5}),
        "partial_rotary_factor",
    ),
    "mixed layers": (lambda d: edit_config(d, layer_types=["sliding_attention"] * 2), "layer_types"),
    "heads that do not divide": (lambda d: edit_config(d, num_key_value_heads=3), "multiple of kv_heads"),
    "an endless model": (lambda d: edit_config(d, num_hidden_layers=10**9, layer_types=None), "tensors of 1000000000"),
    "a huge number": (lambda d: edit_config(d, hidden_size=10**30), "at most"),
    "deeper": (lambda d: edit_config(d, num_hidden_layers=3, layer_types=None), r"11 missing \(model.layers.2"),
    "shallower": (lambda d: edit_config(d, num_hidden_layers=1, layer_types=None), "11 unknown"),
    "wider": (lambda d: edit_config(d, intermediate_size=96), r"\(96, 48\), got \(80, 48\)"),
    "NaN": (lambda d: edit_tensors(d, nan), "got 1 that are NaN"),
    "missing tensor": (lambda d: edit_tensors(d, lambda t: t.pop("model.norm.weight")), "1 missing .model.norm.weight"),
    "extra tensor": (lambda d: edit_tensors(d, lambda t: t.update(x=torch.ones(1))), r"1 unknown \(x\)"),
    "integers": (lambda d: edit_tensors(d, lambda t: t.update({"model.norm.weight": torch.ones(48).int()})), "got I32"),
    "empty weights": (lambda d: (d / "model.safetensors").write_bytes(b""), "whole safetensors"),
    "text for weights": (lambda d: (d / "model.safetensors").write_text("hello" * 9), "whole safetensors"),
    "a folder": (
        lambda d: ((d / "model.safetensors").unlink(), (d / "model.safetensors").mkdir()),
        "wanted a safetensors file, got a directory",
    ),
    "a folder for config.json": (
        lambda d: ((d / "config.json").unlink(), (d / "config.json").mkdir()),
        "no config.json but a directory of that name",
    ),
    "a pickle": (
        lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"),
        "got neither, but pytorch_model.bin: a pickle",
    ),
    "two thetas": (lambda d: edit_config(d, rope_theta=5.0), "rope_theta and the one within rope_parameters"),
    "no depth": (lambda d: edit_config(d, num_hidden_layers=None), r"field\(s\) num_hidden_layers"),
    "an epsilon that float32 has not": (lambda d: edit_config(d, rms_norm_eps=1e-320), "norm_eps"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_checkpoints_are_named(case, small, tmp_path):
    small("qwen3").save(tmp_path)
    damage, words = BROKEN[case]
    damage(tmp_path)
    with pytest.raises(ModelError, match=words):
        Transformer.load(tmp_path)


BROKEN_EXPERTS = {
    "more than there are": ({"num_experts_per_tok": 9}, "experts_per_token from 1 to experts"),
    "none at all": ({"num_experts": 0}, "experts_per_token from 1"),
    "a plain layer between": ({"decoder_sparse_step": 2}, "decoder_sparse_step"),
    "plain layers by number": ({"mlp_only_layers": [1]}, "mlp_only_layers"),
    "too few in the file": ({"num_experts": 9}, "20 missing|experts"),
    "a billion": ({"num_experts": 10**9}, "1000000000 experts"),
    "a negative loss": ({"router_aux_loss_coef": -1}, "balance_weight"),
    "text for a bool": ({"norm_topk_prob": "yes"}, "normalize_experts"),
    "one of another width": ({"moe_intermediate_size": 81}, r"\(48, 81\)|\(81, 48\)"),
}


@pytest.mark.parametrize("case", BROKEN_EXPERTS)
def test_broken_experts_are_named(case, small, tmp_path):
    small("qwen3-moe").save(tmp_path)
    changes, words = BROKEN_EXPERTS[case]
    edit_config(tmp_path, **changes)
    with pytest.raises(ModelError, match=words):
        Transformer.load(tmp_path)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_numbers_of_a_type_that_is_not_read_are_named(dtype, small, tmp_path):
    small("qwen3").save(tmp_path)
    edit_tensors(tmp_path, lambda tensors: tensors.update({name: t.to(dtype) for name, t in tensors.items()}))
    for read in (read_contents, Transformer.load):
        with pytest.raises(ModelError, match=r"wanted \S+ in one of .*bfloat16.*, got "):
            read(tmp_path)


def test_a_tensor_in_two_shards_is_named(small, tmp_path):
    small("qwen3").save(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "a.safetensors")
    save_file({"model.norm.weight": torch.ones(48)}, tmp_path / "b.safetensors")
    index = {"weight_map": {"x": "a.safetensors", "model.norm.weight": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for load in (Transformer.load, read_arrays):
        with pytest.raises(ModelError, match=r"got model.norm.weight again"):
            load(tmp_path)


FIELDS = ["hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size", "n_inner"]
FIELDS += ["vocab_size", "max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_parameters", "rope_scaling"]
FIELDS += ["tie_word_embeddings", "attention_bias", "hidden_act", "model_type", "sliding_window", "use_sliding_window"]
FIELDS += ["max_window_layers", "layer_types", "num_experts", "num_local_experts", "num_experts_per_tok", "mlp_bias"]
FIELDS += ["moe_intermediate_size", "router_aux_loss_coef", "decoder_sparse_step", "mlp_only_layers", "norm_topk_prob"]
FIELDS += [
    "partial_rotary_factor",
    "architectures",
    "dtype",
    "n_head",
    "n_positions",
    "num_hidden_layers",
    "tinylm",
    "x",
]
ROPE = ["rope_type", "type", "factor", "rope_theta", "attention_factor", "beta_fast", "beta_slow", "mscale", "truncate"]
ROPE += ["mscale_all_dim", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]
WORDS = ["default", "linear", "llama3", "yarn", "silu", "gpt2", "qwen3_moe", "mistral", "full_attention"]
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 70),
    st.sampled_from([10**9, -(10**30), 10**400]),
    st.floats(),
    st.sampled_from(WORDS),
    st.text(max_size=3),
)
VALUES = st.one_of(
    PLAIN,
    st.lists(st.one_of(PLAIN, st.lists(PLAIN, max_size=1)), max_size=3),
    st.dictionaries(st.sampled_from([*ROPE, "format", "x"]), st.one_of(PLAIN, st.lists(PLAIN, max_size=2)), max_size=5),
)


@pytest.mark.parametrize("name", ["tie_word_embeddings", "attention_bias", "mlp_bias", "rope_scaling", "head_dim"])
def test_what_was_got_is_cut_short(name, small, tmp_path):
    small("llama").save(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: [10**400] * 3}))
    with pytest.raises(ModelError) as refused:
        Transformer.load(tmp_path)
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize("preset", ["gpt2", "llama", "mistral", "qwen3", "qwen3-moe"])
def test_a_changed_config_is_read_or_refused_in_words(preset, small, ids, tmp_path):
    model = small(preset)
    model.save(tmp_path)
    path = tmp_path / "config.json"
    fields, refusals = json.loads(path.read_text()), []
    names = st.sampled_from(FIELDS)

    @settings(max_examples=60, deadline=None)
    @given(changes=st.dictionaries(names, VALUES, min_size=1, max_size=3), gone=st.sets(names, max_size=2))
    def check(changes, gone):
        path.write_text(json.dumps({name: value for name, value in (fields | changes).items() if name not in gone}))
        try:
            read = Transformer.load(tmp_path)
        except ModelError as error:
            refusals.append(str(error))
        else:
            assert read(ids(1, 5)[:, : read.config.context]).shape[-1] == read.config.vocab_size

    check()
    assert refusals
    assert all("\n" not in words and len(words) < 1000 for words in refusals)


@pytest.mark.parametrize("part", [0.001, 0.5, 0.999])
def test_truncated_weights_are_named(part, small, tmp_path):
    small("qwen3").save(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(ModelError, match="whole safetensors"):
        Transformer.load(tmp_path)


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        (None, "weight_map of file names, got None"),
        ({}, "weight_map of file names, got {}"),
        *(
            ({"a": name}, f"all beside it, got {name!r}")
            for name in ("../x.safetensors", "/x", "..", ".", "", "b/x", 3)
        ),
        ({"a": "x", "b": "absent", "c": "gone"}, "wanted the 3 files .* got 2 missing .*absent, gone"),
        ({"a": "x", "b": "folder"}, "folder: wanted a safetensors file, got a directory"),
    ],
)
def test_a_broken_index_is_named(weight_map, words, small, tmp_path):
    small("qwen3").save(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for load in (Transformer.load, read_contents, read_arrays):
        with pytest.raises(ModelError, match=words):
            load(tmp_path)


@pytest.mark.parametrize("wide", ["norm", "embed", "mlp", "lm_head"])
@pytest.mark.parametrize("preset", ["gpt2", "qwen3", "qwen3-moe"])
def test_a_file_of_several_types_becomes_one_of_most_numbers(wide, preset, small, ids, tmp_path):
    model = small(preset, tie_embeddings=False)
    model.save(tmp_path)

    def narrow(tensors):
        tensors.update({name: t if wide in name else t.bfloat16() for name, t in tensors.items()})

    edit_tensors(tmp_path, narrow)
    read, tokens = Transformer.load(tmp_path), ids(1, 9)
    kept = sum(t.numel() for name, t in load_file(tmp_path / "model.safetensors").items() if t.dtype == torch.float32)
    wanted = torch.float32 if 2 * kept > model.config.parameter_count() else torch.bfloat16
    assert {parameter.dtype for parameter in read.parameters()} == {wanted}
    with torch.no_grad():
        assert (read(tokens) - model(tokens)).norm() < 0.03 * model(tokens).norm()
    read.loss(tokens, tokens).backward()
