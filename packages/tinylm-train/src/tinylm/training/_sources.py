"""What `prepare` can read: text files, JSON lines, Parquet, and folders of those, each in memory that does not grow.

A text file is one document. A line of a JSONL file and a row of a Parquet file are a document each: the text in one of
their fields. A folder stands for the files below it that end in .txt, .jsonl or .parquet; where their names say to
which split they belong, as on the Hugging Face hub (`train-00000-of-00002.parquet`, `validation/a.jsonl`), only the
wanted split's are taken. Not here: which document goes where (_splits.py), tokens (prepare.py).
"""

from __future__ import annotations

import codecs
import dataclasses
import hashlib
import importlib
import json
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinylm.training._errors import TrainingError

BLOCK = 1 << 18  # characters read at a time
_LINES, _TABLES = (".jsonl", ".ndjson"), (".parquet",)
_VALIDATION = ("validation", "valid", "dev")
_SPLIT = re.compile(r"(?:^|[/_.-])(train|validation|valid|dev|test)(?:[/_.-])")


@dataclasses.dataclass(frozen=True)
class Source:
    """A file, read once to know its length and its identity. `field` is None for a text file."""

    path: Path
    name: str
    characters: int
    bytes: int
    sha256: str
    documents: int = 1
    field: str | None = None

    def text(self, start: int, end: int) -> Iterator[str]:
        """Characters start..end of a text file in blocks. newline="" keeps every carriage return that it has."""
        position = 0
        with self.path.open(encoding="utf-8", newline="") as file:
            while position < end and (block := file.read(BLOCK)):
                piece = block[max(0, start - position) : max(0, end - position)]
                position += len(block)
                if piece:
                    yield piece

    def records(self, first: int = 0) -> Iterator[str]:
        """The documents of a JSONL or Parquet file from number `first` on."""
        assert self.field is not None
        return records(self.path, self.field, first)

    def description(self) -> dict[str, Any]:
        """Its provenance, for data.json."""
        facts = {"name": self.name, "bytes": self.bytes, "characters": self.characters, "sha256": self.sha256}
        return facts if self.field is None else facts | {"documents": self.documents, "field": self.field}


def find(files: list[Path], field: str, split: str) -> list[Source]:
    """All sources that `files` name. split: "train" or "validation", for folders whose files say theirs."""
    return [read(path, name, field) for file in files for path, name in _expand(file, split)]


def file_name(path: Path) -> str:
    """The file's name as JSON can hold it: a name need not be UTF-8."""
    return _as_text(path.name)


def _as_text(name: str) -> str:
    return os.fsencode(name).decode("utf-8", errors="replace")


def has_validation(path: Path) -> bool:
    """Whether it is a folder in which files are named as a validation split."""
    return path.is_dir() and not {*_names(path)[1].values()}.isdisjoint(_VALIDATION)


def _names(path: Path) -> tuple[list[str], dict[str, str]]:
    """The files of a folder, and the split of those that name one."""
    names = [p.relative_to(path).as_posix() for p in path.rglob("*") if p.suffix in (".txt", *_LINES, *_TABLES)]
    names = sorted(name for name in names if not any(part.startswith(".") for part in name.split("/")))
    return names, {name: found[1] for name in names if (found := _SPLIT.search(name))}


def _expand(path: Path, split: str) -> list[tuple[Path, str]]:
    """The files that `path` stands for, and what to call them."""
    if not path.is_dir():
        return [(path, file_name(path))]
    names, marked = _names(path)
    if marked:
        wanted = ("train",) if split == "train" else _VALIDATION
        names = [name for name in names if marked.get(name, "train") in wanted]
    if not names:
        raise TrainingError(
            f"wanted .txt, .jsonl or .parquet files {'of the ' + split + ' split ' if marked else ''}in the directory "
            f"{path}, got none"
        )
    return [(path / name, _as_text(f"{path.resolve().name}/{name}")) for name in names]


