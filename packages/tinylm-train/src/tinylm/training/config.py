"""Every option of a training run, where its value comes from, and what the one dial sets.

Precedence: defaults < TOML file < flags. A field that is None is set by the dial: `depth` decides width, heads and the
learning rates, `optimizer` the weight decay, `minutes`, `steps` or `tokens` the length (trainer.py turns minutes into
steps by timing the run). `resolve` fills in every None, so that what a run stores says exactly how to repeat it.
Not here: the shape that a depth stands for (tinylm.model.TransformerConfig.preset).
"""

from __future__ import annotations

import dataclasses
import sys
import typing
from pathlib import Path
from typing import Any, Literal

from tinylm.model import TransformerConfig
from tinylm.training import _options_file
from tinylm.training._errors import TrainingError

# Peak rates up to a width of 128. Lion moves every number by its whole rate: a tenth of Adam's, as its paper says.
_RATES = {"muon": 0.02, "adamw": 3e-3, "adam": 3e-3, "lion": 3e-4, "sgd": 0.1}
_WEIGHT_DECAYS = {"muon": 0.1}  # times the rate, at each update; measured for Muon alone (docs/log.md)
SAVED_WITHIN = 1000  # updates: by default no kill costs more than these
_SHAPE_OPTIONS = ("width", "heads", "kv_heads", "mlp_width", "context")


