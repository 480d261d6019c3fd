"""The pairs of a GGUF file that say what model it is: into a TransformerConfig, and back.

Architectures: gpt2, llama (SmolLM2's and Mistral's files, too), qwen2, qwen3, qwen3moe. A pair of the architecture that
is not known here is refused, because it may change the mathematics. Not here: the tensors' names (layout.py), RoPE's
scaling (rope.py), the tokenizer's pairs (tokenizer.py).
Source: the GGUF specification and gguf-py's constants.py in llama.cpp. Next: layout.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tinylm.model._errors import ModelError
from tinylm.model._huggingface import model_type
from tinylm.model.config import TransformerConfig
from tinylm.model.gguf import rope
from tinylm.model.gguf.reader import FLOAT32, GGUF, STRING, UINT32, Pair
from tinylm.model.rope_scaling import Llama3Scaling, RopeScaling

# Hugging Face's families and llama.cpp's; a Mistral is a Llama there, and its window has no pair
_FAMILIES = {"gpt2": "gpt2", "llama": "llama", "mistral": "llama"}
_FAMILIES |= {"qwen2": "qwen2", "qwen3": "qwen3", "qwen3_moe": "qwen3moe"}
_KNOWN = tuple(dict.fromkeys(_FAMILIES.values()))
# ours -> GGUF's, without the architecture's name
_SIZES = {
    "context": "context_length",
    "depth": "block_count",
    "width": "embedding_length",
    "mlp_width": "feed_forward_length",
    "heads": "attention.head_count",
}
_EPSILON = {"layernorm": "attention.layer_norm_epsilon", "rmsnorm": "attention.layer_norm_rms_epsilon"}
_READ = {*_SIZES.values(), *_EPSILON.values(), "attention.head_count_kv", "attention.key_length", "vocab_size"}
_READ |= {"attention.value_length", "rope.freq_base", "rope.dimension_count", *rope.KEYS}
_EXPERTS = {
    "experts": "expert_count",
    "experts_per_token": "expert_used_count",
    "mlp_width": "expert_feed_forward_length",
}
# pairs that say nothing new, if they have one of these values
_IDLE: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "rope.scaling.finetuned": (True, False),
    "tensor_data_layout": ("Meta AI original pth",),
    "use_parallel_residual": (False,),
}


def architecture(config: TransformerConfig) -> str:
    """llama.cpp's name of the family that computes this shape; ModelError if there is none."""
    kind = _FAMILIES[model_type(config)]
    if config.window is not None:
        raise ModelError(
            f"GGUF: wanted attention to all before, got window={config.window}, which {kind} has no pair for"
        )
    if kind.startswith("qwen3") and config.attention_bias:
        raise ModelError(f"GGUF: wanted {kind} without attention_bias, got {config.attention_bias}: llama.cpp has none")
    if kind == "qwen2" and config.heads * config.head_dim != config.width:
        raise ModelError(
            f"GGUF: wanted qwen2's heads to fill the width, got {config.heads} of {config.head_dim} and width "
            f"{config.width}: llama.cpp has no other"
        )
    if kind != "llama" and isinstance(config.rope_scaling, Llama3Scaling):
        raise ModelError(f"GGUF: wanted {kind} without Llama 3's RoPE scaling: llama.cpp reads none there")
    if config.experts and not config.normalize_experts:
        raise ModelError("GGUF: wanted normalize_experts, got none: llama.cpp always does")
    return kind


def read_config(file: GGUF) -> TransformerConfig:
    """The shape that the file's pairs describe; ModelError for what is missing, wrong or unknown."""
    family = file.get("general.architecture")
    if not isinstance(family, str) or family not in _KNOWN:
        raise ModelError(f"{file.path}: wanted general.architecture to be one of {_KNOWN}, got {family!r:.80}")
    pairs = _Pairs(file, family)
    pairs.check_known()
    classic = family == "gpt2"
    norm = "layernorm" if classic else "rmsnorm"
    fields: dict[str, Any] = {ours: pairs.whole(theirs) for ours, theirs in _SIZES.items()}
    fields["kv_heads"] = pairs.whole("attention.head_count_kv", fields["heads"])
    fields["head_dim"] = _head_dim(pairs, fields["width"], fields["heads"])
    fields |= {"norm": norm, "norm_eps": pairs.decimal(_EPSILON[norm]), "vocab_size": _vocab_size(pairs)}
    fields |= {"position": "learned", "activation": "gelu"} if classic else {"position": "rope", "activation": "swiglu"}
    if not classic:
        fields["rope_theta"] = pairs.decimal("rope.freq_base", 10000.0)
        fields["rope_scaling"] = _rope(pairs, fields["rope_theta"], fields["head_dim"])
    if family == "qwen3moe":
        fields |= {ours: pairs.whole(theirs) for ours, theirs in _EXPERTS.items()}
    fields |= {"qk_norm": family.startswith("qwen3"), "tie_embeddings": "output.weight" not in file.tensors}
    fields["bias"] = "blk.0.ffn_down.bias" in file.tensors
    fields["attention_bias"] = "qkv" if family == "qwen2" else "blk.0.attn_output.bias" in file.tensors
    if fields["depth"] > len(file.tensors):  # before anything is made for each layer
        pairs.wrong("tensors for each of its layers", f"{fields['depth']:,} layers and {len(file.tensors):,} tensors")
    try:
        config = TransformerConfig(**fields)
        if architecture(config) != family:
            pairs.wrong(f"a shape of {family}", f"one of {architecture(config)}")
    except ModelError as error:
        raise ModelError(f"{file.path}: {error}" if str(file.path) not in str(error) else str(error)) from None
    return config


