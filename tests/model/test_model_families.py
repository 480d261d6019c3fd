"""The families of models beside transformers' own implementation: FAMILIES × (save, load, shards, padding, cache).

Logits in float32 from random weights, at most 1e-5 apart, in both directions. How far apart they are:
`python packages/tinylm-model/benchmarks/conformance.py`.
"""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from tinylm.model import KVCache, Transformer, TransformerConfig, generate, read_config
from tinylm.model.rope import frequencies

transformers = pytest.importorskip("transformers")

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 12,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 12}
LINEAR = {"rope_type": "linear", "factor": 4.0}

# name: (transformers' class, preset, what differs from it). Sequences are 30 long: beyond windows and old contexts.
FAMILIES = {
    "gpt2": ("GPT2LMHeadModel", "gpt2", {}),
    "gpt2, own head": ("GPT2LMHeadModel", "gpt2", {"tie_embeddings": False, "mlp_width": 37}),
    "llama 2": ("LlamaForCausalLM", "llama", {"rope_theta": 1e4}),
    "llama, one key head": ("LlamaForCausalLM", "llama", {"kv_heads": 1}),
    "llama, biases": ("LlamaForCausalLM", "llama", {"tie_embeddings": True, "attention_bias": True, "bias": True}),
    "llama 3.1": ("LlamaForCausalLM", "llama", {"kv_heads": 2, "rope_theta": 5e5, "rope_scaling": LLAMA3}),
    "llama, linear": ("LlamaForCausalLM", "llama", {"rope_scaling": LINEAR}),
    "smollm2": ("LlamaForCausalLM", "smollm2", {"heads": 6, "width": 48, "head_dim": 8}),
    "mistral": ("MistralForCausalLM", "mistral", {"kv_heads": 2, "window": 7}),
    "mistral, no window": ("MistralForCausalLM", "mistral", {"window": None, "width": 50}),
    "qwen2": ("Qwen2ForCausalLM", "llama", {"attention_bias": "qkv", "kv_heads": 2, "norm_eps": 1e-6}),
    "qwen2, window": ("Qwen2ForCausalLM", "llama", {"attention_bias": "qkv", "window": 5, "window_from": 1}),
    "qwen3": ("Qwen3ForCausalLM", "qwen3", {"kv_heads": 2, "head_dim": 32}),
    "qwen3, yarn": ("Qwen3ForCausalLM", "qwen3", {"rope_theta": 1e6, "rope_scaling": YARN, "tie_embeddings": False}),
    "qwen3, window": ("Qwen3ForCausalLM", "qwen3", {"window": 9, "window_from": 1, "attention_bias": True}),
    "qwen3-moe": ("Qwen3MoeForCausalLM", "qwen3-moe", {"kv_heads": 2}),
    "qwen3-moe, window": (
        "Qwen3MoeForCausalLM",
        "qwen3-moe",
        {"window": 6, "experts": 5, "experts_per_token": 3, "normalize_experts": False, "tie_embeddings": True},
    ),
}


def theirs(directory):
    return transformers.AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.fixture(params=FAMILIES)
def family(request, small):
    name, preset, overrides = FAMILIES[request.param]
    return name, small(preset, **overrides)


def test_transformers_opens_ours(family, ids, tmp_path):
    (name, model), tokens = family, ids(2, 30)
    model.save(tmp_path, {"tokenizer_sha256": "abc"})
    other = theirs(tmp_path)
    assert type(other).__name__ == name
    with torch.no_grad():
        close(model(tokens), other(tokens).logits)
        for real in (slice(7, None), slice(0, 23)):  # padded left, padded right
            mask = torch.ones_like(tokens, dtype=torch.bool)
            mask[0] = False
            mask[0, real] = True
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            padded = other(tokens, attention_mask=mask.long(), position_ids=positions).logits
            close(model(tokens, mask=mask)[mask], padded[mask])


def test_we_open_theirs_whole_and_in_shards(family, ids, tmp_path):
    (_, model), tokens = family, ids(2, 30)
    model.save(tmp_path / "ours")
    other = theirs(tmp_path / "ours")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        other.save_pretrained(tmp_path / "whole")
        other.save_pretrained(tmp_path / "shards", max_shard_size="30KB")
        assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
        for folder in ("whole", "shards"):
            opened = Transformer.load(tmp_path / folder)
            close(opened(tokens), other(tokens).logits)
    assert opened.config == dataclasses.replace(model.config, balance_weight=opened.config.balance_weight)


@pytest.mark.parametrize("taps", [None, {}])
def test_cache_chunks_and_taps_give_the_same_logits(family, taps, ids):
    (_, model), tokens = family, ids(2, 30)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[0, :9] = False
    with torch.no_grad():
        for seen in (None, mask):
            whole = model(tokens, mask=seen, taps=taps)
            cache = KVCache(model.config, 2, 30)
            pieces = [
                model(tokens[:, a:b], mask=None if seen is None else seen[:, :b], cache=cache)
                for a, b in ((0, 11), (11, 12), (12, 13), (13, 24), (24, 30))
            ]
            real = slice(None) if seen is None else seen
            close(torch.cat(pieces, dim=1)[real], whole[real])


