"""How far our logits are from transformers', family by family, both ways through the files.

    python packages/tinylm-model/benchmarks/conformance.py [--json FILE]

Random weights in float32, large enough that the logits' standard deviation is about 1 or more; three layers of width
128; 192 tokens, beyond each window (40) and each old context (64) there is. "ours → transformers": our directory opened
there; "transformers → ours": theirs, in shards, opened here. The figure is the largest difference between two logits.
The tests hold every cell to 1e-5 on smaller shapes (tests/model/test_model_families.py).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from tinylm.model import KVCache, Transformer, TransformerConfig
from tinylm.observability.tables import cells, new_table, write_table

COMMAND = "python packages/tinylm-model/benchmarks/conformance.py"
TIME = 192
OLD = {"original_max_position_embeddings": 64}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **OLD}
YARN = {"rope_type": "yarn", "factor": 4.0, **OLD}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2": ("gpt2", {}),
    "Llama 2": ("llama", {}),
    "Llama 3, RoPE by parts": ("llama", {"rope_theta": 5e5, "rope_scaling": LLAMA3, "kv_heads": 2}),
    "Llama, linear RoPE": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "SmolLM2": ("smollm2", {"width": 96, "heads": 6, "head_dim": 16}),
    "Mistral, sliding window": ("mistral", {"window": 40, "kv_heads": 2}),
    "Qwen2, biases of q, k, v": ("llama", {"attention_bias": "qkv", "kv_heads": 2, "norm_eps": 1e-6}),
    "Qwen3": ("qwen3", {"kv_heads": 2, "head_dim": 64}),
    "Qwen3, YaRN": ("qwen3", {"rope_theta": 1e6, "rope_scaling": YARN}),
    "Qwen3-MoE, 8 experts": ("qwen3-moe", {"kv_heads": 2}),
}
COLUMNS = ("family", "ours → transformers", "transformers → ours", "padded left", "padded right", "with a cache")


def make(preset: str, fields: dict[str, Any]) -> Transformer:
    """A model of the family with random weights."""
    fields = {"width": 128, "heads": 4, "head_dim": 32, "mlp_width": 160, "context": 256} | fields
    torch.manual_seed(0)
    model = Transformer(TransformerConfig.preset(preset, 997, 3, **fields)).eval()
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def theirs(folder: Path) -> Any:
    """The same directory in transformers."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def apart(one: Tensor, other: Tensor) -> float:
    """The largest difference."""
    return (one - other).abs().max().item()


def padded(model: Transformer, other: Any, ids: Tensor, real: slice) -> float:
    """The largest difference at the real tokens of a batch whose first row has padding."""
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[0] = False
    mask[0, real] = True
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    wanted = other(ids, attention_mask=mask.long(), position_ids=positions).logits
    return apart(model(ids, mask=mask)[mask], wanted[mask])


def cached(model: Transformer, wanted: Tensor, ids: Tensor) -> float:
    """A prompt of 100 tokens, then one at a time."""
    cache = KVCache(model.config, ids.shape[0], TIME)
    pieces = [model(ids[:, :100], cache=cache)]
    pieces += [model(ids[:, i : i + 1], cache=cache) for i in range(100, TIME)]
    return apart(torch.cat(pieces, dim=1), wanted)


@torch.no_grad()
def row(name: str) -> list[object]:
    """One line of the table."""
    model = make(*FAMILIES[name])
    ids = torch.randint(0, 997, (2, TIME))
    with tempfile.TemporaryDirectory() as folder:
        ours, shards = Path(folder) / "ours", Path(folder) / "shards"
        model.save(ours)
        other = theirs(ours)
        wanted = other(ids).logits
        figures: list[object] = [apart(model(ids), wanted)]
        other.save_pretrained(shards, max_shard_size="200KB")
        figures.append(apart(Transformer.load(shards)(ids), wanted))
    figures += [padded(model, other, ids, slice(50, None)), padded(model, other, ids, slice(0, 142))]
    return [name, *figures, cached(model, wanted, ids)]


def main() -> None:
    """Print the table; --json writes it for the documents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table here")
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    title = "Largest difference to transformers' logits, float32, 192 tokens"
    table = new_table(title, COMMAND, COLUMNS, [row(name) for name in FAMILIES])
    table["versions"]["transformers"] = transformers.__version__
    for line in [list(COLUMNS), *cells(table)]:
        print(" | ".join(line))
    if options.json is not None:
        write_table(table, options.json)


if __name__ == "__main__":
    main()
