"""What a fine-tuning is made of: the method with its data, and the optimisers of what it trains.

Not here: the loop (run.py), the losses (sft.py, lora.py, dpo.py, grpo.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from tinylm.model import Transformer
from tinylm.tokenizer import Tokenizer
from tinylm.training._errors import TrainingError
from tinylm.training.finetuning import chat_data, dpo, grpo, rewards, sft
from tinylm.training.finetuning.config import FinetuneConfig
from tinylm.training.optimizers import AdamW, Muon


class Method(Protocol):
    """What the loop asks of sft, dpo and grpo."""

    @property
    def items(self) -> Sequence[object]: ...
    @property
    def generator(self) -> torch.Generator | None:
        """Its own random numbers, where it draws some."""

    @property
    def settled(self) -> bool:
        """Whether it keeps nothing from this step for the next: only then a run can go on from here."""

    def loss(self, chosen: Sequence[int]) -> tuple[Tensor, dict[str, float]]: ...


def make_method(config: FinetuneConfig, model: Transformer, tokenizer: Tokenizer, say: Callable[[str], None]) -> Method:
    """The data, and what is to be made of it."""
    longest = model.config.context
    if config.method == "dpo":
        return dpo.DPO(model, dpo.read_pairs(config.data, tokenizer, longest, say), config.beta, config.packing)
    if config.method != "grpo":
        return sft.SFT(model, chat_data.read_examples(config.data, tokenizer, longest, say), config.packing)
    if config.max_tokens >= longest:
        raise TrainingError(f"wanted max_tokens below the context of {longest}, got {config.max_tokens}")
    return grpo.GRPO(
        model,
        tokenizer,
        grpo.read_prompts(config.data, tokenizer, longest - config.max_tokens, config.reward, say),
        rewards.reward(config.reward),
        samples=config.samples,
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        clip_ratio=config.clip_ratio,
        kl=config.kl,
        iterations=config.iterations,
        packing=config.packing,
        seed=config.seed,
        say=say,
    )


def optimizers_for(config: FinetuneConfig, model: Transformer) -> dict[str, torch.optim.Optimizer]:
    """AdamW for all that is trained; or Muon for the blocks' matrices, and AdamW for the rest at a lower rate."""
    rate = config.learning_rate or 0.0
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    inner = [p for name, p in trained if config.optimizer == "muon" and name.startswith("blocks.") and p.ndim >= 2]
    known = {id(p) for p in inner}
    rest = [p for _, p in trained if id(p) not in known]
    # As in pre-training (0.005 beside 0.02), where AdamW's rate falls with the width and Muon's does not.
    outer = rate if not inner else rate / 4 * min(1.0, 128 / model.config.width)
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "lr": outer, "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "lr": outer, "weight_decay": 0.0},
    ]
    found: dict[str, torch.optim.Optimizer] = {
        "adamw": AdamW([group for group in groups if group["params"]], betas=(0.9, 0.95))
    }
    if inner:
        found["muon"] = Muon([{"params": inner, "lr": rate, "weight_decay": config.weight_decay}])
    for optimizer in found.values():
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return found
