"""A token data set on disk, and the order in which training draws windows from it.

`TokenDataset` checks a data set folder and memory-maps its shards. `Loader` cuts each shard into windows of the
context's length, draws them without replacement in an order that is a function of (seed, epoch) alone, and shifts the
cuts by a random offset each epoch, so that its whole state is two integers and a resumed run draws what an unbroken
one would.
Not here: making a data set (prepare.py); packing by document and sharding over ranks.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tinylm.training._errors import TrainingError
from tinylm.training._files import read_json, sha256

_CHECKSUM_LIMIT = 1 << 30  # bytes: larger data sets would start too slowly; shape and id range are checked all the same


@dataclasses.dataclass(frozen=True)
class LoaderState:
    """Where the data order stands: everything that a checkpoint needs to keep of it."""

    epoch: int = 0
    index: int = 0  # windows of this epoch already drawn


class TokenDataset:
    """One split of a data set folder, memory-mapped.

    Raises TrainingError when the files are not what data.json says.
    """

    def __init__(self, directory: str | Path, split: str = "train") -> None:
        self.directory, self.split = Path(directory), split
        self.description = read_json(
            self.directory / "data.json", "a data set's description (`tinylm-train prepare` makes one)"
        )
        try:
            facts = self.description["splits"][split]
            self.tokens, self.characters = int(facts["tokens"]), int(facts["characters"])
            self.vocab_size = int(self.description["vocab_size"])
            self.tokenizer_sha256 = str(self.description["tokenizer"]["sha256"])
            self.dtype = np.dtype(str(self.description["dtype"]))
            shards = [(str(s["file"]), int(s["tokens"]), str(s["sha256"])) for s in facts["shards"]]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise TrainingError(
                f"wanted a data set's description in {directory}/data.json, got one without {error}"
            ) from None
        agree = self.characters > 0 and self.tokens == sum(tokens for _, tokens, _ in shards) > 0
        if not agree or self.dtype not in (np.uint16, np.uint32):
            raise TrainingError(
                f"wanted tokens of uint16 or uint32 in {directory}/data.json, as many as its {split} shards have, got "
                f"{self.tokens} of {self.dtype} and {self.characters} characters: prepare it again with --overwrite"
            )
        got = sha256(self.tokenizer_file) if self.tokenizer_file.is_file() else "no such file"
        if got != self.tokenizer_sha256:
            raise TrainingError(
                f"the data set {directory} was made with another tokenizer than the tokenizer.json in it (sha256 "
                f"wanted {self.tokenizer_sha256[:12]}…, got {got[:12]}…): prepare the data set again with --overwrite"
            )
        self.shards = [self._open(*shard) for shard in shards]

    @property
    def tokenizer_file(self) -> Path:
        """The tokenizer that made this data set."""
        return self.directory / "tokenizer.json"

    def _open(self, name: str, tokens: int, digest: str) -> npt.NDArray[Any]:
        ids: npt.NDArray[Any]
        path = self.directory / Path(name).name
        try:
            ids = np.lib.format.open_memmap(path, mode="r")  # never unpickles, and reads no other kind of file
        except Exception as error:  # numpy evaluates the header, and a damaged one fails in many ways
            raise TrainingError(
                f"wanted a shard of token ids at {path}, got: {error}; prepare the data set again with --overwrite"
            ) from None
        if ids.shape != (tokens,) or ids.dtype != self.dtype:
            raise TrainingError(
                f"wanted {tokens} ids of {self.dtype} in {path}, got {ids.shape} of {ids.dtype}: "
                "prepare the data set again with --overwrite"
            )
        damaged = ids.nbytes <= _CHECKSUM_LIMIT and sha256(path) != digest
        if damaged or (tokens and int(ids.max()) >= self.vocab_size):
            raise TrainingError(
                f"the shard {path} is damaged (not the bytes that were written): prepare the data set again with "
                "--overwrite"
            )
        return ids

    def ids(self, start: int, end: int) -> npt.NDArray[np.int64]:
        """Ids start..end of the split, counted over all its shards, as int64. Reads no more than these."""
        pieces, first = [], 0
        for shard in self.shards:
            if first < end and start < first + len(shard):
                pieces.append(np.asarray(shard[max(0, start - first) : end - first], dtype=np.int64))
            first += len(shard)
        return np.concatenate([np.empty(0, dtype=np.int64), *pieces])


class Loader:
    """Draws batches of `batch_size` windows of `context` tokens and their targets, one token on."""

    def __init__(self, dataset: TokenDataset, batch_size: int, context: int, seed: int, state: LoaderState) -> None:
        self.dataset, self.batch_size, self.context, self.seed = dataset, batch_size, context, seed
        if not any(len(shard) > context for shard in dataset.shards):
            raise TrainingError(
                f"wanted more than {context} tokens (the context) in one shard of {dataset.directory}, got "
                f"{dataset.tokens} in all: use a longer text or a shorter --context"
            )
        self._start(state)

    @property
    def state(self) -> LoaderState:
        return LoaderState(self.epoch, self.index)

    def _start(self, state: LoaderState) -> None:
        """Lay out an epoch: every shard cut into windows from a random offset, and all windows shuffled."""
        self.epoch, self.index = state.epoch, state.index
        random = np.random.Generator(np.random.Philox(key=[self.seed, self.epoch]))
        places = []
        for number, shard in enumerate(self.dataset.shards):
            room = len(shard) - self.context  # one more token than the window, for the last target
            if room > 0:
                starts = np.arange(random.integers(min(self.context, room)), room, self.context, dtype=np.int64)
                places.append(np.stack([np.full_like(starts, number), starts], axis=1))
        self.windows = random.permutation(np.concatenate(places), axis=0)

    def next(self) -> tuple[Tensor, Tensor]:
        """The next batch: inputs and targets, both (batch_size, context) int64."""
        rows = []
        for _ in range(self.batch_size):
            if self.index == len(self.windows):
                self._start(LoaderState(self.epoch + 1, 0))
            shard, start = self.windows[self.index]
            rows.append(np.asarray(self.dataset.shards[shard][start : start + self.context + 1], dtype=np.int64))
            self.index += 1
        batch = torch.from_numpy(np.stack(rows))
        return batch[:, :-1].contiguous(), batch[:, 1:].contiguous()
