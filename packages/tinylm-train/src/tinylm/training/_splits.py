"""Which part of which source is for training, and which is held back for validation.

"tail:0.1" holds back the last tenth of each file: of a text file's characters, of a JSONL or Parquet file's documents.
"documents:0.01" holds back about that share of the documents, whole, chosen by the SHA-256 of their contents, so that
equal documents never stand on both sides. Anything else names the validation text itself. Not here: reading
(_sources.py).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path

from tinylm.training import _sources
from tinylm.training._errors import TrainingError
from tinylm.training._sources import Source


@dataclasses.dataclass(frozen=True)
class Part:
    """Characters start..end of a text file, or its documents start..end of a file of records.

    held: of records, only those (keep) or all but those (not keep) whose content's hash is below this share.
    """

    source: Source
    start: int
    end: int
    held: float | None = None
    keep: bool = False

    def documents(self, first: int) -> Iterator[tuple[int, str]]:
        """Records from number `first` on, with their numbers; empty ones are left out."""
        for number, text in enumerate(self.source.records(first), start=first):
            if number >= self.end:
                return
            if text and (self.held is None or (_hash(text) < self.held) == self.keep):
                yield number, text


Splits = dict[str, list[Part]]


def split(sources: list[Source], validation: str, field: str) -> tuple[Splits, list[Source]]:
    """The parts of both splits, and every source that is used."""
    kind, _, share = validation.partition(":")
    if not is_share(validation):
        held_out = _sources.find([Path(validation)], field, "validation")
        return {"train": _whole(sources), "validation": _whole(held_out)}, sources + held_out
    fraction = _fraction(share, validation)
    train: list[Part] = []
    held: list[Part] = []
    if kind == "tail":
        for source in sources:
            length = source.characters if source.field is None else source.documents
            cut = int(length * (1 - fraction))
            train.append(Part(source, 0, cut))
            held.append(Part(source, cut, length))
    else:
        texts = sorted((s for s in sources if s.field is None), key=lambda s: s.sha256)
        at_least = int(len(texts) == len(sources))
        chosen = texts[: max(at_least, round(len(texts) * fraction))]
        for source in sources:
            if source.field is None:
                (held if source in chosen else train).extend(_whole([source]))
            else:
                train.append(Part(source, 0, source.documents, fraction, keep=False))
                held.append(Part(source, 0, source.documents, fraction, keep=True))
    parts = {"train": train, "validation": held}
    for name, found in parts.items():
        refuse_empty(name, any(p.end > p.start for p in found), validation, len(sources))
    return parts, sources


def refuse_empty(name: str, something: bool, validation: str, files: int) -> None:
    """A split without text is of no use to anybody."""
    if not something:
        other = "give more text" if validation.startswith("tail:") else "use tail:0.1 for few documents"
        raise TrainingError(
            f"wanted text left for training and for validation, got none for {name} with --validation "
            f"{validation} on {files} file(s): {other}, or name a validation file"
        )


def is_share(validation: str) -> bool:
    """Whether it is "tail:..." or "documents:...", and not a file."""
    return validation.partition(":")[0] in ("tail", "documents")


def _whole(sources: list[Source]) -> list[Part]:
    return [Part(s, 0, s.characters if s.field is None else s.documents) for s in sources]


def _hash(text: str) -> float:
    """The first 53 bits of the SHA-256 as a number from 0 to 1."""
    return (int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 11) / (1 << 53)


def _fraction(share: str, validation: str) -> float:
    try:
        fraction = float(share)
    except ValueError:
        fraction = -1.0
    if not 0 < fraction < 1:
        raise TrainingError(f"wanted a fraction between 0 and 1 after the colon, as in tail:0.1, got {validation!r}")
    return fraction
