"""What a run will need before it runs, from tinylm.model's plan: memory by kind, time, and a batch that fits.

Not here: the formulas of a step, but for the optimiser's part (tinylm.model.plan); measuring (_setup.py); printing
(cli.py).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

from tinylm.model import TransformerConfig, pick_device
from tinylm.model.plan import Layout, training_memory
from tinylm.training._errors import TrainingError
from tinylm.training.config import SAVED_WITHIN, TrainConfig
from tinylm.training.device import memory_free
from tinylm.training.optimizers.foreach import AT_ONCE

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
    gpu = pick_device(config.device).type == "cuda"
    kinds = training_memory(shape, windows * shape.context, dtype, config.activation_checkpointing, layout, gpu)
    optimizer, adam, peak = config.optimizer, kinds.pop("optimiser (AdamW)"), kinds.pop("peak")
    kinds[f"optimiser ({optimizer})"] = state = round(adam * _state_for_adam(optimizer, shape))
    kinds["average of the weights"] = average = kinds["weights"] if config.average else 0
    inside = {"muon": _muons_copies(shape), "lion": kinds["weights"]}  # Lion: the signs of all weights, on a GPU
    step = kinds["weights"] + kinds["gradients"] + state + average + inside.get(optimizer, 0)
    return {**kinds, "peak": max(peak - adam + state + average, step)}


def _state_for_adam(optimizer: str, shape: TransformerConfig) -> float:
    """An optimiser's state for each byte of Adam's, which is two numbers a weight: Lion and SGD keep one, and so does
    Muon of the blocks' matrices."""
    if optimizer == "muon":
        return 1 - shape.parameter_count(embeddings=False) / shape.parameter_count() / 2
    return {"adam": 1.0, "adamw": 1.0, "lion": 0.5, "sgd": 0.5}[optimizer]


def _muons_copies(shape: TransformerConfig) -> int:
    """Bytes that there are only while Muon multiplies some matrices at once (optimizers/foreach.py): where they go,
    their stack, its multiple and the next one, and, as large where they are square, four Gram matrices."""
    largest = shape.width * max(shape.mlp_width * max(1, shape.experts), shape.heads * shape.head_dim)
    return 32 * max(min(shape.parameter_count(embeddings=False), AT_ONCE), largest)


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
    """What fits instead, in words: the same batch in parts, if need be with each block computed again in the backward
    pass; or else a shorter context; or else fewer layers."""
    batch, begun = config.batch_size or 1, config.accumulate
    for again in sorted({config.activation_checkpointing, True}):
        tried = dataclasses.replace(config, activation_checkpointing=again)
        for parts in (n for n in range(begun, batch + 1) if batch % (n * data_ranks) == 0):
            needed = memory(tried, shape, batch // parts, data_ranks)["peak"]
            if needed <= free:
                flags = ["--activation-checkpointing"] * (again != config.activation_checkpointing)
                flags += [f"--accumulate {parts}"] * (parts != begun)
                return f"{' '.join(flags)} computes the same update in {_size(needed)}"
    short = shape
    while short.context >= 32:  # less is no context
        short = dataclasses.replace(short, context=short.context // 2)
        needed = memory(config, short, data_ranks, data_ranks)["peak"]
        if needed <= free:
            return f"--context {short.context} --batch-size {data_ranks} --accumulate 1 fits in {_size(needed)}"
    for depth in range(shape.depth - 1, 0, -1):
        if memory(config, _shallower(config, short, depth), data_ranks, data_ranks)["peak"] <= free:
            return f"the model alone is too large: --depth {depth} would fit, with a short --context"
    return "the model is too large: try a smaller --depth and --width"


def _shallower(config: TrainConfig, shape: TransformerConfig, depth: int) -> TransformerConfig:
    """A shape with `depth` layers: where the dial has set this one's width, the dial's."""
    dial = TransformerConfig.preset(config.preset, vocab_size=shape.vocab_size, depth=shape.depth)
    if dial.width != shape.width:
        return dataclasses.replace(shape, depth=depth)
    return TransformerConfig.preset(config.preset, vocab_size=shape.vocab_size, depth=depth, context=shape.context)


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
    best, kept = (", at each best validation", " and the best") if config.keep_best else ("", "")
    return [
        *([f"processes: {processes}; the memory is that of each"] if processes else []),
        f"device:    {setup.device}, {str(setup.dtype).removeprefix('torch.')}, {torch.get_num_threads()} thread(s)",
        f"model:     {config.preset}, {shape.depth} layers of width {shape.width}, {shape.heads} heads "
        f"({shape.kv_heads} for keys and values), MLP {shape.mlp_width}, vocabulary {shape.vocab_size}",
        f"           {shape.parameter_count():,} parameters, {shape.flops_per_token():,} FLOPs a token",
        f"data:      {data.tokens:,} tokens to train on, {setup.validation_data.tokens:,} to validate",
        f"batch:     {setup.batch_size} windows of {shape.context}: {tokens:,} tokens{parts}",
        f"optimiser: {config.optimizer}, rates {config.learning_rate:g} and {config.embedding_learning_rate:g}, "
        f"{config.schedule}, warm-up {config.warmup_steps}, weight decay {config.weight_decay:g}",
        f"length:    {about}{steps:,} steps, {steps * tokens:,} tokens, {steps * tokens / data.tokens:.2f} epochs",
        f"time:      {seconds:.3f} s a step without the optimiser ({rate:.0%} of the measured peak of "
        f"{setup.peak_flops / 1e9:,.0f} GFLOP/s): about {steps * seconds / 60:.1f} minutes",
        f"validates: {_every(config.validate_every)} on some windows, at the end on the whole split",
        f"saves:     {_every(config.checkpoint_every, SAVED_WITHIN)}{best} and at the end; keeps the newest "
        f"{config.keep}{kept}",
        "memory:    " + ", ".join(f"{kind} {_size(size)}" for kind, size in kinds.items() if size),
    ]


def _every(updates: int | None, most: int | None = None) -> str:
    if updates is not None:
        return f"every {updates:,} steps" if updates > 1 else "every step"
    return "each tenth of the run" + (f", every {most:,} steps" if most else "")


def _batch(config: TrainConfig) -> str:
    parts = config.accumulate
    return f"{config.batch_size}" if parts == 1 else f"{config.batch_size} (in {parts} parts)"


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
