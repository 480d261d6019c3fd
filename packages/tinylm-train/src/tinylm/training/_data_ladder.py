"""The ladder of the component "data": a Python list, memory-mapped shards, and the loader that training uses.

Work is a data set of made-up ids on the disk; a rung opens it and draws batches, which must be the same ones. What the
top rung buys beyond the middle one is not in these figures: its checks of what it opens cost time here, and its thread
saves time only while something else computes (benchmarks/data.py measures it beside training steps). Plain data, no
import of torch before work is run. Not here: timing (tinylm.observability).
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    Batches = list[tuple[Tensor, Tensor]]

BATCHES, _ROWS, _CONTEXT, _SHARDS, _VOCABULARY = 200, 8, 256, 4, 50_000


@dataclass
class Work:
    """A folder with a data set; it goes when the work does."""

    folder: tempfile.TemporaryDirectory[str] = field(default_factory=tempfile.TemporaryDirectory)

    @property
    def shards(self) -> list[Path]:
        return [Path(self.folder.name) / f"train-{number:05d}.npy" for number in range(_SHARDS)]


def rungs() -> list[dict[str, Any]]:
    """Lowest rung first; see tinylm.observability for the meaning of the keys."""
    common = {
        "component": "data",
        "ladder": f"data, {BATCHES} batches of {_ROWS} x {_CONTEXT} tokens from a data set on the disk",
        "make": _make,
        "amount": lambda work: BATCHES * _ROWS * _CONTEXT,
        "compare": _difference,
        "unit": "tokens",
        "size": 4_000_000,
    }
    mapped = (
        "turning every id into a Python object took the time and the memory: shards are mapped, windows read when drawn"
    )
    exact = "shards are checked, the state is two integers, ranks share a batch, a thread has the next one ready"
    return [
        common | {"rung": rung, "module": f"tinylm.training.{module}", "change": change, "equals": equals, "run": run}
        for rung, module, change, equals, run in (
            ("Python list", "list_loader", "all ids in lists; windows, shuffled; the next few", None, _run_list),
            ("memory-mapped shards", "mapped_loader", mapped, "Python list", _run_mapped),
            ("prefetching, exactly resumable", "data", exact, "Python list", _run_loader),
        )
    ]


def _make(size: int) -> Work:
    """`size` ids in shards, with the data.json that describes them."""
    import numpy as np

    work, random = Work(), np.random.default_rng(0)
    described = []
    for path in work.shards:
        np.save(path, random.integers(_VOCABULARY, size=size // _SHARDS, dtype=np.uint16))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        described.append({"file": path.name, "tokens": size // _SHARDS, "sha256": digest})
    (Path(work.folder.name) / "tokenizer.json").write_bytes(b"{}")
    split = {"tokens": size // _SHARDS * _SHARDS, "characters": size, "shards": described}
    description = {
        "format": 1,
        "dtype": "uint16",
        "vocab_size": _VOCABULARY,
        "tokenizer": {"file": "tokenizer.json", "sha256": hashlib.sha256(b"{}").hexdigest()},
        "splits": {"train": split},
    }
    (Path(work.folder.name) / "data.json").write_text(json.dumps(description), "utf-8")
    return work


def _run_list(work: Work) -> Batches:
    import numpy as np

    from tinylm.training.list_loader import ListLoader

    loader = ListLoader([np.load(path).tolist() for path in work.shards], _ROWS, _CONTEXT, 0)
    return [loader.next() for _ in range(BATCHES)]


def _run_mapped(work: Work) -> Batches:
    import itertools

    from tinylm.training.mapped_loader import batches

    return list(itertools.islice(batches(work.shards, _ROWS, _CONTEXT, 0), BATCHES))


def _run_loader(work: Work) -> Batches:
    from tinylm.training.data import Loader, LoaderState, TokenDataset

    loader = Loader(TokenDataset(work.folder.name), _ROWS, _CONTEXT, 0, LoaderState())
    return [loader.next() for _ in range(BATCHES)]


def _difference(result: Batches, reference: Batches) -> float:
    """How many tokens differ."""
    return float(
        sum(
            int((a != b).sum())
            for mine, theirs in zip(result, reference, strict=True)
            for a, b in zip(mine, theirs, strict=True)
        )
    )
