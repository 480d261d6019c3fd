"""After pre-training: a model learns from examples (SFT), preferences (DPO) or rewards (GRPO), whole or by LoRA.

Read sft.py first, then lora.py, dpo.py, grpo.py: one equation each. What they share: chat_data.py (JSONL → ids and
which of them count), packing.py (many short examples in few rows), run.py (the loop), resuming.py (its step folders).
Not here: pre-training (tinylm.training.trainer), talking to the result (tinylm-infer chat).
Names load when they are first used, so that `tinylm-train --help` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinylm.training.finetuning.config import FinetuneConfig
    from tinylm.training.finetuning.run import finetune

__all__ = ["FinetuneConfig", "finetune"]

_HOME = {"FinetuneConfig": "config", "finetune": "run"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tinylm.training.finetuning' has no attribute {name!r}")
    return getattr(import_module(f"tinylm.training.finetuning.{_HOME[name]}"), name)
