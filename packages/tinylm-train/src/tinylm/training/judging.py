"""What a validation asks of a model in mid-run: a figure, and a line of text to be read.

Not here: when (trainer.py); how bits per character are counted (evaluation.py).
"""

from __future__ import annotations

import math

import torch

from tinylm.model import generate
from tinylm.model.decoding import recompute
from tinylm.training._setup import Setup
from tinylm.training.divergence import no_better_than_guessing
from tinylm.training.evaluation import bits_per_character

_WINDOWS = 16  # in mid-run; the last validation reads the whole split
_SAMPLE_TOKENS = 32  # a tenth of a second on a small model


def bits(setup: Setup, whole: bool) -> float:
    """Bits per character of the validation split: all of it, or an estimate from always the same windows."""
    windows = None if whole else _WINDOWS
    return bits_per_character(
        setup.model, setup.validation_data, max_windows=windows, autocast=setup.step.autocast, strategy=setup.strategy
    )


def learned_nothing(setup: Setup, bits: float) -> str | None:
    """What to say of a run that ends at so many bits per character, if guessing comes to the same."""
    data, config = setup.validation_data, setup.config
    sign = no_better_than_guessing(bits * math.log(2) * data.characters / data.tokens, setup.shape.vocab_size)
    return sign and (
        f"at the end {sign}: too few steps, or learning rates ({config.learning_rate:g} and "
        f"{config.embedding_learning_rate:g}) that are far too high or too low"
    )


def sample(setup: Setup) -> str:
    """How the model continues the validation text's first words."""
    context = setup.shape.context
    prompt = setup.validation_data.ids(0, min(8, context // 2))
    room = min(_SAMPLE_TOKENS, context - len(prompt))
    if not len(prompt):  # a context of one token
        return ""
    generator = torch.Generator(setup.device).manual_seed(setup.config.seed)  # the run's own draws stay as they are
    ids = torch.from_numpy(prompt)[None].to(setup.device)
    # a cache has room for all heads, and over divided products a process has some of them
    write = generate if setup.strategy.tensor_ranks == 1 else recompute
    written = write(setup.model, ids, room, temperature=0.7, generator=generator)
    return setup.tokenizer.decode(written[0].tolist())