def read(path: Path, name: str, field: str) -> Source:
    """Read a file once: is it what its name says, how long is it, and what is its SHA-256?"""
    try:
        if path.suffix in (*_LINES, *_TABLES):
            return _read_records(path, name, field)
        return _read_text(path, name)
    except UnicodeDecodeError as error:
        raise TrainingError(
            f"wanted UTF-8 text in {path}, got byte 0x{error.object[error.start]:02x} that is not: "
            "convert the file to UTF-8 first (for example with iconv)"
        ) from None
    except OSError as error:
        raise TrainingError(f"wanted a file to read at {path}, got: {error.strerror or error}") from None


def _read_text(path: Path, name: str) -> Source:
    digest, size, characters = hashlib.sha256(), 0, 0
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
            characters += len(decoder.decode(block))
            if 0 in block:
                raise TrainingError(f"wanted text in {path}, got NUL characters: this looks like a binary file")
    decoder.decode(b"", final=True)
    if not characters:
        raise TrainingError(f"wanted text in {path}, got an empty file")
    return Source(path, name, characters, size, digest.hexdigest())


def _read_records(path: Path, name: str, field: str) -> Source:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    documents = characters = empty = 0
    for text in records(path, field):
        documents += 1
        characters += len(text)
        empty += not text
    if not characters:
        raise TrainingError(f"wanted text in the field {field!r} of {path}, got none: name the field with --field")
    if empty:
        warnings.warn(f"{empty:,} of {documents:,} records of {path} have no text, and are left out", stacklevel=2)
    return Source(path, name, characters, path.stat().st_size, digest, documents, field)


def records(path: Path, field: str, first: int = 0) -> Iterator[str]:
    """The texts of a JSONL or Parquet file's records from number `first` on; "" for null, which many tables hold."""
    if path.suffix in _TABLES:
        return _rows(path, field, first)
    return _lines(path, field, first)


def _lines(path: Path, field: str, first: int) -> Iterator[str]:
    count = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.isspace():
                continue
            count += 1
            if count > first:
                yield _field_of(path, number, line, field)


def _field_of(path: Path, number: int, line: bytes, field: str) -> str:
    try:
        record = json.loads(line)
        text = "" if record[field] is None else record[field]
        text.encode()  # half a surrogate pair is JSON, but no text
    except UnicodeDecodeError:
        raise
    except UnicodeEncodeError:
        raise TrainingError(f"wanted text in line {number} of {path}, got half a surrogate pair in {field!r}") from None
    except KeyError:
        names = ", ".join(map(repr, sorted(record)[:8])) or "none"
        raise TrainingError(
            f"wanted the field {field!r} in line {number} of {path}, got {names}: name the field with --field"
        ) from None
    except (ValueError, RecursionError) as error:
        raise TrainingError(f"wanted a JSON object in line {number} of {path}, got what is none ({error})") from None
    except (TypeError, AttributeError):
        raise TrainingError(
            f"wanted a JSON object with text in {field!r} in line {number} of {path}, got something else: name the "
            "field with --field"
        ) from None
    assert isinstance(text, str)
    return text


def _rows(path: Path, field: str, first: int) -> Iterator[str]:
    try:
        lib, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise TrainingError(
            f'wanted pyarrow to read {path}, got no such package: pip install "tinylm-train[parquet]"'
        ) from None
    try:
        file = parquet.ParquetFile(path)
        if field not in file.schema_arrow.names:
            names = ", ".join(map(repr, file.schema_arrow.names[:8]))
            raise TrainingError(f"wanted the column {field!r} in {path}, got {names}: name the column with --field")
        number = 0
        for batch in file.iter_batches(batch_size=256, columns=[field], use_threads=False):
            for text in batch.column(0)[max(0, first - number) :].to_pylist() if number + len(batch) > first else ():
                if not isinstance(text, str | None):
                    raise TrainingError(
                        f"wanted text in every row of the column {field!r} of {path}, got {type(text).__name__}: "
                        "name the column with --field"
                    )
                yield text or ""
            number += len(batch)
        file.close()
    except lib.ArrowException as error:
        raise TrainingError(f"wanted a Parquet file at {path}, got: {str(error).splitlines()[0]}") from None
