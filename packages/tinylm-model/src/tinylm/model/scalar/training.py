"""Training the scalar rungs: made-up names as text, a start, Adam, and names that the model makes up itself.

The same loop drives gpt.GPT and derived.GPT, and their losses agree step by step. `python -m tinylm.model.scalar` shows
it. What it does not do: batches, validation, resuming (tinylm.training does). Next: derived.py.
"""

from __future__ import annotations

import math
import random
import string
from itertools import chain
from operator import sub

from tinylm.model._errors import ModelError
from tinylm.model._layout import file_shape, shapes, tensors
from tinylm.model.config import TransformerConfig
from tinylm.model.scalar.files import Weights, rows
from tinylm.model.scalar.gpt import GPT

ALPHABET = "\n" + string.ascii_lowercase  # the line's end begins and ends a name
# 4,192 parameters, as many as Karpathy's microgpt has
CONFIG = TransformerConfig.preset("gpt2", len(ALPHABET), 1, width=16, head_dim=4, context=28)


def made_names(count: int, seed: int = 0) -> list[str]:
    """Names that nobody has: an onset and a vowel, one to three times, and an ending."""
    chance = random.Random(seed)
    onsets = [*"bcdfghjklmnprstvwxyz", "qu", "th", "sh", "br", "kr", "st"]
    vowels, endings = [*"aaeeiou", "ia", "ey"], ["", "", "n", "l", "r", "na", "ra", "lle", "son"]
    names = []
    for _ in range(count):
        syllables = (chance.choice(onsets) + chance.choice(vowels) for _ in range(chance.choice((1, 2, 2, 3))))
        names.append("".join(syllables) + chance.choice(endings))
    return names


def encode(name: str) -> list[int]:
    """A name's ids between two line ends."""
    unknown = set(name) - set(ALPHABET[1:])
    if unknown:
        raise ModelError(f"name: wanted letters from a to z, got {sorted(unknown)} in {name!r}")
    return [ALPHABET.index(letter) for letter in f"\n{name}\n"]


def start(config: TransformerConfig, seed: int = 0) -> Weights:
    """Weights to begin with, by the rules of ../initialization.py ("scaled")."""
    chance = random.Random(seed)
    ours = shapes(config)
    weights: Weights = {}
    for name, stored in tensors(config).items():
        shape = file_shape(stored, ours)
        if len(shape) == 1:
            weights[name] = [float("ln_" in name and name.endswith("weight"))] * shape[0]
            continue
        std = (
            0.02 if name.endswith(("wte.weight", "wpe.weight", "lm_head.weight")) else 0.02 * math.sqrt(768 / shape[0])
        )
        if name.endswith("c_proj.weight"):  # writes into the residual stream
            std /= math.sqrt(2 * config.depth)
        weights[name] = [[chance.gauss(0, std) for _ in range(shape[1])] for _ in range(shape[0])]
    return weights


class Adam:
    """m ← β₁ m + (1 − β₁) g,  v ← β₂ v + (1 − β₂) g²,  w ← w − rate · m̂ / (√v̂ + ε)   (Kingma and Ba 2015, alg. 1).

    m̂ = m / (1 − β₁ᵗ) and v̂ = v / (1 − β₂ᵗ) make up for both having begun at 0. Kept here are m / (1 − β₁) and
    v / (1 − β₂), and every factor that all weights share is put into `rate` and `eps` first (as at the end of the
    paper's section 2), because this loop is a quarter of derived.GPT's step.
    """

    def __init__(self, beta1: float = 0.9, beta2: float = 0.99, eps: float = 1e-8) -> None:
        self.beta1, self.beta2, self.eps = beta1, beta2, eps
        self.steps = 0
        self.m: list[float] = []
        self.v: list[float] = []

    def step(self, weights: Weights, gradients: Weights, rate: float) -> None:
        """Change `weights` in place."""
        self.steps += 1
        g = list(chain.from_iterable(row for name in weights for row in rows(gradients[name])))
        self.m, self.v = self.m or [0.0] * len(g), self.v or [0.0] * len(g)
        b1, b2, sqrt = self.beta1, self.beta2, math.sqrt
        whole = sqrt((1 - b2**self.steps) / (1 - b2))
        rate, eps = rate * whole * (1 - b1) / (1 - b1**self.steps), self.eps * whole
        self.m = [b1 * m + x for m, x in zip(self.m, g, strict=True)]
        self.v = [b2 * v + x * x for v, x in zip(self.v, g, strict=True)]
        changes = iter([rate * m / (sqrt(v) + eps) for m, v in zip(self.m, self.v, strict=True)])
        for tensor in weights.values():
            for row in rows(tensor):
                row[:] = map(sub, row, changes)  # map stops at the row's end, and the next row goes on from there


def train(model: GPT, names: list[str], steps: int, rate: float = 0.01) -> list[float]:
    """One name a step, the rate falling to 0 in a straight line; changes the model's weights, returns each loss."""
    optimizer, losses = Adam(), []
    for step in range(steps):
        ids = encode(names[step % len(names)])[: model.config.context + 1]
        loss, gradients = model.loss_and_gradients(ids[:-1], ids[1:])
        optimizer.step(model.weights, gradients, rate * (1 - step / steps))
        losses.append(loss)
    return losses


def sample(model: GPT, chance: random.Random, temperature: float = 0.7) -> str:
    """A new name: letters drawn one by one from softmax(logits / temperature) until the line ends."""
    ids = [0]
    while len(ids) < model.config.context:
        scores = model.logits(ids)[-1]
        top = max(scores)
        odds = [math.exp((score - top) / temperature) for score in scores]
        ids += chance.choices(range(len(odds)), odds)
        if ids[-1] == 0:
            break
    return "".join(ALPHABET[i] for i in ids).strip("\n")
