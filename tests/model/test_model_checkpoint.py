"""Checkpoints: what is saved is loaded. Broken files: test_model_checkpoint_damage.py; beside transformers:
test_model_families.py."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tinylm.model import ModelError, Transformer, TransformerConfig, read_config, read_provenance

SHAPES = {
    "gpt2": [{}, {"tie_embeddings": False}, {"mlp_width": 37}],
    "llama": [{}, {"kv_heads": 1}, {"tie_embeddings": True, "attention_bias": True, "bias": True}],
    "qwen3": [{}, {"kv_heads": 2, "head_dim": 32}, {"tie_embeddings": False, "rope_theta": 1e6}],
    "mistral": [{"rope_scaling": {"rope_type": "yarn", "factor": 2, "original_max_position_embeddings": 32}}],
    "qwen3-moe": [{}, {"normalize_experts": False, "balance_weight": 0.0, "window": 9}],
    "smollm2": [{"attention_bias": "qkv", "window": 9, "window_from": 1}],
}
CASES = [(preset, overrides) for preset, several in SHAPES.items() for overrides in several]


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


def test_a_file_in_place_of_a_directory_is_named(small, tmp_path):
    small("qwen3").save(tmp_path)
    for name in ("config.json", "model.safetensors"):
        with pytest.raises(ModelError, match="got a file; give the directory"):
            Transformer.load(tmp_path / name)


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


def test_a_type_or_device_that_is_not_there_is_refused(small, tmp_path):
    small("qwen3").save(tmp_path / "model")
    with pytest.raises(ModelError, match="dtype"):
        Transformer.load(tmp_path / "model", dtype=torch.int8)
    for device in ("nope", "cuda:99", torch.device("cuda:99")):
        with pytest.raises(ModelError, match="device"):
            Transformer.load(tmp_path / "model", device=device)
    assert Transformer.load(tmp_path / "model", device="cpu").embed.weight.device.type == "cpu"
