"""LoRA: the matrices stand still, and each learns a correction of low rank.

    y = x Wᵀ + (α / r) x Aᵀ Bᵀ        A (r, in) random, B (out, r) zero at first, so that nothing changes at first

(Hu et al. 2021, https://arxiv.org/abs/2106.09685, eq. 3). Only A and B are trained; `merge` adds (α / r) B A to W and
the model is an ordinary one again. An adapter is kept as Hugging Face's peft keeps it (adapter_config.json,
adapter_model.safetensors), by the names that the matrices have in our checkpoints. Not here: the loss (sft.py).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinylm.model import Transformer
from tinylm.training._errors import TrainingError

# Our matrices by the names of Hugging Face's Llama and Qwen3. GPT-2's q, k and v are one matrix there: refused.
_NAMES = {
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
_PREFIX = "base_model.model.model.layers"


class LoRALinear(nn.Module):
    """A linear layer that stands still, and its correction."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base, self.scale = base.requires_grad_(False), alpha / rank
        like: dict[str, Any] = {"dtype": base.weight.dtype, "device": base.weight.device}
        self.a = nn.Parameter(torch.empty(rank, base.in_features, **like))
        self.b = nn.Parameter(torch.zeros(base.out_features, rank, **like))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))  # ± 1 / sqrt(in), as peft and torch.nn.Linear begin

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        out: Tensor = self.base(x) + F.linear(F.linear(x, self.a), self.b) * self.scale
        return out

    def merged(self) -> nn.Linear:
        """The layer with its correction added to its matrix."""
        with torch.no_grad():
            self.base.weight += self.scale * self.b @ self.a
        return self.base.requires_grad_(True)


def add_adapters(model: Transformer, rank: int, alpha: float) -> list[nn.Parameter]:
    """Put an adapter around every matrix of every block; everything else stands still. Returns what is to be trained.

    TrainingError for a shape whose matrices peft knows by other names, and for a rank above a matrix's own.
    """
    if model.config.position != "rope" or model.config.experts:
        raise TrainingError(
            "wanted a model of the shape of Llama or Qwen3 without experts for --method lora, got another, whose "
            "matrices an adapter file keeps joined together: use --method sft"
        )
    if rank > model.config.width:
        raise TrainingError(f"wanted a rank of at most the width {model.config.width}, got {rank}")
    model.requires_grad_(False)
    trained: list[nn.Parameter] = []
    for block in model.blocks:
        for name in _NAMES:
            parent, _, leaf = name.rpartition(".")
            adapter = LoRALinear(block.get_submodule(name), rank, alpha)  # type: ignore[arg-type]  # all are Linear
            setattr(block.get_submodule(parent), leaf, adapter)
            trained += [adapter.a, adapter.b]
    return trained


def merge(model: Transformer) -> None:
    """Take the adapters away and leave what they learned in the matrices."""
    for block in model.blocks:
        for name in _NAMES:
            parent, _, leaf = name.rpartition(".")
            adapter = block.get_submodule(name)
            if isinstance(adapter, LoRALinear):
                setattr(block.get_submodule(parent), leaf, adapter.merged())
    model.requires_grad_(True)


def save_adapter(model: Transformer, directory: str | Path, base: str) -> None:
    """Write what the adapters hold in peft's layout.

    base: where the model below them stands, kept as it is given. peft and transformers look for a relative path from
    the directory in which the program runs, not from the adapter's own. A program that runs elsewhere names the base:
    `PeftModel.from_pretrained(base, directory)`.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    rank, alpha = 0, 0.0
    for layer, block in enumerate(model.blocks):
        for name, theirs in _NAMES.items():
            adapter = block.get_submodule(name)
            assert isinstance(adapter, LoRALinear), f"no adapter at blocks.{layer}.{name}"
            rank, alpha = adapter.a.shape[0], adapter.scale * adapter.a.shape[0]
            key = f"{_PREFIX}.{layer}.{theirs}"
            tensors |= {f"{key}.lora_A.weight": adapter.a.detach(), f"{key}.lora_B.weight": adapter.b.detach()}
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted(theirs.rpartition(".")[2] for theirs in _NAMES.values()),
    }
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors"
    )
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")


def load_adapter(model: Transformer, directory: str | Path) -> None:
    """Put the adapters of peft's layout around the model's matrices: ours, or peft's own with the same targets.

    TrainingError for what is missing, damaged, of another shape, or of a kind of LoRA that is not here.
    """
    folder = Path(directory)
    settings = _settings(folder)
    rank, alpha = settings["r"], settings["lora_alpha"]
    add_adapters(model, rank, alpha)
    found = _tensors(folder / "adapter_model.safetensors")
    for layer, block in enumerate(model.blocks):
        for name, theirs in _NAMES.items():
            adapter = block.get_submodule(name)
            assert isinstance(adapter, LoRALinear)
            for parameter, kind in ((adapter.a, "lora_A"), (adapter.b, "lora_B")):
                key = f"{_PREFIX}.{layer}.{theirs}.{kind}.weight"
                tensor = found.pop(key, None)
                if tensor is None or tensor.shape != parameter.shape:
                    got = "none" if tensor is None else tuple(tensor.shape)
                    raise TrainingError(f"{folder}: wanted {key} of shape {tuple(parameter.shape)}, got {got}")
                with torch.no_grad():
                    parameter.copy_(tensor)
    if found:
        raise TrainingError(f"{folder}: got tensors that this model has no place for: {', '.join(sorted(found)[:3])}")


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "adapter_config.json"
    try:
        settings = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"wanted an adapter's settings at {path}, got: {error}") from None
    if not isinstance(settings, dict):
        raise TrainingError(f"wanted an adapter's settings at {path}, got JSON that is no object")
    ours = {"peft_type": ("LORA",), "bias": ("none",), "use_dora": (False, None), "use_rslora": (False, None)}
    for name, allowed in ours.items():
        if settings.get(name, allowed[-1]) not in allowed:
            raise TrainingError(f"{path}: wanted {name} {allowed[0]}, got {settings[name]!r}")
    for name in ("rank_pattern", "alpha_pattern"):
        if settings.get(name):
            raise TrainingError(f"{path}: wanted one rank and one alpha for all matrices, got {name}")
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, (int, float)):
        raise TrainingError(f"{path}: wanted r, a whole number from 1 on, and lora_alpha, got {rank!r} and {alpha!r}")
    return settings


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"wanted an adapter's tensors at {path}, got: {error}") from None
