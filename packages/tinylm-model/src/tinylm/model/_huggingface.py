"""config.json in Hugging Face's words: which of its architectures a shape is, and back.

Three architectures: GPT2LMHeadModel, LlamaForCausalLM, Qwen3ForCausalLM. No torch and no files here, so that the scalar
rung and `plan` can use it. Not here: the tensors' names (_layout.py), reading and writing (checkpoint.py). Next:
_layout.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tinylm.model._errors import ModelError
from tinylm.model.config import TransformerConfig

FORMAT = 1
ARCHITECTURES = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}

# Ours -> Hugging Face's, and the default that transformers assumes when the field is missing (None: there is none).
_GPT2 = {
    "vocab_size": ("vocab_size", 50257),
    "context": ("n_positions", 1024),
    "depth": ("n_layer", 12),
    "width": ("n_embd", 768),
    "heads": ("n_head", 12),
    "mlp_width": ("n_inner", None),
    "norm_eps": ("layer_norm_epsilon", 1e-5),
    "tie_embeddings": ("tie_word_embeddings", True),
}
_LLAMA = {
    "vocab_size": ("vocab_size", None),
    "context": ("max_position_embeddings", None),
    "depth": ("num_hidden_layers", None),
    "width": ("hidden_size", None),
    "heads": ("num_attention_heads", None),
    "kv_heads": ("num_key_value_heads", None),
    "head_dim": ("head_dim", None),
    "mlp_width": ("intermediate_size", None),
    "norm_eps": ("rms_norm_eps", 1e-6),
    "attention_bias": ("attention_bias", False),
    "bias": ("mlp_bias", False),
    "tie_embeddings": ("tie_word_embeddings", False),
}
_QWEN3 = {name: pair for name, pair in _LLAMA.items() if name != "bias"}
_FIELDS: dict[str, Mapping[str, tuple[str, Any]]] = {"gpt2": _GPT2, "llama": _LLAMA, "qwen3": _QWEN3}

# Fields that change the mathematics, and the only values that we compute.
_REQUIRED: dict[str, dict[str, tuple[Any, ...]]] = {
    "gpt2": {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    "llama": {"hidden_act": ("silu",)},
    "qwen3": {"hidden_act": ("silu",), "use_sliding_window": (False,)},
}


def model_type(config: TransformerConfig) -> str:
    """The Hugging Face family that computes exactly this shape; ModelError if none does."""
    modern = (config.norm, config.position, config.activation) == ("rmsnorm", "rope", "swiglu")
    if modern and not config.qk_norm:
        return "llama"
    if modern and not config.bias:
        return "qwen3"
    classic = (config.norm, config.position, config.activation) == ("layernorm", "learned", "gelu")
    square = config.kv_heads == config.heads and config.heads * config.head_dim == config.width
    if classic and square and config.bias and config.attention_bias and not config.qk_norm:
        return "gpt2"
    raise ModelError(
        "save: wanted a shape that Hugging Face's gpt2, llama or qwen3 has, got "
        f"norm={config.norm}, position={config.position}, activation={config.activation}, bias={config.bias}, "
        f"attention_bias={config.attention_bias}, qk_norm={config.qk_norm}; start from TransformerConfig.preset"
    )


def to_json(config: TransformerConfig, dtype: str, provenance: Mapping[str, str]) -> dict[str, Any]:
    """config.json as transformers 4 and 5 both read it (`torch_dtype`/`dtype`, `rope_theta`/`rope_parameters`)."""
    kind = model_type(config)
    fields: dict[str, Any] = {"architectures": [ARCHITECTURES[kind]], "model_type": kind}
    fields |= {theirs: getattr(config, ours) for ours, (theirs, _) in _FIELDS[kind].items()}
    if kind == "gpt2":
        fields |= {"n_ctx": config.context, "activation_function": "gelu_new"}
        fields |= {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    else:
        fields |= {"hidden_act": "silu", "attention_dropout": 0.0, "rope_theta": config.rope_theta}
        fields["rope_parameters"] = {"rope_theta": config.rope_theta, "rope_type": "default"}
    if kind == "qwen3":
        fields |= {"use_sliding_window": False, "sliding_window": None}
    # null and not left out: transformers would otherwise assume ids that this vocabulary may not have
    fields |= {"bos_token_id": None, "eos_token_id": None, "torch_dtype": dtype, "dtype": dtype, "use_cache": True}
    return fields | {"tinylm": {"format": FORMAT, **provenance}}


def from_json(fields: Mapping[str, Any], where: str) -> TransformerConfig:
    """The shape that a config.json describes. `where` names the file in errors."""
    kind = fields.get("model_type")
    if kind not in ARCHITECTURES:
        raise ModelError(f"{where}: wanted model_type to be one of {sorted(ARCHITECTURES)}, got {kind!r}")
    check_format(fields, where)
    for name, accepted in _REQUIRED[kind].items():
        if fields.get(name, accepted[0]) not in accepted:
            raise ModelError(f"{where}: wanted {name} to be {accepted[0]!r}, got {fields[name]!r}: not supported here")
    layers = fields.get("layer_types") or ()
    if any(layer != "full_attention" for layer in layers):
        raise ModelError(f"{where}: wanted layer_types of 'full_attention', got {layers!r:.80}: not supported here")
    ours: dict[str, Any] = {name: fields.get(theirs, default) for name, (theirs, default) in _FIELDS[kind].items()}
    if kind == "gpt2":
        ours |= {"norm": "layernorm", "position": "learned", "activation": "gelu"}
        ours |= {"bias": True, "attention_bias": True, "qk_norm": False, "kv_heads": ours["heads"]}
        ours["mlp_width"] = 4 * ours["width"] if ours["mlp_width"] is None else ours["mlp_width"]
        ours["head_dim"] = _divide(ours["width"], ours["heads"], where)
    else:
        ours |= {"qk_norm": kind == "qwen3", "rope_theta": _rope_theta(fields, where)}
        ours["kv_heads"] = ours["heads"] if ours["kv_heads"] is None else ours["kv_heads"]
        if ours["head_dim"] is None:  # transformers: hidden_size / heads for Llama, 128 for Qwen3
            ours["head_dim"] = 128 if kind == "qwen3" else _divide(ours["width"], ours["heads"], where)
    missing = [_FIELDS[kind][name][0] for name, value in ours.items() if value is None]
    if missing:
        raise ModelError(f"{where}: wanted the field(s) {', '.join(missing)}, got none")
    try:
        return TransformerConfig(**ours)
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from None


def check_format(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The "tinylm" block of a config.json ({} when somebody else wrote it); a higher format is refused in words."""
    block = fields.get("tinylm", {})
    if not isinstance(block, dict):
        raise ModelError(f'{where}: wanted "tinylm" to be an object, got {block!r}')
    number = block.get("format", FORMAT)
    if isinstance(number, bool) or not isinstance(number, int) or number > FORMAT:
        raise ModelError(
            f"{where}: wanted format {FORMAT} or lower, got {number!r}: a newer tinylm-model wrote it; upgrade"
        )
    return block


def _divide(width: Any, heads: Any, where: str) -> int:
    if not isinstance(width, int) or not isinstance(heads, int) or heads < 1 or width % heads:
        raise ModelError(f"{where}: wanted the heads to divide the width, got width={width!r}, heads={heads!r}")
    return width // heads


def _rope_theta(fields: Mapping[str, Any], where: str) -> Any:
    """transformers 5 keeps it in rope_parameters, 4 beside a rope_scaling that is null for plain RoPE."""
    parameters = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    if not isinstance(parameters, dict):
        raise ModelError(f"{where}: wanted rope_parameters to be an object, got {parameters!r}")
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind != "default":
        raise ModelError(
            f"{where}: wanted RoPE of type 'default', got {kind!r}: RoPE scaling is not supported here yet"
        )
    if parameters.get("partial_rotary_factor", fields.get("partial_rotary_factor")) not in (None, 1, 1.0):
        raise ModelError(f"{where}: wanted RoPE over the whole head, got a partial_rotary_factor: not supported here")
    theta = parameters.get("rope_theta", fields.get("rope_theta"))
    return 10000.0 if theta is None else theta
