"""Which tensor in a Hugging Face file holds which of our parameters, and in what shape.

No torch and no files here, so that the scalar rung can use it. Not here: config.json (_huggingface.py), reading and
writing (checkpoint.py). Next: checkpoint.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tinylm.model._errors import ModelError
from tinylm.model._huggingface import model_type
from tinylm.model.config import TransformerConfig


@dataclass(frozen=True)
class Stored:
    """A tensor in the file: ours, one below the other in order (GPT-2 keeps q, k, v as one), and turned if `transposed`
    (GPT-2's Conv1D keeps (in, out) where torch.nn.Linear keeps (out, in)); or of ours, which has one matrix per expert,
    that of `expert`."""

    parts: tuple[str, ...]
    transposed: bool = False
    expert: int | None = None


def tensors(config: TransformerConfig) -> dict[str, Stored]:
    """Every tensor of the file by its Hugging Face name. A tied head is the embedding and is not stored again."""
    return _gpt2_tensors(config) if model_type(config) == "gpt2" else _llama_tensors(config)


def shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each of our parameters, by our name."""
    width, heads, kv = config.width, config.heads * config.head_dim, config.kv_heads * config.head_dim
    here: dict[str, tuple[int, ...]] = {"embed": (config.vocab_size, width), "positions": (config.context, width)}
    here |= {"head": (config.vocab_size, width), "final_norm": (width,), "attention_norm": (width,)}
    here |= {"mlp_norm": (width,), "attention.q_norm": (config.head_dim,), "attention.k_norm": (config.head_dim,)}
    here |= {"attention.q": (heads, width), "attention.k": (kv, width), "attention.v": (kv, width)}
    here |= {"attention.output": (width, heads), "mlp.down": (width, config.mlp_width)}
    here |= {"mlp.gate": (config.mlp_width, width), "mlp.up": (config.mlp_width, width)}
    if config.experts:
        here |= {f"mlp.{name}": (config.experts, *here[f"mlp.{name}"]) for name in ("gate", "up", "down")}
        here["mlp.router"] = (config.experts, width)
    out = {}
    for stored in tensors(config).values():
        for part in stored.parts:
            layer, _, kind = part.rpartition(".")
            shape = here[layer.split(".", 2)[2] if layer.startswith("blocks.") else layer]
            out[part] = shape if kind == "weight" else shape[:1]
    return out


def file_shape(stored: Stored, ours: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The shape in the file, given the shapes of our parameters."""
    first = ours[stored.parts[0]]
    if stored.expert is not None:
        return first[1:]
    shape = (sum(ours[part][0] for part in stored.parts), *first[1:])
    return shape[::-1] if stored.transposed else shape


def check_shapes(config: TransformerConfig, found: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Compare names and shapes in a checkpoint with what its config describes; ModelError says what differs."""
    if max(config.depth, config.experts) > len(found):  # before a table of a billion layers is made
        raise ModelError(
            f"{where}: wanted the tensors of {config.depth} layers"
            + (f" with {config.experts} experts each" if config.experts else "")
            + f", as config.json describes, got {len(found)} tensors; they do not belong together"
        )
    ours = shapes(config)
    wanted = {name: file_shape(stored, ours) for name, stored in tensors(config).items()}
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or extra:
        raise ModelError(
            f"{where}: wanted the {len(wanted)} tensors that config.json describes, got {len(missing)} missing "
            f"({_some(missing)}) and {len(extra)} unknown ({_some(extra)}); they do not belong together"
        )
    for name, shape in wanted.items():
        if found[name] != shape:
            raise ModelError(
                f"{where}: wanted {name} of shape {shape}, got {found[name]}; config.json and the weights do not "
                "belong together"
            )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") if names else "none"


def _gpt2_tensors(config: TransformerConfig) -> dict[str, Stored]:
    table = {
        "transformer.wte.weight": Stored(("embed.weight",)),
        "transformer.wpe.weight": Stored(("positions.weight",)),
        "transformer.ln_f.weight": Stored(("final_norm.weight",)),
        "transformer.ln_f.bias": Stored(("final_norm.bias",)),
    }
    linear = {
        "attn.c_attn": ("attention.q", "attention.k", "attention.v"),
        "attn.c_proj": ("attention.output",),
        "mlp.c_fc": ("mlp.up",),
        "mlp.c_proj": ("mlp.down",),
    }
    norms = {"ln_1": "attention_norm", "ln_2": "mlp_norm"}
    for layer in range(config.depth):
        there, here = f"transformer.h.{layer}", f"blocks.{layer}"
        for theirs, ours in linear.items():
            table[f"{there}.{theirs}.weight"] = Stored(tuple(f"{here}.{part}.weight" for part in ours), True)
            table[f"{there}.{theirs}.bias"] = Stored(tuple(f"{here}.{part}.bias" for part in ours))
        for theirs, our in norms.items():
            table[f"{there}.{theirs}.weight"] = Stored((f"{here}.{our}.weight",))
            table[f"{there}.{theirs}.bias"] = Stored((f"{here}.{our}.bias",))
    return table if config.tie_embeddings else table | {"lm_head.weight": Stored(("head.weight",))}


def _llama_tensors(config: TransformerConfig) -> dict[str, Stored]:
    table = {
        "model.embed_tokens.weight": Stored(("embed.weight",)),
        "model.norm.weight": Stored(("final_norm.weight",)),
    }
    attention = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "output"}
    norms = {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"}
    if config.qk_norm:
        norms |= {"self_attn.q_norm": "attention.q_norm", "self_attn.k_norm": "attention.k_norm"}
    for layer in range(config.depth):
        there, here = f"model.layers.{layer}", f"blocks.{layer}"
        for theirs, ours in norms.items():
            table[f"{there}.{theirs}.weight"] = Stored((f"{here}.{ours}.weight",))
        for theirs, ours in attention.items():
            biased = config.attention_bias is True or (config.attention_bias == "qkv" and ours != "output")
            for kind in ("weight", "bias") if biased else ("weight",):
                table[f"{there}.self_attn.{theirs}.{kind}"] = Stored((f"{here}.attention.{ours}.{kind}",))
        table |= _llama_mlp(config, f"{there}.mlp", f"{here}.mlp")
    return table if config.tie_embeddings else table | {"lm_head.weight": Stored(("head.weight",))}


def _llama_mlp(config: TransformerConfig, there: str, here: str) -> dict[str, Stored]:
    names = ("gate", "up", "down")
    if config.experts:
        table = {f"{there}.gate.weight": Stored((f"{here}.router.weight",))}
        for expert in range(config.experts):
            for name in names:
                table[f"{there}.experts.{expert}.{name}_proj.weight"] = Stored(
                    (f"{here}.{name}.weight",), expert=expert
                )
        return table
    kinds = ("weight", "bias") if config.bias else ("weight",)
    return {f"{there}.{name}_proj.{kind}": Stored((f"{here}.{name}.{kind}",)) for name in names for kind in kinds}
