"""A checkpoint's tensors as safetensors files, in the layout of torch.distributed.checkpoint's Hugging Face storage.

Of a tensor that is spread over processes each writes its part into a file of its own, and whoever reads, on however
many processes, takes the pieces of those files that it needs. One process alone writes the same kind of file straight
from the tensors (_tensor_file.py): the storage would copy all of them twice. Nothing is pickled into a file. Not here:
which tensors (snapshot.py), the folder around them (checkpoint.py).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

from tinylm.model import Transformer
from tinylm.training._tensor_file import write_tensors
from tinylm.training.snapshot import Optimizers, parameters_of
from tinylm.training.spread import local, spread_as

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_ALONE = "shard-00001-model-00001-of-00001.safetensors"  # as the storage names the file of one process


def save_tensors(folder: Path, tensors: Mapping[str, Tensor], sharders: ProcessGroup | None = None) -> dict[Path, str]:
    """Write this process's parts into `folder`; sharders: those who write the others'. OSError when it cannot be.

    Returns the SHA-256 of the files where it is known without reading them."""
    if sharders is None:
        folder.mkdir(exist_ok=True)
        return {folder / _ALONE: write_tensors(tensors, folder / _ALONE)}
    writer = HuggingFaceStorageWriter(os.fspath(folder), save_distributed=True)
    try:
        save_distributed(dict(tensors), storage_writer=writer, process_group=sharders)
    except CheckpointException as error:
        causes = [cause[0] if isinstance(cause, tuple) else cause for cause in error.failures.values()]
        if causes and isinstance(causes[0], RuntimeError):  # another process has gone
            raise causes[0] from None
        raise OSError(f"could not write {folder}: {causes[0] if causes else error}") from error
    return {}


def load_tensors(folder: Path, model: Transformer, optimizers: Optimizers) -> dict[str, Tensor]:
    """Every tensor of `folder`; of those of a parameter that is spread over processes, the part that is here."""
    reader = HuggingFaceStorageReader(os.fspath(folder))
    entries = reader.read_metadata().state_dict_metadata
    parameters = parameters_of(entries, model, optimizers)
    tensors: dict[str, Tensor] = {}
    for name, entry in entries.items():
        if not isinstance(entry, TensorStorageMetadata):
            continue
        like = parameters.get(name)
        if like is not None and like.shape == entry.size:
            tensors[name] = spread_as(torch.empty_like(local(like), dtype=entry.properties.dtype), like)
        else:
            tensors[name] = torch.empty(entry.size, dtype=entry.properties.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load_distributed(tensors, storage_reader=reader, no_dist=True)
    return {name: local(tensor) for name, tensor in tensors.items()}
