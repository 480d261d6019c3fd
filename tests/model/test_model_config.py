"""The shape: presets and the dial, what it refuses, and what it counts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylm.model import ModelError, Transformer, TransformerConfig
from tinylm.model._layout import shapes
from tinylm.model.plan import activation_numbers, inference_memory, training_memory, training_seconds

PRESETS = ("gpt2", "llama", "mistral", "qwen3", "qwen3-moe")


@pytest.mark.parametrize("preset", PRESETS)
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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"heads": 3, "kv_heads": 2}, "multiple of kv_heads"),
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
    ],
)
def test_a_shape_that_contradicts_itself_is_refused(changes, words):
    with pytest.raises(ModelError, match=words):
        TransformerConfig.preset("qwen3", 100, 2, **changes)


@pytest.mark.parametrize(("preset", "depth"), [("gtp2", 2), ("gpt2", 0), ("gpt2", True), ("gpt2", 2.0)])
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

    model = small(preset, depth=3)
    tokens = ids(2, 64)
    experts = {torch.ops.tinylm.grouped_linear: grouped, torch.ops.tinylm.grouped_linear_backward: grouped_backward}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=experts) as counter:
        model.loss(tokens, tokens).backward()
    counted = counter.get_total_flops() / tokens.numel()
    # torch's counter sees products only; ours counts norm weights and biases in N as the PaLM formula does
    assert model.config.flops_per_token(64) == pytest.approx(counted, rel=0.03)


@pytest.mark.parametrize(("preset", "kv_heads"), [("gpt2", 4), ("llama", 2), ("llama", 4), ("qwen3", 2), ("qwen3", 4)])
def test_activation_memory_is_what_autograd_keeps(preset, kv_heads, small, ids):
    model = small(preset, width=128, heads=4, head_dim=32, kv_heads=kv_heads, mlp_width=256, depth=3)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = ids(4, 64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model.loss(tokens, tokens)
    counted = sum(kept.values()) / 4 / tokens.numel()
    assert loss.requires_grad
    assert activation_numbers(model.config) == pytest.approx(counted, rel=0.15)


def test_memory_and_time_add_up():
    config = TransformerConfig.preset("llama", 1000, 2)
    count = config.parameter_count()
    memory = training_memory(config, 1, "bfloat16")
    assert (memory["parameters"], memory["gradients"], memory["optimizer (AdamW)"]) == (4 * count, 4 * count, 8 * count)
    assert inference_memory(config, 10, "float16")["key/value cache"] == 2 * 2 * config.depth * config.width * 10
    assert training_seconds(config, 10, 2.0) == 10 * config.flops_per_token() / 2
    with pytest.raises(ModelError, match="dtype"):
        training_memory(config, 1, "int3")