def write_config(config: TransformerConfig, name: str) -> dict[str, Pair]:
    """The pairs that `read_config` and llama.cpp read."""
    family = architecture(config)
    pairs = {"general.architecture": Pair(STRING, family), "general.name": Pair(STRING, name)}
    whole = {theirs: getattr(config, ours) for ours, theirs in _SIZES.items()}
    if config.experts:
        whole |= {theirs: getattr(config, ours) for ours, theirs in _EXPERTS.items()}
        whole["feed_forward_length"] = config.mlp_width * config.experts_per_token  # of a plain MLP, and there is none
    whole |= {"attention.head_count_kv": config.kv_heads, "vocab_size": config.vocab_size}
    whole |= {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
    decimals = {_EPSILON[config.norm]: config.norm_eps}
    if config.position == "rope":
        whole["rope.dimension_count"], decimals["rope.freq_base"] = config.head_dim, config.rope_theta
    pairs |= {f"{family}.{key}": Pair(UINT32, value) for key, value in whole.items()}
    pairs |= {f"{family}.{key}": pair for key, pair in rope.scaling_pairs(config).items()}
    return pairs | {f"{family}.{key}": Pair(FLOAT32, value) for key, value in decimals.items()}


class _Pairs:
    """The pairs of one architecture, read with their types checked."""

    def __init__(self, file: GGUF, family: str) -> None:
        self.file, self.family = file, family

    def get(self, key: str) -> Any:
        return self.file.get(f"{self.family}.{key}")

    def wrong(self, wanted: str, got: str) -> None:
        raise ModelError(f"{self.file.path}: wanted {wanted}, got {got}")

    def check_known(self) -> None:
        for name, pair in self.file.pairs.items():
            family, _, key = name.partition(".")
            if family != self.family or key in _READ or (family == "qwen3moe" and key in _EXPERTS.values()):
                continue
            if key not in _IDLE:
                self.wrong(f"pairs of {family} that are known here", f"{name}: it may change what is computed")
            elif isinstance(pair.value, np.ndarray | list) or pair.value not in _IDLE[key]:
                self.wrong(f"{name} to be {_IDLE[key][0]!r}", f"{pair.value!r:.80}: not supported here")

    def text(self, key: str) -> str:
        value = self.get(key)
        if not isinstance(value, str):
            self.wrong(f"{self.family}.{key}, a text", f"{value!r:.80}")
        return str(value)

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number; one for each layer is accepted where all are the same."""
        value = self.get(key)
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.wrong(f"{self.family}.{key}, a whole number of at least 1", f"{value!r:.80}")
        return int(value)

    def decimal(self, key: str, default: float | None = None) -> float:
        """A float32 as the decimal number that was meant: 9.99999974e-06 is 1e-05."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, float):
            self.wrong(f"{self.family}.{key}, a number", f"{value!r:.80}")
        return float(str(np.float32(value)))


def _vocab_size(pairs: _Pairs) -> int:
    table = pairs.file.tensors.get("token_embd.weight")
    if table is None:
        pairs.wrong("the tensor token_embd.weight", "none")
    rows = 0 if table is None else table.shape[0]
    if pairs.whole("vocab_size", rows) != rows:
        pairs.wrong(f"a token_embd.weight of {pairs.whole('vocab_size', rows):,} rows (vocab_size)", f"{rows:,}")
    return rows


def _head_dim(pairs: _Pairs, width: int, heads: int) -> int:
    if pairs.get("attention.key_length") is None and width % heads:
        pairs.wrong("heads that divide the width", f"{heads} and {width}")
    size = pairs.whole("attention.key_length", width // heads or 1)
    if pairs.whole("attention.value_length", size) != size:
        pairs.wrong("keys and values of one length", f"{size} and {pairs.whole('attention.value_length')}")
    return size


def _rope(pairs: _Pairs, theta: float, head_dim: int) -> RopeScaling | None:
    if pairs.whole("rope.dimension_count", head_dim) != head_dim:
        pairs.wrong(f"RoPE over the whole head of {head_dim}", f"{pairs.whole('rope.dimension_count')} dimensions")
    readers: dict[str, Callable[[str], Any]] = {
        "type": pairs.text,
        "factor": pairs.decimal,
        "original_context_length": pairs.whole,
    }
    keys = {f"rope.scaling.{name}": read for name, read in readers.items()}
    there = {key: read(key) for key, read in keys.items() if pairs.get(key) is not None}
    divisors = pairs.file.numbers(rope.TENSOR) if rope.TENSOR in pairs.file.tensors else None
    try:
        return rope.read_scaling(there, divisors, theta, head_dim)
    except ModelError as error:
        raise ModelError(f"{pairs.file.path}: {error}") from None