def test_the_same_greedy_tokens(family, ids, tmp_path):
    (_, model), prompt = family, ids(1, 5)
    model.save(tmp_path)
    wanted = theirs(tmp_path).generate(prompt, max_new_tokens=25, do_sample=False, pad_token_id=0)
    assert torch.equal(generate(model, prompt, 25), wanted[:, 5:])


@pytest.mark.parametrize("context", [64, 40_000])
@pytest.mark.parametrize(
    "scaling",
    [
        LINEAR,
        LLAMA3 | {"factor": 8.0, "original_max_position_embeddings": 8192},
        YARN | {"factor": 4.0, "original_max_position_embeddings": 32768},
        YARN | {"attention_factor": 1.3, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
        YARN | {"mscale": 0.7, "mscale_all_dim": 1.1},
        YARN | {"original_max_position_embeddings": None},
    ],
)
def test_stretched_frequencies_are_those_of_transformers_to_the_last_bit(scaling, context):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {name: value for name, value in scaling.items() if value is not None}
    fields = {"hidden_size": 512, "num_attention_heads": 4, "max_position_embeddings": context}
    config = transformers.LlamaConfig(**fields, rope_theta=5e5, rope_scaling=dict(scaling))
    wanted, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config)
    ours = TransformerConfig.preset(
        "llama", 9, 1, width=512, head_dim=128, context=context, rope_theta=5e5, rope_scaling=scaling
    )
    assert torch.equal(frequencies(ours, torch.float32), wanted)
    assert getattr(ours.rope_scaling, "magnitude", 1.0) == factor


PUBLISHED = {  # fields as the published files have them, and how many numbers the model has
    "gpt2": (
        {"model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024}
        | {"vocab_size": 50257, "activation_function": "gelu_new", "summary_type": "cls_index", "resid_pdrop": 0.1},
        124_439_808,
    ),
    "Llama-3.2-1B": (
        {"model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32}
        | {"num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 8192, "vocab_size": 128256}
        | {"max_position_embeddings": 131072, "rope_theta": 5e5, "tie_word_embeddings": True, "rms_norm_eps": 1e-5}
        | {"rope_scaling": LLAMA3 | {"factor": 32.0, "original_max_position_embeddings": 8192}, "pretraining_tp": 1},
        1_235_814_400,
    ),
    "SmolLM2-135M": (
        {"model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9}
        | {"num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49152, "is_llama_config": True}
        | {"max_position_embeddings": 8192, "rope_theta": 100000, "rope_interleaved": False, "rope_scaling": None}
        | {"tie_word_embeddings": True, "rms_norm_eps": 1e-5, "transformers.js_config": {}},
        134_515_008,
    ),
    "Mistral-7B": (
        {"model_type": "mistral", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
        | {"num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 32000, "sliding_window": 4096}
        | {"max_position_embeddings": 32768, "rope_theta": 1e4, "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16"},
        7_241_732_096,
    ),
    "Qwen2.5-0.5B": (
        {"model_type": "qwen2", "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14}
        | {"num_key_value_heads": 2, "intermediate_size": 4864, "vocab_size": 151936, "use_sliding_window": False}
        | {"max_position_embeddings": 32768, "sliding_window": 32768, "max_window_layers": 24, "rope_theta": 1e6}
        | {"tie_word_embeddings": True, "use_mrope": None},
        494_032_768,
    ),
    "Qwen3-0.6B": (
        {"model_type": "qwen3", "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16}
        | {"num_key_value_heads": 8, "intermediate_size": 3072, "vocab_size": 151936, "head_dim": 128}
        | {"max_position_embeddings": 40960, "sliding_window": None, "max_window_layers": 28, "rope_theta": 1000000}
        | {"tie_word_embeddings": True, "attention_bias": False, "use_sliding_window": False},
        596_049_920,
    ),
    "Qwen3-30B-A3B": (
        {"model_type": "qwen3_moe", "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32}
        | {"num_key_value_heads": 4, "intermediate_size": 6144, "moe_intermediate_size": 768, "num_experts": 128}
        | {"num_experts_per_tok": 8, "norm_topk_prob": True, "vocab_size": 151936, "head_dim": 128}
        | {"max_position_embeddings": 40960, "sliding_window": None, "max_window_layers": 48, "rope_theta": 1e6}
        | {"decoder_sparse_step": 1, "mlp_only_layers": [], "tie_word_embeddings": False, "use_cache": True},
        30_532_122_624,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_read(name, tmp_path):
    fields, parameters = PUBLISHED[name]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    config = read_config(tmp_path)
    assert config.parameter_count() == parameters
    with torch.device("meta"):
        other = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(tmp_path))
        assert sum(parameter.numel() for parameter in other.parameters()) == parameters
        assert sum(parameter.numel() for parameter in Transformer(config).parameters()) == parameters


def test_the_dial_reaches_smollm2():
    config = TransformerConfig.preset("smollm2", vocab_size=49152, depth=30, context=8192)
    assert config.parameter_count() == PUBLISHED["SmolLM2-135M"][1]
    assert (config.heads, config.kv_heads, config.mlp_width) == (9, 3, 1536)
