"""Which tensor of a GGUF file holds which of our parameters, and how its rows are ordered there.

GPT-2 keeps q, k and v as one matrix. Llama's files (architecture "llama") keep the rows of q and k reordered, because
llama.cpp turns neighbours (2i, 2i + 1) where Hugging Face, and we, turn (i, i + head_dim / 2). Not here: the shapes of
our parameters (_layout.py). Source: convert_hf_to_gguf.py and llama-arch.cpp of llama.cpp. Next: files.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from tinylm.model._errors import ModelError
from tinylm.model._layout import shapes
from tinylm.model.config import TransformerConfig
from tinylm.model.gguf import rope
from tinylm.model.gguf.metadata import architecture

_TOP = {"embed": "token_embd", "positions": "position_embd", "final_norm": "output_norm", "head": "output"}
_BLOCK = {
    "attention_norm": "attn_norm",
    "attention.q": "attn_q",
    "attention.k": "attn_k",
    "attention.v": "attn_v",
    "attention.q_norm": "attn_q_norm",
    "attention.k_norm": "attn_k_norm",
    "attention.output": "attn_output",
    "mlp_norm": "ffn_norm",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
    "mlp.router": "ffn_gate_inp",
}


@dataclass(frozen=True)
class Placed:
    """A tensor of the file: our parameters, one below the other; `heads` of its rows are in llama.cpp's order, or 0."""

    parts: tuple[str, ...]
    heads: int = 0


def tensors(config: TransformerConfig) -> dict[str, Placed]:
    """Every tensor of the file by its name in GGUF. A tied head is the embedding and is not stored again."""
    reordered = {"attention.q": config.heads, "attention.k": config.kv_heads} if architecture(config) == "llama" else {}
    table: dict[str, Placed] = {}
    for ours in shapes(config):
        module, _, kind = ours.rpartition(".")
        if not module.startswith("blocks."):
            table[f"{_TOP[module]}.{kind}"] = Placed((ours,))
            continue
        _, layer, part = module.split(".", 2)
        if architecture(config) == "gpt2" and part in ("attention.q", "attention.k", "attention.v"):
            parts = tuple(f"blocks.{layer}.attention.{name}.{kind}" for name in "qkv")
            table[f"blk.{layer}.attn_qkv.{kind}"] = Placed(parts)
        else:
            stacked = "_exps" if config.experts and part in ("mlp.gate", "mlp.up", "mlp.down") else ""
            table[f"blk.{layer}.{_BLOCK[part]}{stacked}.{kind}"] = Placed((ours,), reordered.get(part, 0))
    return table


def check_shapes(config: TransformerConfig, found: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Compare names and shapes in a file with what its pairs describe; ModelError says what differs."""
    ours, wanted = shapes(config), {}
    for name, placed in tensors(config).items():
        first = ours[placed.parts[0]]
        wanted[name] = (sum(ours[part][0] for part in placed.parts), *first[1:])
    missing = sorted(wanted.keys() - found.keys())
    extra = sorted(found.keys() - wanted.keys() - {rope.TENSOR})  # that one is in the config
    if missing or extra:
        raise ModelError(
            f"{where}: wanted the {len(wanted)} tensors that its pairs describe, got {len(missing)} missing "
            f"({', '.join(missing[:3]) or 'none'}) and {len(extra)} unknown ({', '.join(extra[:3]) or 'none'})"
        )
    for name, shape in wanted.items():
        if found[name] != shape:
            raise ModelError(f"{where}: wanted {name} of shape {shape}, got {found[name]}")


def to_halves(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """llama.cpp's order of a head's rows, the pairs (2i, 2i + 1), into ours, (i, i + head_dim / 2)."""
    split = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return split.swapaxes(1, 2).reshape(rows.shape)


def to_neighbours(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """The inverse of `to_halves`."""
    split = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return split.swapaxes(1, 2).reshape(rows.shape)
