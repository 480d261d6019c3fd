"""config.json in Hugging Face's words: which of its architectures a shape is, and back.

No torch and no files here, so that the scalar rung and `plan` can use it. Not here: each family's fields
(_families.py), the tensors' names (_layout.py), reading and writing (checkpoint.py). Next: _layout.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tinylm.model._errors import ModelError
from tinylm.model._families import FAMILIES
from tinylm.model.config import TransformerConfig
from tinylm.model.rope_scaling import RopeScaling, rope_scaling

FORMAT = 1
_FULL, _SLIDING = "full_attention", "sliding_attention"


def model_type(config: TransformerConfig) -> str:
    """The Hugging Face family that computes exactly this shape; ModelError if none does."""
    shape = (config.norm, config.position, config.activation)
    if shape == ("rmsnorm", "rope", "swiglu"):
        kind = _modern(config)
        if kind is not None:
            return kind
    square = config.kv_heads == config.heads and config.heads * config.head_dim == config.width
    plain = config.bias and config.attention_bias is True and not config.qk_norm and config.window is None
    if shape == ("layernorm", "learned", "gelu") and square and plain:
        return "gpt2"
    raise ModelError(
        f"save: wanted a shape that one of Hugging Face's {', '.join(FAMILIES)} has, got norm={config.norm}, "
        f"position={config.position}, activation={config.activation}, bias={config.bias}, "
        f"attention_bias={config.attention_bias}, qk_norm={config.qk_norm}, window={config.window}, "
        f"window_from={config.window_from}, experts={config.experts}; start from TransformerConfig.preset"
    )


def _modern(config: TransformerConfig) -> str | None:
    biases = (config.attention_bias, config.bias)
    if config.experts:
        return "qwen3_moe" if config.qk_norm and biases[0] != "qkv" and not config.window_from else None
    if config.qk_norm:
        return "qwen3" if biases[0] != "qkv" and not config.bias else None
    if biases == ("qkv", False):
        return "qwen2"
    # transformers opens a Llama only where its heads divide its width; Mistral without a window is the same otherwise
    if config.window is None and config.width % config.heads == 0 and biases[0] != "qkv":
        return "llama"
    return "mistral" if biases == (False, False) and not config.window_from else None


def to_json(config: TransformerConfig, dtype: str, provenance: Mapping[str, str]) -> dict[str, Any]:
    """config.json as transformers 4 and 5 both read it (`torch_dtype`/`dtype`, `rope_theta`/`rope_parameters`)."""
    kind = model_type(config)
    family = FAMILIES[kind]
    fields: dict[str, Any] = {"architectures": [family.architecture], "model_type": kind}
    fields |= {theirs: getattr(config, ours) for ours, (theirs, _) in family.fields.items()}
    if kind == "gpt2":
        fields |= {"n_ctx": config.context, "activation_function": "gelu_new"}
        fields |= {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    else:
        scaling = {} if config.rope_scaling is None else dataclasses.asdict(config.rope_scaling)
        fields |= {"hidden_act": "silu", "attention_dropout": 0.0, "rope_theta": config.rope_theta}
        fields |= {"rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"} | scaling}
        fields |= {"rope_scaling": scaling} if scaling else {}
    if "sliding_window" in family.read:
        fields["sliding_window"] = config.window
    if "use_sliding_window" in family.read:
        fields["use_sliding_window"] = config.window is not None
    if "max_window_layers" in family.read:
        fields["max_window_layers"] = config.depth if config.window is None else config.window_from
        fields["layer_types"] = _layer_types(config)
    if kind == "qwen3_moe":
        fields |= {"decoder_sparse_step": 1, "mlp_only_layers": []}
        fields["intermediate_size"] = config.mlp_width * config.experts_per_token  # of a plain MLP, and there is none
    # null and not left out: transformers would otherwise assume ids that this vocabulary may not have
    fields |= {"bos_token_id": None, "eos_token_id": None, "torch_dtype": dtype, "dtype": dtype, "use_cache": True}
    return fields | {"tinylm": {"format": FORMAT, **provenance}}


def from_json(fields: Mapping[str, Any], where: str) -> TransformerConfig:
    """The shape that a config.json describes. `where` names the file in errors. A field that is not known (unless it is
    null) and a value that we do not compute are refused by name."""
    kind = fields.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ModelError(f"{where}: wanted model_type to be one of {sorted(FAMILIES)}, got {kind!r:.80}")
    check_format(fields, where)
    try:
        return TransformerConfig(**_ours(kind, fields))
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from None


def check_format(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The "tinylm" block of a config.json ({} when somebody else wrote it); a higher format is refused in words."""
    block = fields.get("tinylm", {})
    if not isinstance(block, dict):
        raise ModelError(f'{where}: wanted "tinylm" to be an object, got {block!r:.80}')
    number = block.get("format", FORMAT)
    if isinstance(number, bool) or not isinstance(number, int) or number > FORMAT:
        raise ModelError(
            f"{where}: wanted format {FORMAT} or lower, got {number!r:.80}: a newer tinylm-model wrote it; upgrade"
        )
    return block


