"""The shape of a transformer: every choice that makes the weights what they are, and what a shape costs.

No torch here, so that `tinylm-model plan` and the scalar rung can use it. Not here: the dial (presets.py), the numbers
of a RoPE scaling (rope_scaling.py), weights (transformer.py), the Hugging Face names of these fields (_huggingface.py).
Next: transformer.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from tinylm.model import presets
from tinylm.model._errors import ModelError
from tinylm.model.rope_scaling import RopeScaling, YarnScaling, rope_scaling

Norm = Literal["rmsnorm", "layernorm"]
Position = Literal["rope", "learned"]
Activation = Literal["swiglu", "gelu"]

_CHOICES = {
    "norm": ("rmsnorm", "layernorm"),
    "position": ("rope", "learned"),
    "activation": ("swiglu", "gelu"),
    "attention_bias": (False, True, "qkv"),
}
_POSITIVE_INTS = ("vocab_size", "context", "depth", "width", "heads", "kv_heads", "head_dim", "mlp_width")
_INTS = ("window_from", "experts", "experts_per_token")
_POSITIVE_FLOATS = ("norm_eps", "rope_theta")
_BOOLS = ("bias", "qk_norm", "tie_embeddings", "normalize_experts")
_LARGEST = (1 << 32) - 1
_SMALLEST_FLOAT, _LARGEST_FLOAT = 1e-30, 1e30  # float32 holds both, and their square roots times any size


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """A decoder-only transformer's shape. Raises ModelError where the fields contradict each other.

    - `bias` is the MLP's two or three projections, `attention_bias` the four of attention (Hugging Face keeps them
      apart), or "qkv" for the three before it (Qwen2); a LayerNorm always has its bias.
    - `activation` "gelu" is GPT-2's tanh form.
    - `rope_theta` and `rope_scaling` (rope_scaling.py; config.json's object will do) are unused with learned positions.
    - `window`: a token attends to itself and the window - 1 before it, in the layers from `window_from` on (Beltagy et
      al. 2020; Jiang et al. 2023). None: to all before it.
    - `experts` above 0 makes every MLP that many of width `mlp_width`, of which a router picks `experts_per_token` for
      each token (Shazeer et al. 2017); their probabilities are divided by their sum if `normalize_experts`.
      `balance_weight` times the load-balancing loss is part of the training loss (experts.py).
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
    rope_scaling: RopeScaling | None = None
    window: int | None = None
    window_from: int = 0
    activation: Activation = "swiglu"
    experts: int = 0
    experts_per_token: int = 0
    normalize_experts: bool = True
    balance_weight: float = 0.001
    bias: bool = False
    attention_bias: bool | Literal["qkv"] = False
    qk_norm: bool = True
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        for name in _POSITIVE_INTS:
            self._whole(name, 1)
        for name in _INTS:
            self._whole(name, 0)
        if self.window is not None:
            self._whole("window", 1)
        for name in _POSITIVE_FLOATS:
            value = getattr(self, name)
            if not _is_number(value) or not _SMALLEST_FLOAT <= value <= _LARGEST_FLOAT:
                raise ModelError(
                    f"config: wanted {name} to be a number above 0 ({_SMALLEST_FLOAT} to {_LARGEST_FLOAT}), "
                    f"got {value!r:.80}"
                )
        if not _is_number(self.balance_weight) or not 0 <= self.balance_weight < _LARGEST_FLOAT:
            got = f"{self.balance_weight!r:.80}"
            raise ModelError(f"config: wanted balance_weight to be a number of at least 0, got {got}")
        for name in _BOOLS:
            if not isinstance(getattr(self, name), bool):
                raise ModelError(f"config: wanted {name} to be true or false, got {getattr(self, name)!r:.80}")
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if not isinstance(value, str | bool) or value not in choices:
                raise ModelError(f"config: wanted {name} to be one of {choices}, got {value!r:.80}")
        if isinstance(self.rope_scaling, Mapping):
            object.__setattr__(self, "rope_scaling", rope_scaling(self.rope_scaling, self.context))
        self._check_together()

    def layer_window(self, layer: int) -> int | None:
        """How many tokens a token of this layer attends to, itself among them; None: all before it."""
        return self.window if layer >= self.window_from else None

    def plain_or_refuse(self, who: str) -> None:
        """ModelError where the shape has what `who` does not carry: a window, experts, stretched RoPE, biases of q, k
        and v alone."""
        beyond = (
            ("a sliding window", self.window is not None),
            ("experts", self.experts > 0),
            ("RoPE scaling", self.rope_scaling is not None),
            ("biases of q, k and v alone", self.attention_bias == "qkv"),
        )
        has = [name for name, is_so in beyond if is_so]
        if has:
            raise ModelError(
                f"{who} does not carry {' or '.join(has)}, got a shape with it; use tinylm.model.Transformer"
            )

    @classmethod
    def preset(cls, name: str, vocab_size: int, depth: int, **overrides: Any) -> TransformerConfig:
        """The dial: `depth` sets the layers, and the width from them, rounded up to a whole number of heads of 64.

        "gpt2" is 64 wide per layer, as GPT-2 is, so that depth 12 is GPT-2 small. "llama", "mistral", "qwen3" and
        "qwen3-moe" are 32 wide per layer, deep and narrow like their smallest members (Qwen3-0.6B 37): at the same cost
        a small model reaches a lower loss so (docs/log.md has the figures). "smollm2" is narrower still, and depth 30
        is SmolLM2-135M.

        MLP width: 4 · width with GELU; with SwiGLU, which has three matrices, the multiple of 64 nearest to 8/3 · width
        (about as many parameters), with experts shared among those that a token meets. Context: 256 up to depth 8, then
        1024; "mistral" has a window of half of it. Any field can be given by keyword; given a width, the heads follow
        from it, so a width that is no multiple of head_dim needs heads as well. Heads that are given share the width,
        which they must divide, unless head_dim is given, too.
        """
        unknown = overrides.keys() - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            names = ", ".join(field.name for field in dataclasses.fields(cls))
            raise ModelError(f"config: no such field: {', '.join(sorted(unknown))}; there are {names}")
        return cls(vocab_size=vocab_size, depth=depth, **presets.fields(name, depth, overrides))

    def parameter_count(self, embeddings: bool = True, active: bool = False) -> int:
        """How many numbers are learned. `embeddings=False` leaves out the token and position tables (and an untied
        head), the N of the scaling laws (Kaplan et al. 2020); `active=True` counts of the experts only as many as a
        token meets."""
        heads, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        norm = self.width * (2 if self.norm == "layernorm" else 1)
        attention = self.width * (heads + 2 * kv) + heads * self.width
        attention += (heads + 2 * kv) * bool(self.attention_bias) + self.width * (self.attention_bias is True)
        if self.qk_norm:
            attention += 2 * self.head_dim * (2 if self.norm == "layernorm" else 1)
        inner = 2 if self.activation == "swiglu" else 1
        mlp = (inner + 1) * self.width * self.mlp_width + (inner * self.mlp_width + self.width) * self.bias
        if self.experts:
            mlp = mlp * (self.experts_per_token if active else self.experts) + self.experts * self.width
        total = self.depth * (attention + mlp + 2 * norm) + norm
        if embeddings:
            total += self.vocab_size * self.width * (1 if self.tie_embeddings else 2)
            total += self.context * self.width if self.position == "learned" else 0
        return total

    def flops_per_token(self, context: int | None = None) -> int:
        """Training FLOPs per token, forward and backward: 6 N + 12 · heads · head_dim · context for each layer.

        PaLM, appendix B (Chowdhery et al. 2022). N counts what takes part in a matrix product: the blocks, of their
        experts those that a token meets, and the head; looking up an embedding costs none. Causal attention needs half
        of the second term; it is counted whole, by convention, and a window as the context where it is shorter.
        """
        matrices = self.parameter_count(embeddings=False, active=True) + self.vocab_size * self.width
        seen = context or self.context
        keys = sum(min(seen, self.layer_window(layer) or seen) for layer in range(self.depth))
        return 6 * matrices + 12 * self.heads * self.head_dim * keys

    def _whole(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _LARGEST:
            most = "" if isinstance(value, int) and value < least else f" and at most {_LARGEST}"
            raise ModelError(f"config: wanted {name} to be a whole number of at least {least}{most}, got {value!r:.80}")

    def _check_together(self) -> None:
        if self.heads % self.kv_heads:
            raise ModelError(
                f"config: wanted heads to be a multiple of kv_heads (each key/value head serves a whole group of query "
                f"heads), got heads={self.heads}, kv_heads={self.kv_heads}"
            )
        if self.position == "rope" and self.head_dim % 2:
            raise ModelError(f"config: RoPE rotates pairs, so it wants an even head_dim, got {self.head_dim}")
        if self.rope_scaling is not None:
            if not isinstance(self.rope_scaling, RopeScaling):
                raise ModelError(f"config: wanted rope_scaling to be an object, got {self.rope_scaling!r:.80}")
            if self.position != "rope":
                raise ModelError("config: rope_scaling wants position 'rope', got 'learned'")
            if isinstance(self.rope_scaling, YarnScaling) and self.rope_theta <= 1:
                raise ModelError(f"config: YaRN wants a rope_theta above 1, got {self.rope_theta}")
        if self.window_from and (self.window is None or self.window_from >= self.depth):
            raise ModelError(
                f"config: wanted window_from below depth ({self.depth}) and with a window, got "
                f"window_from={self.window_from}, window={self.window}"
            )
        if not (1 <= self.experts_per_token <= self.experts or self.experts == self.experts_per_token == 0):
            raise ModelError(
                f"config: wanted experts_per_token from 1 to experts ({self.experts}), or both 0, "
                f"got {self.experts_per_token}"
            )
        if self.experts and (self.activation != "swiglu" or self.bias):
            raise ModelError(
                f"config: experts want activation 'swiglu' and no bias, got {self.activation!r}, bias={self.bias}"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
