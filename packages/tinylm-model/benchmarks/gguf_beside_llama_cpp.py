"""llama.cpp opens what `convert --to gguf` writes: how far its logits are from ours, and whether greedy tokens agree.

    python packages/tinylm-model/benchmarks/gguf_beside_llama_cpp.py [--json FILE] [--quick] [CHECKPOINT ...]

Each shape gets random weights and 32 random ids; a checkpoint directory keeps its own and its tokenizer. llama.cpp
computes on one thread with a float32 cache, a token at a time: its products of q8_0 for several tokens (0.3.36) end the
process on a Xeon with AMX, with files that it quantised itself, too. Needs llama-cpp-python (0.3.16 or 0.3.36; pip
builds it with CMake, in about ten minutes on two cores) and says so where it is missing. It does NOT time anything.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinylm.model import Transformer, TransformerConfig
from tinylm.model.gguf import files
from tinylm.model.gguf.tokenizer import NO_VOCABULARY, tokenizer_pairs
from tinylm.observability.tables import cells, new_table, write_table

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "llama, 4 heads on 2": ("llama", {"width": 256, "kv_heads": 2}),
    "qwen2": ("llama", {"attention_bias": "qkv", "tie_embeddings": True}),
    "qwen3": ("qwen3", {}),
    "qwen3-moe, 2 of 8": ("qwen3-moe", {"width": 256, "mlp_width": 128}),
    "llama, linear": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "llama, llama3": ("llama", {"rope_theta": 5e5, "rope_scaling": LLAMA3 | {"original_max_position_embeddings": 64}}),
    "llama, yarn": (
        "llama",
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
    ),
}


def made(preset: str, fields: dict[str, Any]) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig.preset(preset, 2048, 2, **fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def theirs(path: Path, ids: list[int]) -> np.ndarray[Any, Any]:
    """llama.cpp's logits after each of the ids."""
    from llama_cpp import Llama

    model = Llama(str(path), n_ctx=64, n_batch=1, logits_all=True, verbose=False, n_threads=1, type_k=0, type_v=0)
    model.eval(ids)
    return np.array(model.scores[: len(ids)])


def main() -> None:
    parser = argparse.ArgumentParser(description="llama.cpp's logits of our GGUF files beside ours.")
    parser.add_argument("checkpoints", nargs="*", type=Path, help="directories to compare as well")
    parser.add_argument("--json", type=Path, help="write the table here as well")
    parser.add_argument("--quick", action="store_true", help="two shapes only")
    options = parser.parse_args()
    if importlib.util.find_spec("llama_cpp") is None:
        print("nothing compared: llama-cpp-python is not installed: pip install llama-cpp-python")
        return
    torch.set_num_threads(1)
    cases = {
        name: (made(*shape), NO_VOCABULARY) for name, shape in list(SHAPES.items())[: 2 if options.quick else None]
    }
    for folder in options.checkpoints:
        model = Transformer.load(folder, dtype="float32").eval()
        cases[folder.name] = (model, tokenizer_pairs(folder, model.config.vocab_size)[0])
    rows: list[list[Any]] = []
    with tempfile.TemporaryDirectory() as temporary, torch.no_grad():
        for name, (model, pairs) in cases.items():
            ids = torch.randint(0, model.config.vocab_size, (1, 32), generator=torch.Generator().manual_seed(1))
            ours = model(ids)[0].numpy()
            for kind in ("float32", "float16", "q8_0"):
                path = Path(temporary, "x.gguf")
                files.save(model, path, kind, pairs)
                got = theirs(path, ids[0].tolist())
                agree = float((got.argmax(1) == ours.argmax(1)).mean())
                rows.append([name, kind, float(np.abs(got - ours).max()), float(np.abs(ours).max()), agree])
    columns = ["shape", "file", "largest difference of a logit", "largest logit", "same greedy token"]
    table = new_table(
        "llama.cpp beside ours", "python packages/tinylm-model/benchmarks/gguf_beside_llama_cpp.py", columns, rows
    )
    table["versions"]["llama-cpp-python"] = version("llama-cpp-python")
    for line in [table["columns"], *cells(table)]:
        print("  ".join(text.ljust(26) for text in line))
    if options.json is not None:
        write_table(table, options.json)


if __name__ == "__main__":
    main()
