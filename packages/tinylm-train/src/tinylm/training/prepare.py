"""Text files to a token data set: `DATA_DIR` with data.json, a copy of the tokenizer, and memory-mappable shards.

    data.json                      what the shards hold, where they came from, and with which tokenizer
    tokenizer.json                 the tokenizer itself, so that a model trained on this can carry it
    train-00000.npy                token ids, uint16 or uint32
    train-00000.documents.npy      uint64: where each document of the shard starts

Each input file is one document and ends with the tokenizer's end-of-text token, if it has one. Text is read and encoded
piece by piece, so memory does not grow with it. Not here: reading a data set (data.py); JSONL and Parquet input.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tinylm.tokenizer import Tokenizer
from tinylm.training._errors import TrainingError
from tinylm.training._files import new_directory, read_json, sha256, write_json

SHARD_TOKENS = 1 << 26  # 128 MB of uint16: few files for a large corpus, and small enough to copy about
_BLOCK = 1 << 18  # characters read at a time
Report = Callable[[int, int], None]  # characters done, characters in all


@dataclasses.dataclass(frozen=True)
class _Source:
    """A text file, read once to know its length and its identity."""

    path: Path
    characters: int
    bytes: int
    sha256: str

    def text(self, start: int, end: int) -> Iterator[str]:
        """Characters start..end in blocks. newline="" keeps every carriage return that the file has."""
        position = 0
        with self.path.open(encoding="utf-8", newline="") as file:
            while position < end and (block := file.read(_BLOCK)):
                piece = block[max(0, start - position) : max(0, end - position)]
                position += len(block)
                if piece:
                    yield piece


_Part = tuple[_Source, int, int]  # a source, and the first and last character of it that are meant


def prepare(
    files: Sequence[str | Path],
    tokenizer: str | Path,
    out: str | Path,
    validation: str | Path = "tail:0.1",
    overwrite: bool = False,
    report: Report | None = None,
) -> dict[str, Any]:
    """Tokenize `files` into the data set folder `out`; returns what its data.json says.

    validation: "tail:0.1" holds back the last tenth of each file's characters, "documents:0.01" about that share of the
    files (chosen by the SHA-256 of their contents, at least one), anything else is a file: the validation text itself.
    Preparing the same again changes nothing; a folder that holds anything else is refused unless `overwrite`.
    Raises TrainingError (or TokenizerError) for input that cannot be used; then nothing has been written.
    """
    out = Path(out)
    if not files:
        raise TrainingError("wanted at least one text file, got none")
    loaded = Tokenizer.load(tokenizer)
    folder = Path(tokenizer) if Path(tokenizer).is_dir() else Path(tokenizer).parent
    if not (folder / "tokenizer.json").is_file():
        raise TrainingError(
            f"wanted a tokenizer directory with tokenizer.json, got {tokenizer}: "
            "make one with `tinylm-tokenizer convert` and name its directory"
        )
    parts, sources = _split([_source(Path(file)) for file in files], str(validation))
    description: dict[str, Any] = {
        "tokenizer": {"file": "tokenizer.json", "sha256": sha256(folder / "tokenizer.json")},
        "vocab_size": loaded.vocab_size,
        "dtype": "uint16" if loaded.vocab_size <= 1 << 16 else "uint32",
        "validation": str(validation) if _is_share(str(validation)) else _name(Path(validation)),
        "sources": [
            {"name": _name(s.path), "bytes": s.bytes, "characters": s.characters, "sha256": s.sha256} for s in sources
        ],
    }
    if out.exists() and not overwrite:
        return _same_or_refuse(out, description)
    _refuse_foreign(out)
    total = sum(end - start for split in parts.values() for _, start, end in split)
    progress = _Progress(total, report)
    with new_directory(out) as temporary:
        for name in ("tokenizer.json", "chat_template.jinja"):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, temporary / name)
        description["splits"] = {
            name: _write_split(temporary, name, split, loaded, description["dtype"], progress)
            for name, split in parts.items()
        }
        write_json(temporary / "data.json", description)
    return read_json(out / "data.json", "a data set's description")


def _source(path: Path) -> _Source:
    """Read a file once: is it text, how long is it, and what is its SHA-256?"""
    digest, size, characters = hashlib.sha256(), 0, 0
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
                size += len(block)
        with path.open(encoding="utf-8", newline="") as text:
            while piece := text.read(1 << 20):
                characters += len(piece)
                if "\0" in piece:
                    raise TrainingError(f"wanted text in {path}, got NUL characters: this looks like a binary file")
    except UnicodeDecodeError as error:
        raise TrainingError(
            f"wanted UTF-8 text in {path}, got byte 0x{error.object[error.start]:02x} that is not: "
            "convert the file to UTF-8 first (for example with iconv)"
        ) from None
    except OSError as error:
        raise TrainingError(f"wanted a text file at {path}, got: {error.strerror}") from None
    if not characters:
        raise TrainingError(f"wanted text in {path}, got an empty file")
    return _Source(path, characters, size, digest.hexdigest())


def _split(sources: list[_Source], validation: str) -> tuple[dict[str, list[_Part]], list[_Source]]:
    """Which characters of which source belong to which split, and every source that is used."""
    kind, _, share = validation.partition(":")
    if not _is_share(validation):
        held_out = [_source(Path(validation))]
        train = [(s, 0, s.characters) for s in sources]
        return {"train": train, "validation": [(s, 0, s.characters) for s in held_out]}, sources + held_out
    fraction = _fraction(share, validation)
    if kind == "tail":
        cuts = [int(s.characters * (1 - fraction)) for s in sources]
        train = [(s, 0, cut) for s, cut in zip(sources, cuts, strict=True)]
        held = [(s, cut, s.characters) for s, cut in zip(sources, cuts, strict=True)]
    else:
        ranked = sorted(sources, key=lambda s: s.sha256)
        chosen = ranked[: max(1, round(len(ranked) * fraction))]
        train = [(s, 0, s.characters) for s in sources if s not in chosen]
        held = [(s, 0, s.characters) for s in sources if s in chosen]
    if not any(end > start for _, start, end in train) or not any(end > start for _, start, end in held):
        raise TrainingError(
            f"wanted text left for training and for validation, got none for one of them with --validation "
            f"{validation} on {len(sources)} file(s): use tail:0.1 for few files, or name a validation file"
        )
    return {"train": train, "validation": held}, sources


def _is_share(validation: str) -> bool:
    """Whether it is "tail:..." or "documents:...", and not a file."""
    return validation.partition(":")[0] in ("tail", "documents")


def _name(path: Path) -> str:
    """The file's name as JSON can hold it: a name need not be UTF-8."""
    return os.fsencode(path.name).decode("utf-8", errors="replace")


