"""A token data set on disk, and the batches that training draws from it.

`TokenDataset` checks a data set folder and memory-maps its shards. `Loader` draws the rows of an epoch without
replacement in an order that is a function of (seed, epoch) alone, so that its whole state is two integers and a resumed
run draws what an unbroken one would. A thread has the next batch ready. Over many ranks each takes its part of every
batch: rows are shared out, not shards, so any number of ranks will do, and no row is drawn twice.
Not here: making a data set (prepare.py); what stands in a row (_layouts.py).
"""

from __future__ import annotations

import dataclasses
import functools
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tinylm.training._errors import TrainingError
from tinylm.training._files import read_json, sha256
from tinylm.training._layouts import Packed, Windows

_CHECKSUM_LIMIT = 1 << 30  # bytes: larger data sets would start too slowly; shape and id range are checked all the same


@dataclasses.dataclass(frozen=True)
class LoaderState:
    """Where the data order stands: everything that a checkpoint needs to keep of it."""

    epoch: int = 0
    index: int = 0  # rows of this epoch already drawn, by all ranks


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

    @functools.cached_property
    def documents(self) -> list[npt.NDArray[np.uint64]]:
        """Where documents start in each shard, memory-mapped. Raises TrainingError for what was not written so."""
        return [self._documents(shard) for shard in self.description["splits"][self.split]["shards"]]

    def _documents(self, shard: dict[str, Any]) -> npt.NDArray[np.uint64]:
        starts: npt.NDArray[np.uint64]
        path = self.directory / Path(str(shard.get("documents_file"))).name
        try:
            starts = np.lib.format.open_memmap(path, mode="r")
        except Exception as error:  # as for the ids
            raise TrainingError(
                f"wanted document starts at {path}, got: {error}; prepare the data set again with --overwrite"
            ) from None
        if starts.dtype != np.uint64 or sha256(path) != shard.get("documents_sha256"):
            raise TrainingError(f"{path} is damaged: prepare the data set again with --overwrite")
        return starts

    def ids(self, start: int, end: int) -> npt.NDArray[np.int64]:
        """Ids start..end of the split, counted over all its shards, as int64. Reads no more than these."""
        pieces, first = [], 0
        for shard in self.shards:
            if first < end and start < first + len(shard):
                pieces.append(np.asarray(shard[max(0, start - first) : end - first], dtype=np.int64))
            first += len(shard)
        return np.concatenate([np.empty(0, dtype=np.int64), *pieces])


class Loader:
    """Draws batches of `batch_size` rows of `context` tokens and their targets, one token on.

    packing: "windows" of the text as it stands, across documents, or "documents", kept apart (a target of -100 ends
    one; the model's `separate_documents` makes attention and positions begin anew behind it).
    rank, ranks: this process draws rows rank · batch_size / ranks and on of each batch; the state is that of all.
    """

    def __init__(
        self,
        dataset: TokenDataset,
        batch_size: int,
        context: int,
        seed: int,
        state: LoaderState,
        *,
        packing: Literal["windows", "documents"] = "windows",
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        if batch_size % ranks or not 0 <= rank < ranks:
            raise TrainingError(
                f"wanted a batch that {ranks} ranks can share equally, got {batch_size} rows: give a --batch-size that "
                f"{ranks} divides"
            )
        self.dataset, self.batch_size, self.context, self.seed = dataset, batch_size, context, seed
        self.share = range(rank * (batch_size // ranks), (rank + 1) * (batch_size // ranks))
        if packing == "windows" and not any(len(shard) > context for shard in dataset.shards):
            raise TrainingError(
                f"wanted more than {context} tokens (the context) in one shard of {dataset.directory}, got "
                f"{dataset.tokens} in all: use a longer text or a shorter --context"
            )
        self._layout = functools.partial(Windows if packing == "windows" else Packed, dataset, context, seed)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._coming: Future[tuple[Tensor, Tensor, LoaderState]] | None = None
        self.state = state
        self._epoch = state.epoch
        self.rows = self._layout(state.epoch)
        if not len(self.rows):
            raise TrainingError(
                f"wanted documents of two tokens or more in {dataset.directory}, got none: use a longer text"
            )

    def next(self) -> tuple[Tensor, Tensor]:
        """The next batch, this rank's part: inputs and targets, both (batch_size / ranks, context) int64.

        `state` is then what comes after it, however far the thread has gone.
        """
        coming = self._coming or self._thread.submit(self._draw, self.state)
        inputs, targets, self.state = coming.result()
        self._coming = self._thread.submit(self._draw, self.state)
        return inputs, targets

    def _draw(self, state: LoaderState) -> tuple[Tensor, Tensor, LoaderState]:
        """The batch at `state`, and the state behind it."""
        epoch, index = state.epoch, state.index
        drawn = []
        for number in range(self.batch_size):
            if index == len(self._rows(epoch)):
                epoch, index = epoch + 1, 0
            if number in self.share:
                drawn.append(self._rows(epoch).row(index))
            index += 1
        inputs, targets = (torch.from_numpy(np.stack(part)) for part in zip(*drawn, strict=True))
        return inputs, targets, LoaderState(epoch, index)

    def _rows(self, epoch: int) -> Windows | Packed:
        """The epoch's layout; the one before is forgotten."""
        if epoch != self._epoch:
            self.rows, self._epoch = self._layout(epoch), epoch
        return self.rows
