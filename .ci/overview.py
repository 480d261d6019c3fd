"""Draws Home's picture from a trained model: what happens to a few words in each of the five packages.

    python .ci/overview.py data/processed/shakespeare/model "Good morrow, my" " lord"

writes docs/overview.svg: the checkpoint's own tokens, ids and probabilities, and the loss of the given continuation.
The page holds the SVG inline, so its text has the page's colour, in light and in dark. Not here: pictures of the
ladders (pages.py).
"""

import math
import sys
from html import escape
from pathlib import Path

import torch

from tinylm.model import Transformer
from tinylm.tokenizer import Tokenizer

OUT = Path(__file__).parents[1] / "docs" / "overview.svg"
WIDTH, LEFT, RIGHT = 480, 60, 420
TEAL = "#26a69a"


def text(x: float, y: float, words: str, size: int = 13, extra: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" {extra}>{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, paint: str) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5" {paint}/>'


def frame(y: float, height: float) -> str:
    return box(LEFT, y, RIGHT - LEFT, height, 'fill-opacity=".06"')


def arrow(path: str) -> str:
    return f'<path d="{path}" fill="none" stroke="{TEAL}" stroke-width="2" marker-end="url(#tip)"/>'


def package(y: float, name: str, does: str) -> str:
    """A package's name beside an arrow that leads down to y."""
    label = text(252, y - 24, name, 13, f'fill="{TEAL}" font-weight="bold"') + text(252, y - 9, does, 12)
    return arrow(f"M240 {y - 38}V{y - 6}") + label


def shown(piece: str) -> str:
    return piece.replace(" ", "␣").replace("\n", "⏎")


def chips(ids: list[int], pieces: list[str], y: float) -> str:
    """Each token above its id."""
    wide = (RIGHT - LEFT - 16) / len(ids)
    drawn = []
    for place, (number, piece) in enumerate(zip(ids, pieces, strict=True)):
        middle = LEFT + 8 + wide * (place + 0.5)
        drawn.append(box(middle - wide / 2 + 3, y + 8, wide - 6, 40, f'fill="{TEAL}" fill-opacity=".18"'))
        drawn.append(text(middle, y + 25, shown(piece), 13, 'text-anchor="middle" font-family="monospace"'))
        drawn.append(text(middle, y + 42, str(number), 12, 'text-anchor="middle" font-family="monospace" opacity=".8"'))
    return "".join(drawn)


def bars(likeliest: list[tuple[str, float]], y: float) -> str:
    """A bar for each of the likeliest next tokens."""
    drawn = []
    for row, (piece, share) in enumerate(likeliest):
        top = y + 10 + 20 * row
        drawn.append(text(LEFT + 90, top + 12, shown(piece), 13, 'text-anchor="end" font-family="monospace"'))
        drawn.append(box(LEFT + 98, top, 200 * share, 15, f'fill="{TEAL}"'))
        drawn.append(text(LEFT + 104 + 200 * share, top + 12, f"{share:.1%}".replace("%", " %"), 12))
    return "".join(drawn)


def draw(checkpoint: Path, prompt: str, continuation: str) -> str:
    """The picture."""
    model, tokenizer = Transformer.load(checkpoint), Tokenizer.load(checkpoint)
    ids, (wanted,) = tokenizer.encode(prompt), tokenizer.encode(continuation)
    with torch.inference_mode():
        probabilities = torch.softmax(model(torch.tensor([ids]))[0, -1].double(), 0)
    shares, numbers = probabilities.topk(4)
    likeliest = [
        (tokenizer.decode([number]), share) for share, number in zip(shares.tolist(), numbers.tolist(), strict=True)
    ]
    loss = -math.log(float(probabilities[wanted]))
    parts = [
        frame(18, 34),
        text(240, 40, prompt, 15, 'text-anchor="middle" font-family="monospace"'),
        package(104, "tinylm-tokenizer", "text ↔ ids"),
        frame(104, 56),
        chips(ids, [tokenizer.decode([number]) for number in ids], 104),
        package(212, "tinylm-model", f"ids → {tokenizer.vocab_size:,} scores, one a token"),
        frame(212, 96),
        bars(likeliest, 212),
        arrow("M130 312V346"),
        arrow("M350 312V346"),
        text(130, 366, "tinylm-train", 13, f'text-anchor="middle" fill="{TEAL}" font-weight="bold"'),
        text(130, 384, f"really came: {shown(continuation)}", 12, 'text-anchor="middle"'),
        text(130, 401, f"loss = −ln p = {loss:.2f}", 12, 'text-anchor="middle"'),
        text(130, 418, "every number a little better", 12, 'text-anchor="middle"'),
        text(350, 366, "tinylm-infer", 13, f'text-anchor="middle" fill="{TEAL}" font-weight="bold"'),
        text(350, 384, "draw one of them,", 12, 'text-anchor="middle"'),
        text(350, 401, "put it behind the text,", 12, 'text-anchor="middle"'),
        text(350, 418, "and again", 12, 'text-anchor="middle"'),
        arrow(f"M40 390H26Q16 390 16 380V270Q16 260 26 260H{LEFT - 6}"),
        arrow(f"M440 390H454Q464 390 464 380V45Q464 35 454 35H{RIGHT + 6}"),
        box(16, 440, 448, 30, f'fill="none" stroke="{TEAL}" stroke-dasharray="4 3"'),
        text(30, 460, "tinylm-obs", 13, f'fill="{TEAL}" font-weight="bold"'),
        text(120, 460, "looks at all of it: runs, profiles, ladders", 12),
    ]
    about = f"What happens to the words {prompt} in each of the five packages"
    opening = [
        f'<svg class="overview" viewBox="0 0 {WIDTH} 480" role="img" aria-label="{escape(about)}"',
        ' fill="currentColor" font-family="sans-serif" xmlns="http://www.w3.org/2000/svg">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="5" markerHeight="5" orient="auto">',
        f'<path d="M0 0L8 4L0 8z" fill="{TEAL}"/></marker></defs>',
    ]
    return "\n".join([*opening, *parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    checkpoint, prompt, continuation = sys.argv[1:]
    OUT.write_text(draw(Path(checkpoint), prompt, continuation), encoding="utf-8")
