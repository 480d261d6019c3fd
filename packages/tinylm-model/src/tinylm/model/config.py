"""The shape of a transformer: every choice that makes the weights what they are, the dial, and what a shape costs.

No torch here, so that `tinylm-model plan` and the scalar rung can use it. Not here: weights (transformer.py), the
Hugging Face names of these fields (_huggingface.py). Next: transformer.py.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from tinylm.model._errors import ModelError

Norm = Literal["rmsnorm", "layernorm"]
Position = Literal["rope", "learned"]
Activation = Literal["swiglu", "gelu"]

_CHOICES = {"norm": ("rmsnorm", "layernorm"), "position": ("rope", "learned"), "activation": ("swiglu", "gelu")}
_POSITIVE_INTS = ("vocab_size", "context", "depth", "width", "heads", "kv_heads", "head_dim", "mlp_width")
_POSITIVE_FLOATS = ("norm_eps", "rope_theta")
_BOOLS = ("bias", "attention_bias", "qk_norm", "tie_embeddings")

_PRESETS: dict[str, dict[str, Any]] = {
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
    "llama": {
        "norm": "rmsnorm",
        "norm_eps": 1e-5,
        "position": "rope",
        "activation": "swiglu",
        "bias": False,
        "attention_bias": False,
        "qk_norm": False,
        "tie_embeddings": False,
    },
    # Yang et al. 2025. The small Qwen3 models tie their embeddings.
    "qwen3": {
        "norm": "rmsnorm",
        "norm_eps": 1e-6,
        "position": "rope",
        "activation": "swiglu",
        "bias": False,
        "attention_bias": False,
        "qk_norm": True,
        "tie_embeddings": True,
    },
}

_WIDTH_PER_LAYER = {"gpt2": 64, "llama": 32, "qwen3": 32}


def _width(wanted: int, head_dim: Any) -> int:
    """`wanted`, rounded up to a multiple of `head_dim` where that is a size (the config refuses what is not)."""
    return -(-wanted // head_dim) * head_dim if isinstance(head_dim, int) and head_dim > 0 else wanted


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """A decoder-only transformer's shape. Raises ModelError where the fields contradict each other.

    `bias` is the MLP's two or three projections, `attention_bias` the four of attention (Hugging Face keeps them
    apart); a LayerNorm always has its bias. `activation` "gelu" is GPT-2's tanh form. `rope_theta` is unused with
    learned positions.
    """

    vocab_size: int
    context: int
    depth: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    norm: Norm = "rmsnorm"
    norm_eps: float = 1e-6
    position: Position = "rope"
    rope_theta: float = 10000.0
    activation: Activation = "swiglu"
    bias: bool = False
    attention_bias: bool = False
    qk_norm: bool = True
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        for name in _POSITIVE_INTS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ModelError(f"config: wanted {name} to be a whole number of at least 1, got {value!r}")
        for name in _POSITIVE_FLOATS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise ModelError(f"config: wanted {name} to be a number above 0, got {value!r}")
        for name in _BOOLS:
            if not isinstance(getattr(self, name), bool):
                raise ModelError(f"config: wanted {name} to be true or false, got {getattr(self, name)!r}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ModelError(f"config: wanted {name} to be one of {choices}, got {getattr(self, name)!r}")
        if self.heads % self.kv_heads:
            raise ModelError(
                f"config: wanted heads to be a multiple of kv_heads (each key/value head serves a whole group of query "
                f"heads), got heads={self.heads}, kv_heads={self.kv_heads}"
            )
        if self.position == "rope" and self.head_dim % 2:
            raise ModelError(f"config: RoPE rotates pairs, so it wants an even head_dim, got {self.head_dim}")

    @classmethod
    def preset(cls, name: str, vocab_size: int, depth: int, **overrides: Any) -> TransformerConfig:
        """The dial: `depth` sets the layers, and the width from them, rounded up to a whole number of heads of 64.

        "gpt2" is 64 wide per layer, as GPT-2 is, so that depth 12 is GPT-2 small. "llama" and "qwen3" are 32 wide per
        layer, deep and narrow like their smallest members (SmolLM2-135M 19, Qwen3-0.6B 37): at the same cost a small
        model reaches a lower loss so (docs/log.md has the figures).

        MLP width: 4 · width with GELU; with SwiGLU, which has three matrices, the multiple of 64 nearest to 8/3 · width
        (about as many parameters). Context: 256 up to depth 8, then 1024. Any field can be given by keyword; given a
        width, the heads follow from it, so a width that is no multiple of head_dim needs heads as well.
        """
        if name not in _PRESETS:
            raise ModelError(f"preset: wanted one of {sorted(_PRESETS)}, got {name!r}")
        if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
            raise ModelError(f"config: wanted depth to be a whole number of at least 1, got {depth!r}")
        unknown = overrides.keys() - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise ModelError(f"config: no such field: {', '.join(sorted(unknown))}")
        fields = {**_PRESETS[name], **overrides}
        head_dim = fields.setdefault("head_dim", 64)
        width = fields.setdefault("width", _width(_WIDTH_PER_LAYER[name] * depth, head_dim))
        if "heads" not in fields:
            if not isinstance(width, int) or not isinstance(head_dim, int) or head_dim < 1 or width % head_dim:
                raise ModelError(
                    f"config: wanted width to be a multiple of head_dim, got width={width!r}, head_dim={head_dim!r}; "
                    "give heads as well if that is meant"
                )
            fields["heads"] = width // head_dim
        fields.setdefault("kv_heads", fields["heads"])
        if isinstance(width, int):
            wide = 4 * width if fields["activation"] == "gelu" else max(64, round(width * 8 / 3 / 64) * 64)
            fields.setdefault("mlp_width", wide)
        fields.setdefault("context", 256 if depth <= 8 else 1024)
        return cls(vocab_size=vocab_size, depth=depth, **fields)

    def parameter_count(self, embeddings: bool = True) -> int:
        """How many numbers are learned. `embeddings=False` leaves out the token and position tables (and an untied
        head), the N of the scaling laws (Kaplan et al. 2020)."""
        heads, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        norm = self.width * (2 if self.norm == "layernorm" else 1)
        attention = self.width * (heads + 2 * kv) + heads * self.width
        attention += (heads + 2 * kv + self.width) * self.attention_bias
        if self.qk_norm:
            attention += 2 * self.head_dim * (2 if self.norm == "layernorm" else 1)
        inner = 2 if self.activation == "swiglu" else 1
        mlp = (inner + 1) * self.width * self.mlp_width + (inner * self.mlp_width + self.width) * self.bias
        total = self.depth * (attention + mlp + 2 * norm) + norm
        if embeddings:
            total += self.vocab_size * self.width * (1 if self.tie_embeddings else 2)
            total += self.context * self.width if self.position == "learned" else 0
        return total

    def flops_per_token(self, context: int | None = None) -> int:
        """Training FLOPs per token, forward and backward: 6 N + 12 · layers · heads · head_dim · context.

        PaLM, appendix B (Chowdhery et al. 2022). N counts what takes part in a matrix product: the blocks and the head;
        looking up an embedding costs none. Causal attention needs half of the second term; it is counted whole, by
        convention.
        """
        matrices = self.parameter_count(embeddings=False) + self.vocab_size * self.width
        return 6 * matrices + 12 * self.depth * self.heads * self.head_dim * (context or self.context)
