"""tinylm.inference: panel 2 of the explorer: embeddings, positions, and what every block does to every token.

All numbers are the model's own taps (`tinylm.model.Taps`), and its logit lens. Next: `choice.py`.
"""

import base64
from dataclasses import dataclass

import torch
from torch import Tensor

from tinylm.inference.explorer.reading import Read, Seen, token_text
from tinylm.model import logit_lens
from tinylm.model.rope import frequencies

GUESSES = 3


@dataclass(frozen=True)
class Picture:
    """A matrix as bytes, row by row, base64: 0 to 255 for `low` to `high`."""

    rows: int
    columns: int
    low: float
    high: float
    data: str


@dataclass(frozen=True)
class Guess:
    """A token and its probability."""

    id: int
    text: str
    p: float


@dataclass(frozen=True)
class Lens:
    """What the model would predict after one token if it stopped at one layer. `truth`: the probability of the token
    that really follows, None behind the last. `entropy` in bits."""

    guesses: list[Guess]
    truth: float | None
    entropy: float


@dataclass(frozen=True)
class Layer:
    """One block, per token: the length (L2 norm) of the residual stream behind it, and of what attention and the MLP
    add. `heads`: the pattern of each, rows are queries. `entropy`: of each head, the mean over the queries, in bits.
    """

    residual: list[float]
    attention: list[float]
    mlp: list[float]
    heads: list[Picture]
    entropy: list[float]


@dataclass(frozen=True)
class Layers:
    """`embed`: the token embeddings (T, D); `embed_norm`: the length of each. `turns`: RoPE's radians per position for
    each pair of a head's numbers; empty where positions are learned."""

    read: Read
    embed: Picture
    embed_norm: list[float]
    position: str
    turns: list[float]
    layers: list[Layer]
    sources: dict[str, str]


@torch.inference_mode()
def layers(seen: Seen) -> Layers:
    """What every block does; `lens` adds what it would predict."""
    taps, config = seen.taps, seen.checkpoint.model.config
    embed = taps["embed"][0]
    rope = config.position == "rope"
    return Layers(
        seen.read,
        picture(embed),
        _norms(embed),
        config.position,
        frequencies(config, torch.float32).tolist() if rope else [],
        [_layer(seen, f"blocks.{layer}") for layer in range(config.depth)],
        {name: source.text for name, source in taps.sources.items() if ".0." in name or "blocks" not in name},
    )


def _layer(seen: Seen, name: str) -> Layer:
    taps = seen.taps
    pattern = taps[f"{name}.attention.pattern"][0]
    entropy = torch.special.entr(pattern).sum(dim=-1).mean(dim=-1) / torch.tensor(2.0).log()
    return Layer(
        _norms(taps[f"{name}.output"][0]),
        _norms(taps[f"{name}.attention.output"][0]),
        _norms(taps[f"{name}.mlp"][0]),
        [picture(head, 0.0, 1.0) for head in pattern],
        entropy.tolist(),
    )


@torch.inference_mode()
def lens(seen: Seen) -> list[list[Lens]]:
    """[stage][token]: the embedding, then behind each block; the last is what the model predicts."""
    ids = torch.tensor(seen.read.ids)
    out = []
    for _, logits in logit_lens(seen.checkpoint.model, seen.taps):
        p = logits[0].softmax(dim=-1)
        values, guessed = p.topk(min(GUESSES, p.shape[1]), dim=-1)
        entropy = (torch.special.entr(p).sum(dim=-1) / torch.tensor(2.0).log()).tolist()
        truth: list[float | None] = [*p[:-1].gather(1, ids[1:, None])[:, 0].tolist(), None]
        out.append(
            [
                Lens([Guess(i, token_text(seen.checkpoint, i), v) for i, v in zip(row, mine, strict=True)], true, bits)
                for row, mine, true, bits in zip(guessed.tolist(), values.tolist(), truth, entropy, strict=True)
            ]
        )
    return out


def picture(matrix: Tensor, low: float | None = None, high: float | None = None) -> Picture:
    """(rows, columns) as bytes; without low and high, the same distance above and below 0 as the furthest number."""
    if low is None or high is None:
        high = float(matrix.abs().max())
        low = -high
    scaled = (matrix - low) / ((high - low) or 1.0) * 255
    data = scaled.round().clamp(0, 255).to(torch.uint8).contiguous().numpy().tobytes()
    rows, columns = matrix.shape
    return Picture(rows, columns, low, high, base64.b64encode(data).decode())


def _norms(x: Tensor) -> list[float]:
    norms: list[float] = torch.linalg.vector_norm(x.float(), dim=-1).tolist()
    return norms
