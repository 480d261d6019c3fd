"""After pre-training: a model learns from examples (SFT), preferences (DPO) or rewards (GRPO), whole or by LoRA.

Read sft.py first, then lora.py, dpo.py, grpo.py: one equation each. What they share: chat_data.py (JSONL → ids and
which of them count), packing.py (many short examples in few rows), run.py (the loop and the files). Not here:
pre-training (tinylm.training.trainer), talking to the result (tinylm-infer chat).
"""

from tinylm.training.finetuning.config import FinetuneConfig
from tinylm.training.finetuning.run import finetune

__all__ = ["FinetuneConfig", "finetune"]
