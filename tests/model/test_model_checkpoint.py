"""Checkpoints: transformers opens ours and we open theirs with the same logits; broken files are named."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tinylm.model import ModelError, Transformer, TransformerConfig, read_config, read_provenance

PRESETS = ("gpt2", "llama", "qwen3")
SHAPES = {
    "gpt2": [{}, {"tie_embeddings": False}, {"mlp_width": 37}],
    "llama": [{}, {"kv_heads": 1}, {"tie_embeddings": True, "attention_bias": True, "bias": True}],
    "qwen3": [{}, {"kv_heads": 2, "head_dim": 32}, {"tie_embeddings": False, "rope_theta": 1e6}],
}
CASES = [(preset, overrides) for preset in PRESETS for overrides in SHAPES[preset]]


def theirs(directory):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()


@pytest.mark.parametrize(("preset", "overrides"), CASES)
def test_transformers_opens_ours_with_the_same_logits(preset, overrides, small, ids, tmp_path):
    model, tokens = small(preset, **overrides), ids(2, 30)
    model.save(tmp_path, {"tokenizer_sha256": "abc"})
    other = theirs(tmp_path)
    assert type(other).__name__ == {"gpt2": "GPT2", "llama": "Llama", "qwen3": "Qwen3"}[preset] + (
        "LMHeadModel" if preset == "gpt2" else "ForCausalLM"
    )
    with torch.no_grad():
        torch.testing.assert_close(other(tokens).logits, model(tokens), atol=1e-5, rtol=0)
        mask = torch.ones_like(tokens, dtype=torch.bool)
        mask[0, :7] = False
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        padded = other(tokens, attention_mask=mask.long(), position_ids=positions).logits
        torch.testing.assert_close(padded[mask], model(tokens, mask=mask)[mask], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("preset", "overrides"), CASES)
def test_we_open_theirs_with_the_same_logits(preset, overrides, small, ids, tmp_path):
    small(preset, **overrides).save(tmp_path / "ours")
    other = theirs(tmp_path / "ours")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    other.save_pretrained(tmp_path / "whole")
    other.save_pretrained(tmp_path / "shards", max_shard_size="30KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    tokens = ids(2, 30)
    for folder in ("whole", "shards"):
        model = Transformer.load(tmp_path / folder)
        with torch.no_grad():
            torch.testing.assert_close(model(tokens), other(tokens).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_same_greedy_tokens_as_transformers(preset, small, ids, tmp_path):
    from tinylm.model import generate

    model, prompt = small(preset), ids(1, 5)
    model.save(tmp_path)
    wanted = theirs(tmp_path).generate(prompt, max_new_tokens=40, do_sample=False, pad_token_id=0)
    assert torch.equal(generate(model, prompt, 40), wanted[:, 5:])


@pytest.mark.parametrize(("preset", "overrides"), CASES)
def test_what_is_saved_is_loaded(preset, overrides, small, tmp_path):
    model = small(preset, **overrides)
    model.save(tmp_path, {"tokenizer_sha256": "abc", "step": "5"})
    again = Transformer.load(tmp_path)
    assert again.config == model.config == read_config(tmp_path)
    assert read_provenance(tmp_path) == {"tokenizer_sha256": "abc", "step": "5"}
    for name, parameter in model.named_parameters():
        loaded = again.get_parameter(name)
        assert loaded.requires_grad
        assert torch.equal(loaded, parameter)
    stored = load_file(tmp_path / "model.safetensors")
    assert sum(tensor.numel() for tensor in stored.values()) == model.config.parameter_count()  # tied: stored once
    before = (tmp_path / "model.safetensors").read_bytes(), (tmp_path / "config.json").read_bytes()
    again.save(tmp_path, read_provenance(tmp_path))
    assert before == ((tmp_path / "model.safetensors").read_bytes(), (tmp_path / "config.json").read_bytes())
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


def test_dtype(small, tmp_path):
    model = small("qwen3")
    model.save(tmp_path)
    assert Transformer.load(tmp_path, dtype="bfloat16").embed.weight.dtype == torch.bfloat16
    assert Transformer.load(tmp_path, dtype=torch.float64).embed.weight.dtype == torch.float64
    Transformer.load(tmp_path, dtype="float16").save(tmp_path / "half")
    assert Transformer.load(tmp_path / "half").embed.weight.dtype == torch.float16
    assert json.loads((tmp_path / "half/config.json").read_text())["dtype"] == "float16"
    with pytest.raises(ModelError, match="dtype"):
        Transformer.load(tmp_path, dtype="int4")


def test_configs_of_transformers_4_are_read(small, tmp_path):
    model = small("llama", rope_theta=5e5)
    model.save(tmp_path)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    for name in ("rope_parameters", "dtype", "tinylm"):
        fields.pop(name)
    path.write_text(json.dumps(fields | {"rope_scaling": None}))
    assert read_config(tmp_path) == model.config
    assert read_provenance(tmp_path) == {}


def test_gpt2_as_openai_published_it(small, ids, tmp_path):
    model = small("gpt2")
    model.save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    bare["h.0.attn.bias"] = torch.ones(1, 1, 64, 64)
    save_file(bare, tmp_path / "model.safetensors")
    assert torch.equal(Transformer.load(tmp_path)(ids(1, 9)), model(ids(1, 9)))


def test_a_shape_that_hugging_face_lacks_is_not_saved(tmp_path):
    model = Transformer(TransformerConfig.preset("gpt2", 10, 1, qk_norm=True))
    with pytest.raises(ModelError, match="qk_norm=True"):
        model.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


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
    "a sliding window": (lambda d: edit_config(d, use_sliding_window=True), "use_sliding_window"),
    "scaled RoPE": (lambda d: edit_config(d, rope_parameters={"rope_type": "yarn"}), "yarn"),
    "partial RoPE": (lambda d: edit_config(d, partial_rotary_factor=0.5), "partial_rotary_factor"),
    "mixed layers": (lambda d: edit_config(d, layer_types=["sliding_attention"] * 2), "layer_types"),
    "deeper": (lambda d: edit_config(d, num_hidden_layers=3), r"11 missing \(model.layers.2"),
    "shallower": (lambda d: edit_config(d, num_hidden_layers=1), "11 unknown"),
    "wider": (lambda d: edit_config(d, intermediate_size=96), r"\(96, 48\), got \(80, 48\)"),
    "NaN": (lambda d: edit_tensors(d, nan), "got 1 that are NaN"),
    "missing tensor": (lambda d: edit_tensors(d, lambda t: t.pop("model.norm.weight")), "1 missing .model.norm.weight"),
    "extra tensor": (lambda d: edit_tensors(d, lambda t: t.update(x=torch.ones(1))), r"1 unknown \(x\)"),
    "integers": (lambda d: edit_tensors(d, lambda t: t.update({"model.norm.weight": torch.ones(48).int()})), "int32"),
    "empty weights": (lambda d: (d / "model.safetensors").write_bytes(b""), "whole safetensors"),
    "text for weights": (lambda d: (d / "model.safetensors").write_text("hello" * 9), "whole safetensors"),
    "a folder": (
        lambda d: ((d / "model.safetensors").unlink(), (d / "model.safetensors").mkdir()),
        "whole safetensors",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_checkpoints_are_named(case, small, tmp_path):
    small("qwen3").save(tmp_path)
    damage, words = BROKEN[case]
    damage(tmp_path)
    with pytest.raises(ModelError, match=words):
        Transformer.load(tmp_path)


@pytest.mark.parametrize("part", [0.001, 0.5, 0.999])
def test_truncated_weights_are_named(part, small, tmp_path):
    small("qwen3").save(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(ModelError, match="whole safetensors"):
        Transformer.load(tmp_path)


@pytest.mark.parametrize("weight_map", [None, {"a": "../x.safetensors"}, {"a": 3}, {"a": "absent.safetensors"}])
def test_a_broken_index_is_named(weight_map, small, tmp_path):
    small("qwen3").save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelError, match="wanted"):
        Transformer.load(tmp_path)


def test_a_checkpoint_that_is_not_there(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        Transformer.load(tmp_path / "absent")


def test_a_failed_save_leaves_the_old_file(small, tmp_path, monkeypatch):
    import tinylm.model.checkpoint as module

    model = small("qwen3")
    model.save(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()

    def no_space(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", no_space)
    with pytest.raises(OSError, match="No space"):
        model.save(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


def test_a_full_disk_leaves_no_new_folder(small, tmp_path, monkeypatch):
    def full(tensors, path, metadata):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tinylm.model.checkpoint.save_file", full)
    (tmp_path / "old").mkdir()
    for name in ("new", "old"):
        with pytest.raises(OSError, match="No space left"):
            small("gpt2").save(tmp_path / name)
    assert [path.name for path in tmp_path.rglob("*")] == ["old"]
