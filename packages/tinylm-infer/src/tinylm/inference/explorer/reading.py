"""tinylm.inference: a text as the explorer reads it: its ids, cut where they would be too many, and the model's taps.

All panels look at the same reading. Not here: what they show of it (`tokens.py`, `layers.py`, ...).
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor

from tinylm.inference._errors import InferenceError
from tinylm.inference.checkpoint import Checkpoint
from tinylm.inference.explorer.library import Library, Point
from tinylm.model import Taps
from tinylm.model.tracing import Trace, trace_forward
from tinylm.tokenizer import Tokenizer

LIMIT = 64  # tokens that are looked at; every pair of them is a number in every head
TEXT_LIMIT = 20_000  # characters that are read at all
KEPT = 6


@dataclass(frozen=True)
class Token:
    """One token of the text: its bytes as hexadecimal, as readable text, and the characters start:end it stands at
    (None for one that the tokenizer put there, or that stands for an empty text)."""

    id: int
    text: str
    hex: str
    start: int | None
    end: int | None


@dataclass(frozen=True)
class Read:
    """`text` is what is looked at; `cut`: how many tokens of the given text are left out, or None."""

    text: str
    tokens: list[Token]
    cut: int | None
    note: str | None

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]


@dataclass(frozen=True)
class Seen:
    """A reading with what the model computed: the taps of one forward pass over (1, T) ids, logits included."""

    read: Read
    taps: Taps
    checkpoint: Checkpoint


def visible(data: bytes) -> str:
    """Bytes as text on one line: control and formatting characters, and parts of a character, as escapes."""
    text = data.decode("utf-8", errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def tokenizer_of(checkpoint: Checkpoint) -> Tokenizer:
    assert checkpoint.tokenizer is not None  # library.py opens none without
    return checkpoint.tokenizer


def token_text(checkpoint: Checkpoint, token_id: int) -> str:
    """What a token reads as; "" for an id that the model has and the tokenizer has not."""
    tokenizer = tokenizer_of(checkpoint)
    return visible(tokenizer.id_to_bytes(token_id)) if token_id < tokenizer.vocab_size else ""


def read(checkpoint: Checkpoint, text: str, limit: int = LIMIT) -> Read:
    """The first `limit` tokens of `text`; InferenceError where there is none to begin with, TokenizerError for a text
    that is not Unicode."""
    tokenizer = tokenizer_of(checkpoint)
    given, text = text, text[:TEXT_LIMIT]
    limit = min(limit, checkpoint.model.config.context - 2)  # room to write on
    plain = tokenizer.encode(text)
    around = len(tokenizer.encode("", add_special_tokens=True))
    left_out = 0
    if len(plain) > limit - around or len(given) > len(text):
        text = tokenizer.truncate(text, max(limit - around, 1))
        left_out, plain = len(plain), tokenizer.encode(text)
        left_out -= len(plain)
    ids = tokenizer.encode(text, add_special_tokens=True)
    note = None
    if left_out:
        beyond = " or more" if len(given) > TEXT_LIMIT else ""
        note = f"The text is long: its first {len(plain)} tokens are shown, {left_out}{beyond} are left out."
    if not ids:
        ids = _start(checkpoint)
        note = f"The text is empty: it begins at the token {visible(tokenizer.id_to_bytes(ids[0]))}."
    before = next(at for at in range(len(ids) + 1) if ids[at : at + len(plain)] == plain)
    spans: list[tuple[int, int] | tuple[None, None]] = [(None, None)] * len(ids)
    spans[before : before + len(plain)] = tokenizer.offsets(text)
    tokens = [_token(tokenizer, i, *span) for i, span in zip(ids, spans, strict=True)]
    return Read(text, tokens, left_out or None, note)


def _start(checkpoint: Checkpoint) -> list[int]:
    bos = tokenizer_of(checkpoint).bos_id
    start = [bos] if bos is not None else list(checkpoint.eos_token_ids[:1])
    if not start:
        raise InferenceError("the text is empty, and this model has no token to begin a text with: write something")
    return start


def _token(tokenizer: Tokenizer, token_id: int, start: int | None, end: int | None) -> Token:
    data = tokenizer.id_to_bytes(token_id)
    return Token(token_id, visible(data), data.hex(" "), start, end)


class Readings:
    """The last few forward passes, so that turning a knob does not compute the model again."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self._kept: OrderedDict[tuple[Point, tuple[int, ...]], Taps] = OrderedDict()
        self._trace: tuple[tuple[Point, tuple[int, ...]], Trace] | None = None

    def trace(self, point: int, text: str) -> tuple[Checkpoint, Read, Trace]:
        """A watched forward pass (`arithmetic.py`); the last one is kept."""
        checkpoint = self.library.open(point)
        found = read(checkpoint, text)
        key = (self.library.point(point), tuple(found.ids))
        if self._trace is None or self._trace[0] != key:
            self._trace = (key, trace_forward(checkpoint.model, torch.tensor([found.ids])))
        return checkpoint, found, self._trace[1]

    def read(self, point: int, text: str) -> Read:
        return read(self.library.open(point), text)

    def see(self, point: int, text: str) -> Seen:
        checkpoint = self.library.open(point)
        found = read(checkpoint, text)
        key = (self.library.point(point), tuple(found.ids))
        if key not in self._kept:
            self._kept[key] = forward(checkpoint, found.ids)
        self._kept.move_to_end(key)
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return Seen(found, self._kept[key], checkpoint)


@torch.inference_mode()
def forward(checkpoint: Checkpoint, ids: list[int]) -> Taps:
    """All taps of one forward pass. InferenceError where the logits are no numbers."""
    taps = Taps()
    logits: Tensor = checkpoint.model(torch.tensor([ids]), taps=taps)
    if not bool(logits.isfinite().all()):
        raise InferenceError("the model's logits are not numbers (NaN or infinite): its weights are damaged")
    return taps