def _option(default: Any, group: str, text: str) -> Any:
    """A field with its help text: the command line is made from these, so that each option is described once."""
    return dataclasses.field(default=default, metadata={"group": group, "help": text})


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Options of `Trainer` and of `tinylm-train pretrain`, which has a flag for each; what they mean stands beside.

    At most one of minutes, steps, tokens; none of them: 3 minutes. None elsewhere: set by the dial, see `resolve`.
    Raises TrainingError for a value out of range.
    """

    data: str = _option("", "Files", "What tinylm-train prepare made.")
    out: str = _option("", "Files", "Checkpoint folder: model, steps and run go here.")
    depth: int = _option(4, "Shape", "Layers: the dial that sets the rest.")
    preset: str = _option("qwen3", "Shape", "Architecture: qwen3, llama or gpt2.")
    width: int | None = _option(None, "Shape", "Width of the residual stream.")
    heads: int | None = _option(None, "Shape", "Attention heads.")
    kv_heads: int | None = _option(None, "Shape", "Key and value heads.")
    mlp_width: int | None = _option(None, "Shape", "Width inside the MLP.")
    context: int | None = _option(None, "Shape", "Tokens the model sees at once.")
    minutes: float | None = _option(None, "Length", "Train for so many minutes (3, when no length is given).")
    steps: int | None = _option(None, "Length", "Train for so many updates.")
    tokens: int | None = _option(None, "Length", "Train on so many tokens.")
    batch_size: int | None = _option(None, "Optimiser", "Windows of the context's length per update.")
    packing: Literal["windows", "documents"] = _option(
        "windows",
        "Optimiser",
        "windows of the text across documents, or whole documents, packed, none of which sees another.",
    )
    accumulate: int = _option(1, "Optimiser", "Parts in which a batch is computed, for less memory; the same update.")
    optimizer: Literal["muon", "adamw", "adam", "lion", "sgd"] = _option(
        "muon", "Optimiser", "muon (AdamW for embeddings and gains), adamw, adam, lion or sgd."
    )
    learning_rate: float | None = _option(None, "Optimiser", "Peak, for the matrices of the blocks.")
    embedding_learning_rate: float | None = _option(None, "Optimiser", "Peak, for embeddings, head and gains.")
    weight_decay: float | None = _option(
        None, "Optimiser", "For the matrices of the blocks; gains and biases have none. 0.1 with muon, else 0."
    )
    embedding_weight_decay: float = _option(0.0, "Optimiser", "For the embeddings and the head.")
    clip: float = _option(1.0, "Optimiser", "Largest gradient norm.")
    average: float = _option(
        0.0, "Optimiser", "Decay of a moving average of the weights, which is then published; 0: none."
    )
    schedule: Literal["wsd", "cosine", "linear"] = _option(
        "wsd", "Schedule", "wsd (warm up, hold, then a line to zero), cosine or linear."
    )
    warmup_steps: int = _option(20, "Schedule", "Updates until the learning rate is at its peak.")
    decay_fraction: float = _option(0.6, "Schedule", "Share of the run in which wsd's learning rate falls to zero.")
    validate_every: int | None = _option(
        None, "Checkpoints and validation", "In updates; a tenth of the run when not given."
    )
    checkpoint_every: int | None = _option(
        None,
        "Checkpoints and validation",
        f"In updates; a tenth of the run, and {SAVED_WITHIN} at most, when not given.",
    )
    keep: int = _option(2, "Checkpoints and validation", "Newest step folders to keep.")
    keep_best: bool = _option(True, "Checkpoints and validation", "Keep the step folder of the best validation, too.")
    accept_changes: bool = _option(
        False, "Checkpoints and validation", "Go on although options differ from those that the run began with."
    )
    on_divergence: Literal["stop", "skip", "rollback"] = _option(
        "stop",
        "Divergence",
        "A step is not a number, or a spike: stop, skip its update, or rollback to the last checkpoint and past it.",
    )
    spike: float = _option(
        20.0, "Divergence", "A gradient norm of so many times the usual is a spike (a loss likewise); 0: none is."
    )
    data_parallel: Literal["ddp", "fsdp"] = _option(
        "ddp",
        "Many processes (torchrun)",
        "Each process has the whole model (ddp), or a part of every parameter (fsdp).",
    )
    tensor_parallel: int = _option(
        1, "Many processes (torchrun)", "Processes that share each product of a block; the others share the batch."
    )
    process_timeout: float = _option(
        600.0, "Many processes (torchrun)", "Seconds without an answer after which another process is given up."
    )
    seed: int = _option(0, "Machine", "Same seed, same run.")
    device: str = _option("auto", "Machine", "auto (cuda > mps > cpu), cpu, cuda or mps.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _option(
        "auto", "Machine", "auto (bfloat16 where it is faster), float32, bfloat16 or float16 (with loss scaling)."
    )
    compile: Literal["auto", "always", "never"] = _option(
        "auto", "Machine", "torch.compile: auto (when it is measured to pay), always or never."
    )
    activation_checkpointing: bool = _option(
        False, "Machine", "Compute each block again in the backward pass: a third more work, far less memory."
    )
    threads: int | None = _option(None, "Machine", "CPU threads; measured when not given (one, for a tiny model).")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (int, float)) and not isinstance(value, bool) and not _in_range(field.name, value):
                raise TrainingError(f"wanted {field.name} {_RANGES.get(field.name, _POSITIVE)[2]}, got {value}")
        lengths = [name for name in ("minutes", "steps", "tokens") if getattr(self, name) is not None]
        if len(lengths) > 1:
            raise TrainingError(f"wanted one of minutes, steps and tokens, got {' and '.join(lengths)}: leave one")
        for name, hint in typing.get_type_hints(type(self)).items():
            if typing.get_origin(hint) is Literal and getattr(self, name) not in typing.get_args(hint):
                wanted = ", ".join(typing.get_args(hint))
                raise TrainingError(f"wanted {name} to be one of {wanted}, got {getattr(self, name)!r}")
        if self.schedule != "wsd" and (self.minutes is not None or not lengths):
            raise TrainingError(
                f"wanted steps or tokens with the schedule {self.schedule} (its rate depends on the length from the "
                "first step), got minutes: give --steps or --tokens"
            )

    @classmethod
    def load(cls, file: str | Path | None = None, **flags: Any) -> TrainConfig:
        """Options from a TOML file, overridden by the `flags` that are not None.

        Raises TrainingError for a file that cannot be read and for unknown, missing or mistyped options.
        """
        lengths = ("minutes", "steps", "tokens")
        return cls(**_options_file.options(cls, file, flags, needed=("data", "out"), lengths=lengths))

    def resolve(self, vocab_size: int) -> tuple[TrainConfig, TransformerConfig]:
        """This configuration with what the dial sets filled in, and the model's shape.

        A deeper model gets a larger batch, 128 · depth² tokens and at least 2,048. Beyond a width of 128 AdamW's rates
        fall as 1 / width (muP, Yang et al. 2022, table 3; the embedding's too, since it may be the head). Muon's rate
        is that of a matrix whatever its size (Jordan et al. 2024), so it stays. What that does to activations is
        measured by tinylm-model's coordinate_check.py.
        """
        given = {name: getattr(self, name) for name in _SHAPE_OPTIONS if getattr(self, name) is not None}
        shape = TransformerConfig.preset(self.preset, vocab_size=vocab_size, depth=self.depth, **given)
        narrower = min(1.0, 128 / shape.width)
        rate = self.learning_rate or _RATES[self.optimizer] * (1.0 if self.optimizer == "muon" else narrower)
        embedding_rate = self.embedding_learning_rate or (0.005 * narrower if self.optimizer == "muon" else rate)
        decay = _WEIGHT_DECAYS.get(self.optimizer, 0.0) if self.weight_decay is None else self.weight_decay
        batch_size = self.batch_size or max(1, max(2048, 128 * self.depth**2) // shape.context)
        if batch_size % self.accumulate:
            raise TrainingError(
                f"wanted accumulate to divide the batch of {batch_size} windows into equal parts, got {self.accumulate}"
            )
        steps, minutes = self.steps, self.minutes
        if self.tokens is not None:
            steps = max(1, self.tokens // (batch_size * shape.context))
        if steps is None and minutes is None:
            minutes = 3.0
        return (
            dataclasses.replace(
                self,
                **{name: getattr(shape, name) for name in _SHAPE_OPTIONS},
                batch_size=batch_size,
                learning_rate=rate,
                embedding_learning_rate=embedding_rate,
                weight_decay=decay,
                steps=steps,
                minutes=minutes,
                tokens=None,
            ),
            shape,
        )

    def description(self) -> dict[str, Any]:
        """Plain values for run.json and state.json."""
        return dataclasses.asdict(self)


_POSITIVE = (0.0, False, "> 0 and finite")  # lowest value, is it allowed, and both in words
_RANGES: dict[str, tuple[float, bool, str]] = {
    "weight_decay": (0.0, True, ">= 0"),
    "embedding_weight_decay": (0.0, True, ">= 0"),
    "average": (0.0, True, "between 0 and 0.999999"),
    "spike": (0.0, True, ">= 0"),
    "warmup_steps": (0.0, True, ">= 0"),
    "decay_fraction": (0.0, True, "between 0 and 0.9"),
    "seed": (0.0, True, "between 0 and 2^63 - 1"),
    "threads": (0.0, False, "between 1 and 1024"),
}


def _in_range(name: str, value: float) -> bool:
    lowest, allowed, _ = _RANGES.get(name, _POSITIVE)
    highest = {"decay_fraction": 0.9, "average": 0.999999, "seed": (1 << 63) - 1, "threads": 1024}
    return lowest < value <= highest.get(name, sys.float_info.max) or (allowed and value == lowest)