def _ours(kind: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of TransformerConfig."""
    family = FAMILIES[kind]
    unknown = sorted(name for name in fields.keys() - family.known if fields[name] is not None)
    if unknown:
        raise ModelError(
            f"wanted only fields that are known for {kind!r}, got {', '.join(unknown):.200}: not supported here; "
            "remove what surely changes no result"
        )
    for name, accepted in family.required.items():
        if fields.get(name) is not None and fields[name] not in accepted:
            raise ModelError(f"wanted {name} to be {accepted[0]!r}, got {fields[name]!r:.80}: not supported here")
    ours: dict[str, Any] = {name: fields.get(theirs, default) for name, (theirs, default) in family.fields.items()}
    if kind == "gpt2":
        ours |= {"norm": "layernorm", "position": "learned", "activation": "gelu"}
        ours |= {"bias": True, "attention_bias": True, "qk_norm": False, "kv_heads": ours["heads"]}
    else:
        ours |= {"qk_norm": kind.startswith("qwen3")} | ({"attention_bias": "qkv"} if kind == "qwen2" else {})
        ours["kv_heads"] = ours["heads"] if ours["kv_heads"] is None else ours["kv_heads"]
        if kind == "qwen3_moe" and "num_local_experts" in fields:  # the name that transformers 5 writes
            ours["experts"] = fields["num_local_experts"]
        ours["rope_theta"], ours["rope_scaling"] = _rope(fields)
        if "sliding_window" in family.read:
            ours["window"], ours["window_from"] = _window(kind, fields, ours["depth"])
        _check_layer_types(fields, ours)
    if ours.get("head_dim") is None:  # transformers: hidden_size / heads, for Qwen3 128
        ours["head_dim"] = 128 if kind == "qwen3" else _divide(ours["width"], ours["heads"])
    if kind == "gpt2" and ours["mlp_width"] is None and isinstance(ours["width"], int):
        ours["mlp_width"] = 4 * ours["width"]
    missing = [theirs for name, (theirs, _) in family.fields.items() if ours[name] is None]
    if missing:
        raise ModelError(f"wanted the field(s) {', '.join(missing)}, got none")
    return ours


def _divide(width: Any, heads: Any) -> Any:
    if width is None or heads is None:
        return None
    if not isinstance(width, int) or not isinstance(heads, int) or heads < 1 or width % heads:
        raise ModelError(f"wanted the heads to divide the width, got width={width!r:.80}, heads={heads!r:.80}")
    return width // heads


def _rope(fields: Mapping[str, Any]) -> tuple[Any, RopeScaling | None]:
    """Theta and scaling. transformers 5 keeps both in rope_parameters, 4 beside a rope_scaling that is null for plain
    RoPE; where a file has both objects, 5 takes rope_scaling."""
    found: list[tuple[Any, RopeScaling | None]] = []
    for name in ("rope_scaling", "rope_parameters"):
        parameters = fields.get(name)
        if not isinstance(parameters, dict | None):
            raise ModelError(f"wanted {name} to be an object, got {parameters!r:.80}")
        if parameters:
            rest = {key: value for key, value in parameters.items() if key != "rope_theta"}
            if rest.pop("partial_rotary_factor", None) not in (None, 1):
                raise ModelError("wanted RoPE over the whole head, got a partial_rotary_factor: not supported here")
            scaling = rope_scaling(rest, fields.get("max_position_embeddings"))
            found.append((parameters.get("rope_theta", fields.get("rope_theta")), scaling))
    if fields.get("partial_rotary_factor") not in (None, 1):
        raise ModelError("wanted RoPE over the whole head, got a partial_rotary_factor: not supported here")
    if len(found) == 2 and found[0] != found[1]:
        raise ModelError("wanted rope_scaling and rope_parameters to say the same, got two that differ; remove one")
    theta, scaling = found[0] if found else (fields.get("rope_theta"), None)
    if fields.get("rope_theta") not in (None, theta):  # transformers 4 takes this one, 5 the other
        got = f"{fields['rope_theta']!r:.40} and {theta!r:.40}"
        raise ModelError(f"wanted rope_theta and the one within rope_parameters to be the same, got {got}; remove one")
    return (10000.0 if theta is None else theta), scaling


def _window(kind: str, fields: Mapping[str, Any], depth: Any) -> tuple[Any, Any]:
    """The window, and the first layer that has it. In Mistral it is on unless null, in Qwen off unless asked for."""
    window = fields.get("sliding_window", 4096)
    used = fields.get("use_sliding_window", False)
    if not isinstance(used, bool | None):
        raise ModelError(f"wanted use_sliding_window to be true or false, got {used!r:.80}")
    if window is None or (kind != "mistral" and not used):
        return None, 0
    first = fields.get("max_window_layers", 28) if kind in ("qwen2", "qwen3") else 0
    types = fields.get("layer_types")
    if kind in ("qwen2", "qwen3") and isinstance(types, list):  # counts more than max_window_layers in transformers
        first = types.index(_SLIDING) if _SLIDING in types else depth
    past_the_end = isinstance(first, int) and isinstance(depth, int) and first >= depth
    return (None, 0) if past_the_end else (window, first)


def _check_layer_types(fields: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    given, depth = fields.get("layer_types"), ours["depth"]
    if given is None or not isinstance(depth, int):  # the latter is refused by its own name
        return
    window, first = ours.get("window"), ours.get("window_from", 0)
    mixed = not isinstance(given, list) or len(given) != depth
    if mixed or given != [_SLIDING if window is not None and i >= first else _FULL for i in range(depth)]:
        raise ModelError(
            f"wanted layer_types of num_hidden_layers ({depth!r:.20}) entries, {_FULL!r} and from some layer on, if "
            f"there is a window, {_SLIDING!r}, got {given!r:.80}: not supported here"
        )


def _layer_types(config: TransformerConfig) -> list[str]:
    return [_FULL if config.layer_window(layer) is None else _SLIDING for layer in range(config.depth)]
