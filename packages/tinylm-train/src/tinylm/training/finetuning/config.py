"""Every option of `tinylm-train finetune`, and what stands for those that are not given.

Not here: the methods (sft.py, lora.py, dpo.py, grpo.py), the options of pre-training (tinylm.training.config).
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

from tinylm.model import TransformerConfig
from tinylm.training import _options_file
from tinylm.training._errors import TrainingError

# Peak rates of AdamW up to a width of 128, below pre-training's 3e-3: a preference or a reward needs far smaller steps
# than text does, and LoRA's small matrices larger ones (Schulman et al. 2025, LoRA Without Regret: about ten times).
_RATES: dict[str, float] = {"sft": 1e-3, "lora": 1e-2, "dpo": 1e-4, "grpo": 5e-4}
_MUON_RATE = 0.02  # as in pre-training, whatever the width


def _option(default: Any, group: str, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"group": group, "help": text})


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Options of `finetune`. None: `resolve` sets it. Raises TrainingError for a value out of range, and for an option
    of another method than the one chosen."""

    checkpoint: str = _option("", "Files", "The model to start from.")
    data: str = _option("", "Files", "JSON lines.")
    out: str = _option("", "Files", "New checkpoint folder: model and run go here.")
    overwrite: bool = _option(False, "Files", "Replace a checkpoint that stands at --out.")
    method: Literal["sft", "lora", "dpo", "grpo"] = _option("sft", "Training", "sft, lora, dpo or grpo.")
    steps: int | None = _option(None, "Training", "Updates; what --epochs come to when not given.")
    epochs: float | None = _option(None, "Training", "Times through the data (3 when no length is given).")
    batch_size: int = _option(32, "Training", "Examples (dpo: pairs, grpo: prompts) per update.")
    optimizer: Literal["adamw", "muon"] = _option(
        "adamw", "Training", "adamw, or muon for the blocks' matrices (sft: a new skill in far fewer steps)."
    )
    learning_rate: float | None = _option(None, "Training", "Peak; the method's own when not given.")
    weight_decay: float = _option(0.0, "Training", "For matrices; gains and biases have none.")
    warmup_steps: int = _option(10, "Training", "Updates until the learning rate is at its peak; then a line to zero.")
    clip: float = _option(1.0, "Training", "Largest gradient norm.")
    checkpoint_every: int | None = _option(None, "Training", "In updates; a tenth of the run when not given.")
    packing: bool = _option(True, "Training", "Many short examples in one row, which do not see each other.")
    seed: int = _option(0, "Training", "Same seed, same run.")
    device: str = _option("auto", "Training", "auto (cuda > mps > cpu), cpu, cuda or mps.")
    rank: int = _option(8, "LoRA (--method lora)", "Rank of the adapters.")
    alpha: float = _option(16.0, "LoRA (--method lora)", "Adapters are scaled by alpha / rank.")
    beta: float = _option(0.1, "DPO (--method dpo)", "How close to the first model: higher is closer.")
    reward: str = _option(
        "number", "GRPO (--method grpo)", "What is rewarded: number, exact, format, or some: number,format."
    )
    samples: int = _option(8, "GRPO (--method grpo)", "Answers drawn per prompt.")
    iterations: int = _option(1, "GRPO (--method grpo)", "Updates per drawn answers.")
    temperature: float = _option(1.0, "GRPO (--method grpo)", "Of the drawn answers.")
    max_tokens: int = _option(32, "GRPO (--method grpo)", "Longest answer.")
    clip_ratio: float = _option(0.2, "GRPO (--method grpo)", "How far from the model that drew the answers.")
    kl: float = _option(0.0, "GRPO (--method grpo)", "Weight of the distance from the first model.")

    def __post_init__(self) -> None:
        missing = [name for name in ("checkpoint", "data", "out") if not getattr(self, name)]
        if missing:
            raise TrainingError(f"wanted {' and '.join(missing)} among the options, got none")
        if self.method not in _RATES:
            raise TrainingError(f"wanted method sft, lora, dpo or grpo, got {self.method!r}")
        if self.optimizer not in ("adamw", "muon"):
            raise TrainingError(f"wanted optimizer adamw or muon, got {self.optimizer!r}")
        if self.optimizer == "muon" and self.method != "sft":
            raise TrainingError(f"optimizer muon is for the method sft, and the method is {self.method}: leave it")
        if self.steps is not None and self.epochs is not None:
            raise TrainingError("wanted one of steps and epochs, got both: leave one")
        for field in dataclasses.fields(self):
            self._check(field)

    @classmethod
    def load(cls, file: str | Path | None = None, **flags: Any) -> FinetuneConfig:
        """Options from a TOML file, overridden by the `flags` that are not None; errors as TrainConfig.load's."""
        needed, lengths = ("checkpoint", "data", "out"), ("steps", "epochs")
        return cls(**_options_file.options(cls, file, flags, needed=needed, lengths=lengths))

    def _check(self, field: dataclasses.Field[Any]) -> None:
        value, group = getattr(self, field.name), field.metadata["group"]
        if group.partition(" ")[0].lower() not in ("files", "training", self.method) and value != field.default:
            raise TrainingError(f"{field.name} is an option of {group}, and the method is {self.method}: leave it")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return
        may_be_zero = field.name in ("weight_decay", "warmup_steps", "kl", "seed")
        if not math.isfinite(value) or value < 0 or (value == 0 and not may_be_zero):
            raise TrainingError(f"wanted {field.name} {'>=' if may_be_zero else '>'} 0 and finite, got {value}")
        if field.name == "samples" and value < 2:
            raise TrainingError("wanted samples >= 2 (an answer is judged beside the others), got 1")

    def resolve(self, shape: TransformerConfig, examples: int) -> FinetuneConfig:
        """With the length in steps and the learning rate; AdamW's falls as 1 / width beyond 128 (as pre-training's)."""
        epochs = 3.0 if self.epochs is None else self.epochs
        steps = self.steps or max(1, math.ceil(epochs * examples / self.batch_size)) * self._updates()
        own = _MUON_RATE if self.optimizer == "muon" else _RATES[self.method] * min(1.0, 128 / shape.width)
        rate = self.learning_rate or own
        return dataclasses.replace(self, steps=steps, epochs=None, learning_rate=rate)

    def _updates(self) -> int:
        return self.iterations if self.method == "grpo" else 1
