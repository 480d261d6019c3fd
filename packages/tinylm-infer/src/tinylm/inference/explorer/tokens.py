"""tinylm.inference: panel 1 of the explorer: text → bytes → pieces → each merge in order → ids with offsets.

The steps are those of `Tokenizer.explain`, and nothing here merges. Next: `layers.py`.
"""

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from tinylm.inference.checkpoint import Checkpoint
from tinylm.inference.explorer.reading import Read, read, tokenizer_of, visible


@dataclass(frozen=True)
class Character:
    """One character of the text, its code point, and its bytes as hexadecimal."""

    text: str
    code: str
    bytes: list[str]


@dataclass(frozen=True)
class Step:
    """One step of the encoding, at bytes start:end of the text. A merge joins left and right, at `middle`."""

    left: str
    right: str
    result: str
    rank: int | None
    start: int
    middle: int
    end: int
    says: str


@dataclass(frozen=True)
class Tokenized:
    """`pieces`, `spans`: (start, end) in bytes, of the pieces that are never merged across and of the tokens.

    `merges`: whether the steps, carried out on single bytes, end at the tokens: then they can be watched.
    """

    read: Read
    algorithm: str
    backend: str
    characters: list[Character]
    pieces: list[tuple[int, int]]
    steps: list[Step]
    spans: list[tuple[int, int]]
    merges: bool


def tokenize(checkpoint: Checkpoint, text: str) -> Tokenized:
    """What the tokenizer does with the text, as far as it is looked at. Raises what `read` raises."""
    found, tokenizer = read(checkpoint, text), tokenizer_of(checkpoint)
    spans = tokenizer.offsets(found.text, "byte")
    cut = getattr(tokenizer.engine, "pieces", None)
    return Tokenized(
        found,
        tokenizer.algorithm,
        tokenizer.backend,
        [_character(c) for c in found.text],
        _pieces(cut(found.text), spans) if cut is not None else [],
        [_step(step) for step in tokenizer.explain(found.text)],
        spans,
        tokenizer.algorithm == "bpe",
    )


def _character(character: str) -> Character:
    data = character.encode()
    return Character(visible(data), f"U+{ord(character):04X}", [f"{byte:02x}" for byte in data])


def _pieces(pieces: list[str], spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """An added token is found before the text is cut: a border inside a token is none."""
    borders = {0, *(end for _, end in spans)}
    ends = [end for end in accumulate((len(piece.encode()) for piece in pieces), initial=0) if end in borders]
    return list(pairwise(ends))


def _step(step: Any) -> Step:
    """Merge of BPE; Candidate of Unigram; Match of WordPiece: what each has, in words."""
    start = int(step.position)
    if hasattr(step, "result"):
        middle = start + len(step.left)
        left, right, result = visible(step.left), visible(step.right), visible(step.result)
        return Step(left, right, result, step.rank, start, middle, start + len(step.result), f"merge {step.rank}")
    fields = {name: value for name, value in vars(step).items() if name != "position"}
    shown = {name: visible(value) if isinstance(value, bytes) else str(value) for name, value in fields.items()}
    piece = next(iter(shown.values()), "")
    says = ", ".join(f"{name} {value}" for name, value in shown.items())
    return Step(piece, "", piece, None, start, start, start, says)
