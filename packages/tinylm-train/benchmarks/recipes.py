"""The speedrun's recipes, oldest first: the model of each, and the loop that trains it.

The model is tinylm.model's Transformer in Qwen3's shape. From the third record on another embedding looks up the last
two, then the last three characters as well: what a first layer would have to learn about neighbours then costs a
look-up instead of matrix products (as in modded-nanogpt's hashed bigram embedding, 2025; the idea is that of Clark et
al. 2022, CANINE, section 3). Not here: who is measured how (speedrun.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinylm.model import Transformer, TransformerConfig, initialize
from tinylm.training import AdamW, Muon


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a run is made of. Rates are peaks; they rise over `warmup` steps and fall to 0 over the last `decay`."""

    name: str
    changed: str
    who: str = "TinyLM"
    depth: int = 1
    width: int = 96
    head_dim: int = 32
    mlp_width: int = 256
    context: int = 64
    batch: int = 16
    steps: int = 120
    optimizer: Literal["adamw", "muon"] = "muon"
    rate: float = 0.05  # the blocks' matrices
    embedding_rate: float = 0.1
    head_rate: float = 0.01  # the head and the norms' gains
    warmup: int = 5
    decay: float = 0.6
    residual: Literal["scaled", "zero"] = "zero"
    pairs: int = 0  # rows of the table for the last two characters
    triples: int = 0  # rows of the table for the last three


class NgramEmbedding(nn.Module):
    """(B, T) ids → (B, T, D): the sum of three rows, for the last one, two and three ids, with a norm.

    Pairs and triples take the row of their number modulo the table's rows, so two of them may share one (Weinberger et
    al. 2009). Before the first id stands id 0.
    """

    def __init__(self, vocab_size: int, pairs: int, triples: int, width: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.single = nn.Parameter(torch.randn(vocab_size, width) * 0.3)
        self.pair = nn.Parameter(torch.zeros(pairs, width))
        self.triple = nn.Parameter(torch.zeros(triples, width)) if triples else None

    def forward(self, ids: Tensor) -> Tensor:
        before = F.pad(ids, (1, 0))[:, :-1]
        pair = before * self.vocab_size + ids
        x = F.embedding(ids, self.single) + F.embedding(pair % len(self.pair), self.pair)
        if self.triple is not None:
            triple = F.pad(before, (1, 0))[:, :-1] * self.vocab_size**2 + pair
            x = x + F.embedding(triple % len(self.triple), self.triple)
        return F.rms_norm(x, x.shape[-1:])


def build(recipe: Recipe, vocab_size: int, seed: int) -> Transformer:
    """The model with its first numbers."""
    torch.manual_seed(seed)
    heads = recipe.width // recipe.head_dim
    config = TransformerConfig.preset(
        "qwen3",
        vocab_size=vocab_size,
        depth=recipe.depth,
        width=recipe.width,
        heads=heads,
        kv_heads=heads,
        head_dim=recipe.head_dim,
        mlp_width=recipe.mlp_width,
        context=recipe.context,
        tie_embeddings=False,
    )
    model = Transformer(config)
    initialize(model, residual=recipe.residual)
    if recipe.residual == "zero":
        assert model.head is not None
        nn.init.zeros_(model.head.weight)
    if recipe.pairs:
        model.embed = NgramEmbedding(vocab_size, recipe.pairs, recipe.triples, recipe.width)  # type: ignore[assignment]
    return model


def optimizers(model: Transformer, recipe: Recipe) -> list[AdamW | Muon]:
    """The blocks' matrices by recipe.optimizer, the rest by AdamW."""
    embedding = list(model.embed.parameters())
    known = {id(parameter) for parameter in embedding}
    rest = [(name, p) for name, p in model.named_parameters() if id(p) not in known]
    matrices = [p for name, p in rest if name.startswith("blocks.") and p.ndim == 2]
    others = [p for name, p in rest if not (name.startswith("blocks.") and p.ndim == 2)]
    groups: list[dict[str, Any]] = [
        {"params": embedding, "lr": recipe.embedding_rate},
        {"params": others, "lr": recipe.head_rate},
    ]
    if recipe.optimizer == "adamw":
        groups.append({"params": matrices, "lr": recipe.rate})
    adamw = AdamW(groups, betas=(0.8, 0.95), weight_decay=0.0)
    return [adamw] if recipe.optimizer == "adamw" else [adamw, Muon(matrices, lr=recipe.rate)]


def windows(ids: Tensor, recipe: Recipe, seed: int) -> Iterator[Tensor]:
    """(batch, context + 1) for ever: all windows of the text in a random order, then again from another offset."""
    draw = torch.Generator().manual_seed(seed)
    within = torch.arange(recipe.context + 1)
    while True:
        offset = int(torch.randint(recipe.context, (1,), generator=draw))
        count = (len(ids) - 1 - offset) // recipe.context
        for chosen in torch.randperm(count, generator=draw).split(recipe.batch):
            if len(chosen) == recipe.batch:
                yield ids[(offset + chosen * recipe.context)[:, None] + within]


def train(model: Transformer, recipe: Recipe, ids: Tensor, seed: int) -> None:
    """recipe.steps updates on windows of ids (N,)."""
    both, batches = optimizers(model, recipe), windows(ids, recipe, seed)
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in both]
    for step in range(recipe.steps):
        batch = next(batches)
        model.loss(batch[:, :-1], batch[:, 1:]).backward()
        factor = min(1.0, (step + 1) / recipe.warmup, (recipe.steps - step) / (recipe.decay * recipe.steps))
        for optimizer, rates in zip(both, peaks, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


_FOUR_LAYERS: dict[str, Any] = {"depth": 4, "width": 128, "mlp_width": 341}
_TABLES: dict[str, Any] = {
    "pairs": 4225,
    "triples": 3500,
}  # 65 × 65 pairs have a row each; with the triples 0.87 M numbers

RECORDS = (
    Recipe(
        name="adamw",
        changed="Qwen3's shape, 4 layers of 128, 0.8 M parameters, AdamW",
        **_FOUR_LAYERS,
        batch=32,
        steps=300,
        optimizer="adamw",
        rate=0.004,
        embedding_rate=0.004,
        head_rate=0.004,
        warmup=20,
        residual="scaled",
    ),
    Recipe(
        name="muon",
        changed="Muon for the blocks' matrices, half the batch",
        **_FOUR_LAYERS,
        steps=215,
        rate=0.02,
        embedding_rate=0.02,
        residual="scaled",
    ),
    Recipe(
        name="pairs",
        changed="a table for the last two characters; 2 layers of 96 that begin at zero; higher rates",
        depth=2,
        steps=165,
        pairs=4225,
    ),
    Recipe(
        name="triples",
        changed="a table for the last three characters too; 1 layer",
        **_TABLES,
    ),
)
LONG = Recipe(
    name="long",
    changed="any size, within nanoGPT's 104 CPU-s",
    depth=2,
    width=128,
    mlp_width=512,
    context=128,
    steps=500,
    embedding_rate=0.05,
    pairs=4225,
    triples=20000,
)
