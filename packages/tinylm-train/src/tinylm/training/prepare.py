"""Text to a token data set: `DATA_DIR` with data.json, a copy of the tokenizer, and memory-mappable shards.

    data.json                      what the shards hold, where they came from, and with which tokenizer
    tokenizer.json                 the tokenizer itself, so that a model trained on this can carry it; beside it, where
                                   the tokenizer has them, tokenizer_config.json and chat_template.jinja
    train-00000.npy                token ids, uint16 or uint32
    train-00000.documents.npy      uint64: where each document of the shard starts

Each text file, and each record of a JSONL or Parquet file, is one document and ends with the tokenizer's end-of-text
token, if it has one. Text is read, encoded on threads and written piece by piece, so memory does not grow with it, and
a prepare that was killed goes on from its last whole shard. Not here: formats of input (_sources.py), which part is
held back (_splits.py), threads (_encoding.py), files (_shards.py, _building.py); reading a data set (data.py).
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinylm.tokenizer import Tokenizer
from tinylm.training import _sources, _splits
from tinylm.training._building import Building, building
from tinylm.training._encoding import Encoder
from tinylm.training._errors import TrainingError
from tinylm.training._files import read_json, sha256, write_json
from tinylm.training._shards import Writer
from tinylm.training._splits import Splits

SHARD_TOKENS = 1 << 26  # 128 MB of uint16: few files for a large corpus, and small enough to copy about
Report = Callable[[int, int], None]  # characters done, characters in all


_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def prepare(
    files: Sequence[str | Path],
    tokenizer: str | Path,
    out: str | Path,
    validation: str | Path = "tail:0.1",
    overwrite: bool = False,
    report: Report | None = None,
    *,
    field: str = "text",
    license: str | None = None,
    threads: int | None = None,
) -> dict[str, Any]:
    """Tokenize `files` into the data set folder `out`; returns what its data.json says.

    files: UTF-8 text, .jsonl and .parquet (with the text in `field`), and folders of those.
    validation: "tail:0.1" holds back the last tenth of each file, "documents:0.01" about that share of the documents
    (chosen by the SHA-256 of their contents), anything else is a file or folder: the validation text itself.
    license: kept in data.json. threads: how many encode (default: one a core); the result is the same for any number.
    Preparing the same again changes nothing, or goes on where a killed process stopped; a folder that holds anything
    else is refused unless `overwrite`.
    Raises TrainingError (or TokenizerError) for input that cannot be used; then nothing has been written.
    """
    out = Path(out)
    if not files:
        raise TrainingError("wanted at least one text file, got none")
    if threads is not None and threads < 1:
        raise TrainingError(f"wanted 1 or more threads, got {threads}")
    loaded = Tokenizer.load(tokenizer)
    folder = Path(tokenizer) if Path(tokenizer).is_dir() else Path(tokenizer).parent
    if not (folder / "tokenizer.json").is_file():
        raise TrainingError(
            f"wanted a tokenizer directory with tokenizer.json, got {tokenizer}: "
            "make one with `tinylm-tokenizer convert` and name its directory"
        )
    found = _sources.find([Path(file) for file in files], field, "train")
    parts, sources = _splits.split(found, str(validation), field)
    share = _splits.is_share(str(validation))
    if share and (own := [str(file) for file in files if _sources.has_validation(Path(file))]):
        say = f"{own[0]} has a validation split of its own, which --validation {validation} leaves out"
        warnings.warn(f"{say}: --validation {own[0]} takes it", stacklevel=2)
    description: dict[str, Any] = {
        "tokenizer": {"file": "tokenizer.json", "sha256": sha256(folder / "tokenizer.json")},
        "vocab_size": loaded.vocab_size,
        "dtype": "uint16" if loaded.vocab_size <= 1 << 16 else "uint32",
        "validation": str(validation) if share else _sources.file_name(Path(validation)),
        "sources": [source.description() for source in sources],
    }
    if license is not None:
        description["license"] = license
    if out.exists() and not overwrite:
        return _same_or_refuse(out, description)
    _refuse_foreign(out)
    encoder = Encoder(loaded, description["dtype"], threads or _cores(), _Progress(parts, report).read)
    with building(out, {**description, "shard_tokens": SHARD_TOKENS}, list(parts)) as work:
        _write_splits(work, parts, encoder, str(validation))
        for name in _TOKENIZER:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, work.folder / name)
        write_json(work.folder / "data.json", description | {"splits": _counts(work)})
    return read_json(out / "data.json", "a data set's description")


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _write_splits(work: Building, parts: Splits, encoder: Encoder, validation: str) -> None:
    for name, standing in work.standing.items():
        encoder.read(standing.characters)
        if not standing.whole:
            writer = Writer(standing, work.folder, name, encoder.dtype, SHARD_TOKENS, work.save)
            writer.write(encoder.pieces(parts[name], standing.place))
        # which records a hash holds back is known only now
        _splits.refuse_empty(name, bool(standing.characters), validation, len(parts[name]))


def _counts(work: Building) -> dict[str, Any]:
    """What data.json says of each split."""
    return {
        name: {
            "tokens": sum(shard["tokens"] for shard in standing.shards),
            "documents": sum(shard["documents"] for shard in standing.shards),
            "characters": standing.characters,
            "shards": standing.shards,
        }
        for name, standing in work.standing.items()
    }


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
    known = ("data.json", *_TOKENIZER)
    names = {path.name for path in out.iterdir()} if out.exists() else set()
    if names and names <= set(_TOKENIZER):
        raise TrainingError(f"{out} holds a tokenizer and no data set: choose another --out")
    foreign = [name for name in names if name not in known and not name.endswith(".npy")]
    if foreign:
        raise TrainingError(
            f"--overwrite would remove what is no part of a data set from {out} ({', '.join(sorted(foreign)[:5])}): "
            "choose another --out, or remove it yourself"
        )


class _Progress:
    """Counts characters as they are read and tells `report`."""

    def __init__(self, parts: Splits, report: Report | None) -> None:
        of_texts = sum(p.end - p.start for split in parts.values() for p in split if p.source.field is None)
        of_records = {p.source.path: p.source.characters for s in parts.values() for p in s if p.source.field}
        self.total, self.done, self.report = of_texts + sum(of_records.values()), 0, report

    def read(self, characters: int) -> None:
        self.done += characters
        if self.report and characters:
            self.report(self.done, self.total)
