"""The shape: presets and the dial, what it refuses, and what it counts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylm.model import ModelError, Transformer, TransformerConfig
from tinylm.model._layout import shapes

PRESETS = ("gpt2", "llama", "mistral", "qwen3", "qwen3-moe")

YARN = {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 64}
LLAMA3 = {"rope_type": "llama3", "factor": 4, "low_freq_factor": 1, "high_freq_factor": 4}


@pytest.mark.parametrize("preset", ["gpt2", "llama", "qwen3", "qwen3-moe"])
@pytest.mark.parametrize("depth", [1, 3, 4, 12])
def test_the_dial(preset, depth):
    config = TransformerConfig.preset(preset, vocab_size=1000, depth=depth)
    heads = depth if preset == "gpt2" else (depth + 1) // 2  # 64 or 32 wide per layer, in whole heads of 64
    assert (config.width, config.heads, config.kv_heads, config.head_dim) == (64 * heads, heads, heads, 64)
    assert config.mlp_width % 64 == 0
    assert config.context == (256 if depth <= 8 else 1024)


def test_depth_12_is_gpt2_small():
    assert TransformerConfig.preset("gpt2", vocab_size=50257, depth=12).parameter_count() == 124_439_808  # OpenAI's


def test_every_field_can_be_given():
    fields = {
        "context": 32,
        "width": 96,
        "heads": 6,
        "kv_heads": 2,
        "head_dim": 20,
        "mlp_width": 100,
        "norm": "layernorm",
    }
    fields |= {
        "norm": "layernorm",
        "norm_eps": 1e-3,
        "position": "learned",
        "rope_theta": 5.0,
        "activation": "gelu",
        "bias": True,
    }
    fields |= {"attention_bias": True, "qk_norm": False, "tie_embeddings": False}
    config = TransformerConfig.preset("qwen3", 11, 3, **fields)
    assert {name: getattr(config, name) for name in fields} == fields


@pytest.mark.parametrize("preset", PRESETS)
def test_heads_that_are_given_share_the_width(preset):
    config = TransformerConfig.preset(preset, 11, 2, width=96, heads=6)
    assert (config.head_dim, config.heads * config.head_dim) == (16, 96)
    assert TransformerConfig.preset(preset, 11, 2, width=96, heads=6, head_dim=64).head_dim == 64  # Qwen3 has such


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"heads": 4, "kv_heads": 3}, "multiple of kv_heads"),
        ({"heads": 3}, "wanted heads to divide width, got heads=3, width=64"),
        ({"heads": 3, "width": 100}, "wanted heads to divide width, got heads=3, width=100"),
        ({"head_dim": 7, "heads": 2}, "even head_dim"),
        ({"width": 100}, "multiple of head_dim"),
        ({"context": 0}, "context"),
        ({"mlp_width": True}, "mlp_width"),
        ({"width": 6.5}, "width"),
        ({"norm_eps": float("nan")}, "norm_eps"),
        ({"rope_theta": -1}, "rope_theta"),
        ({"bias": 1}, "bias"),
        ({"norm": "batchnorm"}, "norm"),
        ({"wdith": 128}, "no such field: wdith"),
        ({"attention_bias": "kv"}, "attention_bias"),
        ({"window": 0}, "window"),
        ({"window": 2.5}, "window"),
        ({"window_from": 1}, "window_from"),
        ({"window": 8, "window_from": 2}, "below depth"),
        ({"experts": 4}, "experts_per_token from 1 to experts"),
        ({"experts": 4, "experts_per_token": 5}, "got 5"),
        ({"experts_per_token": 2}, "or both 0"),
        ({"experts": -1}, "experts"),
        ({"experts": 2, "experts_per_token": 1, "bias": True}, "no bias"),
        ({"experts": 2, "experts_per_token": 1, "activation": "gelu"}, "swiglu"),
        ({"balance_weight": -0.1}, "balance_weight"),
        ({"normalize_experts": "no"}, "normalize_experts"),
        ({"rope_scaling": "yarn"}, "rope_scaling"),
        ({"rope_scaling": {"rope_type": "spiral"}}, "spiral"),
        ({"rope_scaling": {"rope_type": "linear"}}, "wanted factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, "at least 1"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2}, "position": "learned"}, "position 'rope'"),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1}}, "above low_freq_factor"),
        ({"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 0}}, "original_max_position_embeddings"),
        ({"rope_scaling": YARN | {"beta_fast": 0.5}}, "beta_fast"),
        ({"rope_scaling": YARN | {"attention_factor": 0}}, "attention_factor"),
        ({"rope_scaling": YARN | {"truncate": 1}}, "truncate"),
        ({"rope_scaling": YARN | {"mscale": "a"}}, "mscale"),
        ({"rope_scaling": YARN, "rope_theta": 1}, "rope_theta above 1"),
    ],
)
def test_a_shape_that_contradicts_itself_is_refused(changes, words):
    with pytest.raises(ModelError, match=words):
        TransformerConfig.preset("qwen3", 100, 2, **changes)


@pytest.mark.parametrize(("preset", "depth"), [("gtp2", 2), ([], 2), ("gpt2", 0), ("gpt2", True), ("gpt2", 2.0)])
def test_a_wrong_preset_or_depth_is_refused(preset, depth):
    with pytest.raises(ModelError, match="wanted"):
        TransformerConfig.preset(preset, 100, depth)


@settings(max_examples=25, deadline=None)
@given(
    preset=st.sampled_from(PRESETS),
    depth=st.integers(1, 3),
    kv_heads=st.sampled_from([1, 2, 4]),
    tie=st.booleans(),
    attention_bias=st.booleans(),
    width=st.sampled_from([32, 64]),
)
def test_counts_and_shapes_are_those_of_the_built_model(preset, depth, kv_heads, tie, attention_bias, width):
    if preset == "gpt2":
        kv_heads, attention_bias = 4, True
    if preset == "mistral":
        attention_bias = False
    overrides = {"width": width, "heads": 4, "kv_heads": kv_heads, "head_dim": width // 4, "tie_embeddings": tie}
    config = TransformerConfig.preset(preset, 50, depth, attention_bias=attention_bias, **overrides)
    with torch.device("meta"):
        model = Transformer(config)
    assert config.parameter_count() == sum(parameter.numel() for parameter in model.parameters())
    assert shapes(config) == {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("preset", ["gpt2", "llama", "qwen3", "qwen3-moe"])
def test_flops_are_those_that_torch_counts(preset, small, ids):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    def grouped(x, weight, ends, *args, out_shape=None, **kwargs):
        return 2 * x[0] * weight[1] * weight[2]

    def grouped_backward(dy, x, weight, ends, *args, out_shape=None, **kwargs):
        return 4 * x[0] * weight[1] * weight[2]

    def product_in_place(total, a, b, *args, out_shape=None, **kwargs):
        return 2 * a[0] * a[1] * b[1]

    model = small(preset, depth=3)
    tokens = ids(2, 64)
    ours = {  # torch's counter does not know the experts' products, nor the head's gradient, which is added in place
        torch.ops.tinylm.grouped_linear: grouped,
        torch.ops.tinylm.grouped_linear_backward: grouped_backward,
        torch.ops.aten.addmm_: product_in_place,
    }
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=ours) as counter:
        model.loss(tokens, tokens).backward()
    counted = counter.get_total_flops() / tokens.numel()
    # torch's counter sees products only; ours counts norm weights and biases in N as the PaLM formula does
    assert model.config.flops_per_token(64) == pytest.approx(counted, rel=0.03)


def test_experts_and_windows_are_counted():
    dense = TransformerConfig.preset("qwen3", 1000, 4, tie_embeddings=False)
    sparse = TransformerConfig.preset("qwen3-moe", 1000, 4, tie_embeddings=False)
    router = 4 * sparse.experts * sparse.width
    per_expert = 4 * 3 * sparse.width * sparse.mlp_width
    assert sparse.experts_per_token * sparse.mlp_width == pytest.approx(dense.mlp_width, rel=0.2)
    others = dense.parameter_count() - 4 * 3 * dense.width * dense.mlp_width
    assert sparse.parameter_count() == others + router + 8 * per_expert
    assert sparse.parameter_count(active=True) == others + router + 2 * per_expert
    assert dense.parameter_count(active=True) == dense.parameter_count()
    wide = TransformerConfig.preset("mistral", 1000, 4, context=512, window=None)
    narrow = TransformerConfig.preset("mistral", 1000, 4, context=512, window=128)
    attention = 12 * 4 * wide.heads * wide.head_dim
    assert wide.flops_per_token() - narrow.flops_per_token() == attention * (512 - 128)
    assert wide.flops_per_token(100) == narrow.flops_per_token(100)
