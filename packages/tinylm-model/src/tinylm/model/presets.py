"""The dial: from a family's name and a depth to a whole shape.

No torch. Not here: what a shape may be (config.py). Next: config.py.
"""

from __future__ import annotations

from typing import Any

from tinylm.model._errors import ModelError

_LLAMA: dict[str, Any] = {
    "norm": "rmsnorm",
    "norm_eps": 1e-5,
    "position": "rope",
    "activation": "swiglu",
    "bias": False,
    "attention_bias": False,
    "qk_norm": False,
    "tie_embeddings": False,
}
# Yang et al. 2025. The small Qwen3 models tie their embeddings.
_QWEN3 = _LLAMA | {"norm_eps": 1e-6, "qk_norm": True, "tie_embeddings": True}

PRESETS: dict[str, dict[str, Any]] = {
    # Radford et al. 2019. depth=12 and vocab_size=50257 is GPT-2 "small", 124M.
    "gpt2": {
        "norm": "layernorm",
        "norm_eps": 1e-5,
        "position": "learned",
        "activation": "gelu",
        "bias": True,
        "attention_bias": True,
        "qk_norm": False,
        "tie_embeddings": True,
    },
    # Touvron et al. 2023.
    "llama": _LLAMA,
    # Jiang et al. 2023: Llama with grouped queries and a sliding window.
    "mistral": _LLAMA,
    "qwen3": _QWEN3,
    "qwen3-moe": _QWEN3 | {"tie_embeddings": False, "experts": 8, "experts_per_token": 2},
    # Allal et al. 2025: Llama's layers, deep and narrow. depth=30, vocab_size=49152 is SmolLM2-135M.
    "smollm2": _LLAMA | {"tie_embeddings": True, "rope_theta": 1e5},
}

# SmolLM2-135M is 19.2 wide per layer
_WIDTH_PER_LAYER = {"gpt2": 64, "llama": 32, "mistral": 32, "qwen3": 32, "qwen3-moe": 32, "smollm2": 19.2}
_QUERIES_PER_KEY = {"mistral": 4, "smollm2": 3}  # where the heads divide so; elsewhere each head has its own key


def fields(name: str, depth: int, overrides: dict[str, Any]) -> dict[str, Any]:
    """Every field of the shape but vocab_size and depth; what `overrides` names stays as it is given."""
    if not isinstance(name, str) or name not in PRESETS:
        raise ModelError(f"preset: wanted one of {sorted(PRESETS)}, got {name!r}")
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
        raise ModelError(f"config: wanted depth to be a whole number of at least 1, got {depth!r}")
    out = {**PRESETS[name], **overrides}
    heads_alone = "heads" in overrides and "head_dim" not in overrides
    head_dim = out.setdefault("head_dim", 64)
    width = out.setdefault("width", _width(round(_WIDTH_PER_LAYER[name] * depth), head_dim))
    if "heads" not in out:
        if not isinstance(width, int) or not isinstance(head_dim, int) or head_dim < 1 or width % head_dim:
            raise ModelError(
                f"config: wanted width to be a multiple of head_dim, got width={width!r}, head_dim={head_dim!r}; "
                "give heads as well if that is meant"
            )
        out["heads"] = width // head_dim
    elif heads_alone:
        out["head_dim"] = _head_dim(width, out["heads"], head_dim)
    heads, group = out["heads"], _QUERIES_PER_KEY.get(name, 1)
    whole = isinstance(heads, int) and heads % group == 0
    out.setdefault("kv_heads", heads // group if whole else heads)
    if isinstance(width, int):
        out.setdefault("mlp_width", _mlp_width(width, out))
    context = out.setdefault("context", 256 if depth <= 8 else 1024)
    if name == "mistral" and isinstance(context, int):
        out.setdefault("window", max(1, context // 2))  # Mistral 7B: 4,096 of 8,192
    return out


def _width(wanted: int, head_dim: Any) -> int:
    """`wanted`, rounded up to a multiple of `head_dim` where that is a size (the config refuses what is not)."""
    return -(-wanted // head_dim) * head_dim if isinstance(head_dim, int) and head_dim > 0 else wanted


def _head_dim(width: Any, heads: Any, usual: int) -> int:
    """Heads of a number that was given share the width (the config refuses what is no number)."""
    if not isinstance(width, int) or not isinstance(heads, int) or heads < 1:
        return usual
    if width % heads:
        raise ModelError(
            f"config: wanted heads to divide width, got heads={heads}, width={width}; give head_dim as well if that is "
            "meant"
        )
    return width // heads


def _mlp_width(width: int, out: dict[str, Any]) -> int:
    if out["activation"] == "gelu":
        return 4 * width
    wanted = width * 8 / 3
    active = out.get("experts_per_token")
    if out.get("experts") and isinstance(active, int) and active > 0:
        wanted /= active  # the experts that a token meets are together as wide as a plain MLP
    return max(64, round(wanted / 64) * 64)
