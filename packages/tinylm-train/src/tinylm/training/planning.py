"""What a run will need before it runs, from tinylm.model's plan: memory by kind, time, and a batch that fits.

Not here: the formulas (tinylm.model.plan), measuring (_setup.py), printing (cli.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tinylm.model import TransformerConfig
from tinylm.model.plan import Layout, training_memory
from tinylm.training._errors import TrainingError
from tinylm.training.config import TrainConfig
from tinylm.training.device import memory_free

if TYPE_CHECKING:
    from tinylm.training._setup import Setup

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "unable to allocate")


def memory(
    config: TrainConfig, shape: TransformerConfig, windows: int | None = None, data_ranks: int = 1
) -> dict[str, int]:
    """Bytes by kind, and the "peak", of one process's step over its share of so many windows at once (a part of the
    batch, if none is said)."""
    windows = (windows or (config.batch_size or 1) // config.accumulate) // data_ranks
    layout = Layout(fsdp=data_ranks if config.data_parallel == "fsdp" else 1, tensor=config.tensor_parallel)
    dtype = "float32" if config.dtype == "auto" else config.dtype
    return training_memory(shape, windows * shape.context, dtype, config.activation_checkpointing, layout)


def refuse_what_does_not_fit(
    config: TrainConfig, shape: TransformerConfig, device: torch.device, data_ranks: int = 1
) -> None:
    """TrainingError when the plan's peak is above what is free; it names a batch that fits."""
    free, needed = memory_free(device), memory(config, shape, data_ranks=data_ranks)["peak"]
    if free is not None and needed > free:
        raise TrainingError(
            f"wanted {_size(needed)} for a step over {_batch(config)} windows of {shape.context} tokens, got "
            f"{_size(free)} free on {device}: {suggestion(config, shape, free, data_ranks)}"
        )


def suggestion(config: TrainConfig, shape: TransformerConfig, free: int, data_ranks: int = 1) -> str:
    """What to do instead, in words: the same batch in parts if that helps, or else something smaller."""
    batch = config.batch_size or 1
    for parts in (n for n in range(config.accumulate + 1, batch + 1) if batch % (n * data_ranks) == 0):
        needed = memory(config, shape, batch // parts, data_ranks)["peak"]
        if needed <= free:
            return f"--accumulate {parts} computes the same update in {_size(needed)}"
    return "try a smaller --batch-size, --depth or --context, or --activation-checkpointing"


def in_words(
    error: BaseException, config: TrainConfig, shape: TransformerConfig, device: torch.device
) -> BaseException:
    """Of an error that says that memory is full, one that says what to do; any other as it is."""
    if not isinstance(error, MemoryError) and not any(words in str(error).lower() for words in _OUT_OF_MEMORY):
        return error
    needed = memory(config, shape)["peak"]
    return TrainingError(
        f"{device} is out of memory at a step over {_batch(config)} windows of {shape.context} tokens (the plan: "
        f"{_size(needed)}). Try a smaller --batch-size, --depth or --context; {suggestion(config, shape, needed // 2)}"
    )


def lines(setup: Setup) -> list[str]:
    """The whole plan, a line each: model, data, batch, length, memory, time. Nothing is written."""
    config, shape = setup.config, setup.shape
    tokens = setup.batch_size * shape.context
    seconds = setup.seconds_per_step()
    rate = shape.flops_per_token() * tokens / seconds / setup.peak_flops
    steps = config.steps or max(1, round((config.minutes or 0) * 60 / seconds))
    about = "" if config.steps else "about "
    kinds = memory(config, shape, data_ranks=setup.strategy.data_ranks)
    data = setup.train_data
    parts = f" in {config.accumulate} parts" if config.accumulate > 1 else ""
    processes = setup.strategy.description
    return [
        *([f"processes: {processes}; the memory is that of each"] if processes else []),
        f"device:    {setup.device}, {str(setup.dtype).removeprefix('torch.')}, {torch.get_num_threads()} thread(s)",
        f"model:     {config.preset}, {shape.depth} layers of width {shape.width}, {shape.heads} heads "
        f"({shape.kv_heads} for keys and values), MLP {shape.mlp_width}, vocabulary {shape.vocab_size}",
        f"           {shape.parameter_count():,} parameters, {shape.flops_per_token():,} FLOPs a token",
        f"data:      {data.tokens:,} tokens to train on, {setup.validation_data.tokens:,} to validate",
        f"batch:     {setup.batch_size} windows of {shape.context}: {tokens:,} tokens{parts}",
        f"optimiser: {config.optimizer}, rates {config.learning_rate:g} and {config.embedding_learning_rate:g}, "
        f"{config.schedule}, warm-up {config.warmup_steps}",
        f"length:    {about}{steps:,} steps, {steps * tokens:,} tokens, {steps * tokens / data.tokens:.2f} epochs",
        f"time:      {seconds:.3f} s a step without the optimiser ({rate:.0%} of the measured peak of "
        f"{setup.peak_flops / 1e9:,.0f} GFLOP/s): about {steps * seconds / 60:.1f} minutes",
        "memory:    " + ", ".join(f"{kind} {_size(size)}" for kind, size in kinds.items() if size),
    ]


def _batch(config: TrainConfig) -> str:
    parts = config.accumulate
    return f"{config.batch_size}" if parts == 1 else f"{config.batch_size} (in {parts} parts)"


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