def _fraction(share: str, validation: str) -> float:
    try:
        fraction = float(share)
    except ValueError:
        fraction = -1.0
    if not 0 < fraction < 1:
        raise TrainingError(f"wanted a fraction between 0 and 1 after the colon, as in tail:0.1, got {validation!r}")
    return fraction


def _same_or_refuse(out: Path, description: dict[str, Any]) -> dict[str, Any]:
    """What stands at `out`, when it is what would be written; otherwise TrainingError says what differs."""
    existing = read_json(out / "data.json", "a data set's description (or an --out that does not exist yet)")
    different = [key for key in description if existing.get(key) != description[key]]
    if not isinstance(existing.get("splits"), dict):
        different.append("splits")
    if different:
        raise TrainingError(
            f"{out} already holds a data set made from something else (it differs in {', '.join(different)}): "
            "choose another --out, or replace it with --overwrite"
        )
    for file, digest in _checksums(existing["splits"]):
        if not (out / file).is_file() or sha256(out / file) != digest:
            raise TrainingError(f"{out / file} is damaged: replace the data set with --overwrite")
    return existing


def _checksums(splits: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Every .npy file of a data set and its SHA-256."""
    shards = [shard for split in splits.values() for shard in split["shards"]]
    try:
        documents = [(shard["documents_file"], shard["documents_sha256"]) for shard in shards]
        return [(shard["file"], shard["sha256"]) for shard in shards] + documents
    except KeyError as error:
        raise TrainingError(
            f"wanted the checksum of every file in data.json, got a shard without {error}: replace the data set with "
            "--overwrite"
        ) from None


def _refuse_foreign(out: Path) -> None:
    """--overwrite removes what stands at `out`, so nothing but a data set may stand there."""
    if out.exists() and not out.is_dir():
        raise TrainingError(f"wanted a folder for the data set, got the file {out}: choose another --out")
    known = ("data.json", "tokenizer.json", "chat_template.jinja")
    foreign = [p.name for p in (out.iterdir() if out.exists() else ()) if p.name not in known and p.suffix != ".npy"]
    if foreign:
        raise TrainingError(
            f"--overwrite would remove what is no part of a data set from {out} ({', '.join(sorted(foreign)[:5])}): "
            "choose another --out, or remove it yourself"
        )


class _Progress:
    """Counts characters as they are read and tells `report`."""

    def __init__(self, total: int, report: Report | None) -> None:
        self.total, self.done, self.report = total, 0, report

    def watch(self, blocks: Iterator[str]) -> Iterator[str]:
        for block in blocks:
            yield block
            self.done += len(block)
            if self.report:
                self.report(self.done, self.total)


def _write_split(
    folder: Path, name: str, parts: list[_Part], tokenizer: Tokenizer, dtype: str, progress: _Progress
) -> dict[str, Any]:
    """Encode a split's documents into shards; returns its counts and the shards' names and checksums."""
    writer = _ShardWriter(folder, name, np.dtype(dtype))
    characters = 0
    for source, start, end in parts:
        if end == start:
            continue
        writer.start_document()
        ids = tokenizer.encode_stream(progress.watch(source.text(start, end)))
        while (block := np.fromiter(itertools.islice(ids, 1 << 20), dtype=dtype)).size:
            writer.append(block)
        # Only a document that is whole ends here: the first nine tenths of a text do not.
        if tokenizer.eos_id is not None and end == source.characters:
            writer.append(np.array([tokenizer.eos_id], dtype=dtype))
        characters += end - start
    shards = writer.finish()
    return {
        "tokens": sum(shard["tokens"] for shard in shards),
        "documents": sum(shard["documents"] for shard in shards),
        "characters": characters,
        "shards": shards,
    }


class _ShardWriter:
    """Collects ids and writes a shard whenever there are SHARD_TOKENS of them. A long document goes on in the next."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype[Any]) -> None:
        self.folder, self.name, self.dtype = folder, name, dtype
        self.blocks: list[npt.NDArray[Any]] = []
        self.tokens = 0
        self.documents: list[int] = []
        self.shards: list[dict[str, Any]] = []

    def start_document(self) -> None:
        if self.tokens == SHARD_TOKENS:
            self._write()
        self.documents.append(self.tokens)

    def append(self, ids: npt.NDArray[Any]) -> None:
        while self.tokens + len(ids) > SHARD_TOKENS:
            room = SHARD_TOKENS - self.tokens
            self.blocks.append(ids[:room])
            self.tokens += room
            ids = ids[room:]
            self._write()
        self.blocks.append(ids)
        self.tokens += len(ids)

    def finish(self) -> list[dict[str, Any]]:
        if self.tokens:
            self._write()
        return self.shards

    def _write(self) -> None:
        stem = f"{self.name}-{len(self.shards):05d}"
        ids, documents = f"{stem}.npy", f"{stem}.documents.npy"
        np.save(self.folder / ids, np.concatenate(self.blocks).astype(self.dtype, copy=False))
        np.save(self.folder / documents, np.array(self.documents, dtype=np.uint64))
        self.shards.append(
            {
                "file": ids,
                "tokens": self.tokens,
                "sha256": sha256(self.folder / ids),
                "documents_file": documents,
                "documents": len(self.documents),
                "documents_sha256": sha256(self.folder / documents),
            }
        )
        self.blocks, self.documents, self.tokens = [], [], 0
