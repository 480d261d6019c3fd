"""What survives a kill: step folders, written whole or not at all, and the published copy of the newest one.

    CHECKPOINT_DIR/
      config.json model.safetensors generation_config.json                                        published copies
      tokenizer.json tokenizer_config.json [chat_template.jinja]
      steps/00000500/             the same files, and
        state/                    the optimisers' tensors: safetensors through torch.distributed.checkpoint; with an
                                  average of the weights also the weights themselves (model.safetensors is the average)
        state.json                step, RNG, loader position, options, and the SHA-256 of every file above

Resume reads `steps/` only, newest first, and passes over a folder whose checksums do not agree. `snapshot` copies a
run's state into memory of its own, so that `write` can take its time while training goes on (_writer.py).
Not here: when to save (trainer.py); the layout of config.json and model.safetensors (tinylm.model).
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

from tinylm.model import Transformer
from tinylm.training._errors import TrainingError
from tinylm.training._files import LaterFormat, new_directory, publish, read_json, sha256, write_json
from tinylm.training.data import LoaderState, TokenDataset

_WEIGHTS = "weights."  # prefix of the weights proper beside the optimisers' tensors
Optimizers = Mapping[str, torch.optim.Optimizer]


@dataclasses.dataclass(frozen=True)
class Progress:
    """The part of a run's state that is neither weights nor optimiser tensors."""

    step: int  # updates done
    total_steps: int | None  # None: still being timed
    loader: LoaderState
    seconds: float  # training time so far, over all attempts
    options: Mapping[str, Any]  # with what the dial set: a resumed run must come to the same
    data_sha256: str  # of data.json
    dtype: str  # what "auto" came to: measured again after a stop, it might come to something else,
    threads: int  # and sums taken in another order are other numbers
    compiled: bool = False  # likewise
    scale: tuple[float, int] | None = None  # of the loss in float16, and the updates it has lasted
    losses: tuple[float, ...] = ()  # of the newest steps, and their gradient norms: what a spike is told by
    norms: tuple[float, ...] = ()
    skipped: tuple[int, ...] = ()  # steps whose batches are passed over since a rollback
    best_step: int | None = None  # of the best validation that has a step folder
    best_validation: float | None = None


class Snapshot:
    """A run's state in memory of its own, kept from one checkpoint to the next so that it is allocated once."""

    def __init__(self, model: Transformer) -> None:
        with torch.device("meta"):
            twin = Transformer(model.config)
        self.model = twin.to_empty(device="cpu")  # what is published
        self.tensors: dict[str, Tensor] = {}
        self.numbers: dict[str, float] = {}
        self.rng = ""

    def take(
        self,
        model: Transformer,
        optimizers: Optimizers,
        average: Mapping[str, Tensor] | None,
        whole: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    ) -> None:
        """Copy everything; `average`: the averaged weights, by name, which are then what is published; `whole`: how to
        get all of a tensor that is spread over processes."""
        tensors, self.numbers = _flatten(model, optimizers)
        weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
        if average is not None:
            tensors |= {f"{_WEIGHTS}{name}": weight for name, weight in weights.items()}
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(whole((average or weights)[name]))
        self.tensors = {name: self.tensors.get(name, torch.empty(0)) for name in tensors}
        for name, part in tensors.items():
            tensor = whole(part)
            if self.tensors[name].shape != tensor.shape or self.tensors[name].dtype != tensor.dtype:
                self.tensors[name] = torch.empty_like(tensor, device="cpu")
            self.tensors[name].copy_(tensor)
        self.rng = base64.b64encode(torch.get_rng_state().numpy().tobytes()).decode()


def write(
    out: Path,
    snapshot: Snapshot,
    progress: Progress,
    dataset: TokenDataset,
    keep: int,
    check: Callable[[], None] = lambda: None,
) -> Path:
    """Write steps/<step>/ as a whole, publish its model at the top of `out`, and drop all but the newest `keep` and the
    best. `check` is called now and then and may raise: then nothing of the folder is left."""
    final = out / "steps" / f"{progress.step:08d}"
    with new_directory(final) as folder:
        snapshot.model.save(folder, provenance={"tokenizer_sha256": dataset.tokenizer_sha256})
        check()
        for name in ("tokenizer.json", "chat_template.jinja"):
            if (dataset.directory / name).is_file():
                shutil.copyfile(dataset.directory / name, folder / name)
        _write_settings(folder, dataset)
        _save_tensors(folder / "state", snapshot.tensors)
        check()
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        write_json(
            folder / "state.json",
            _sealed(
                {
                    **dataclasses.asdict(progress),
                    "rng": snapshot.rng,
                    "optimizer": snapshot.numbers,
                    "sha256": {path.relative_to(folder).as_posix(): sha256(path) for path in files},
                }
            ),
        )
        check()
    publish_model(final, out)
    # What stands at a later step than this one was found damaged: a run goes on from the newest that is whole.
    kept = [folder for folder in step_folders(out) if int(folder.name) <= progress.step][:keep]
    for folder in step_folders(out):
        if folder not in kept and int(folder.name) != progress.best_step:
            shutil.rmtree(folder)
    return final


def publish_model(folder: Path, out: Path) -> None:
    """Put the model's files of a step folder at the top of `out`, where they differ from what stands there."""
    for path in folder.iterdir():
        target = out / path.name
        if not path.is_file() or path.name == "state.json":
            continue
        if not target.is_file() or sha256(target) != sha256(path):
            publish(path, target)


def step_folders(out: Path) -> list[Path]:
    """The complete step folders of a checkpoint directory, newest first."""
    steps = out / "steps"
    return sorted(
        (p for p in steps.glob("*") if p.name.isdigit() and p.is_dir()), key=lambda p: int(p.name), reverse=True
    )


def newest(out: Path, say: Callable[[str], None]) -> tuple[Path, Progress] | None:
    """The newest step folder that is undamaged, and its progress; None when there is no step folder at all.

    Raises TrainingError when there are step folders and every one is damaged, or one is of a later format.
    """
    folders = step_folders(out)
    for folder in folders:
        damaged = _damaged(folder)
        if not damaged:
            return folder, _progress(folder, read_json(folder / "state.json", "a checkpoint's state"))
        say(f"{folder} is damaged ({', '.join(damaged)}: not what was written): going back to the one before")
    if folders:
        raise TrainingError(f"every checkpoint in {out / 'steps'} is damaged: remove {out} to start again")
    return None


def restore(folder: Path, model: Transformer, optimizers: Optimizers) -> dict[str, Tensor]:
    """Put the weights, the optimisers and the RNG of a step folder back in place, bit for bit.

    Returns the published weights by name: the average, where the run keeps one."""
    device = next(model.parameters()).device
    stored = Transformer.load(folder, device=device)
    if stored.config != model.config:
        raise TrainingError(f"{folder} holds a model of another shape ({stored.config}) than wanted ({model.config})")
    published = {name: parameter.detach() for name, parameter in stored.named_parameters()}
    tensors = _load_tensors(folder / "state")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors.get(f"{_WEIGHTS}{name}", published[name]))
    state = read_json(folder / "state.json", "a checkpoint's state")
    torch.set_rng_state(torch.frombuffer(bytearray(base64.b64decode(state["rng"])), dtype=torch.uint8))
    for name, optimizer in optimizers.items():
        optimizer.state.clear()
        for parameter_name, parameter in _named(model, optimizer):
            prefix = f"{name}.{parameter_name}."
            entry = {
                key.removeprefix(prefix): value.to(device) for key, value in tensors.items() if key.startswith(prefix)
            }
            entry |= {key.removeprefix(prefix): v for key, v in state["optimizer"].items() if key.startswith(prefix)}
            if entry:
                optimizer.state[parameter] = entry
    return published


def _sealed(state: dict[str, Any]) -> dict[str, Any]:
    """`state` with the SHA-256 of itself, so that damage to state.json is found too."""
    seal = hashlib.sha256(json.dumps(state, sort_keys=True, allow_nan=False).encode()).hexdigest()
    return {**state, "seal": seal}


def _damaged(folder: Path) -> list[str]:
    """The files of a step folder that are not what was written. TrainingError only for one of a later format."""
    try:
        state = read_json(folder / "state.json", "a checkpoint's state")
    except LaterFormat:
        raise
    except TrainingError:
        return ["state.json"]
    bare = {name: value for name, value in state.items() if name not in ("format", "seal")}
    if _sealed(bare)["seal"] != state.get("seal"):
        return ["state.json"]
    return [
        name
        for name, digest in state["sha256"].items()
        if not (folder / name).is_file() or sha256(folder / name) != digest
    ]


def _progress(folder: Path, state: Mapping[str, Any]) -> Progress:
    try:
        fields = dataclasses.fields(Progress)
        given = {f.name: state[f.name] for f in fields if f.name in state or f.default is dataclasses.MISSING}
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in given.items()
        }
        return Progress(**{**values, "loader": LoaderState(**state["loader"])})
    except (KeyError, TypeError) as error:
        raise TrainingError(f"wanted a checkpoint's state in {folder}/state.json, got one without {error}") from None


def _write_settings(folder: Path, dataset: TokenDataset) -> None:
    """Two small files of Hugging Face's: which ids end a text, and that tokenizer.json is to be taken as it is.

    Without the second, transformers takes the tokenizer class of the model's family (Qwen2's, GPT-2's) with that one's
    own splitting of text, and the ids differ silently.
    """
    from tinylm.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(dataset.tokenizer_file)
    ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
    known = {name: number for name, number in ids.items() if number is not None}
    names = {number: token for token, number in tokenizer.special_tokens.items()}
    generation = {f"{name}_id": number for name, number in known.items()}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **{name: names[number] for name, number in known.items() if number in names},
    }
    for file, content in (("generation_config.json", generation), ("tokenizer_config.json", settings)):
        (folder / file).write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def _named(model: Transformer, optimizer: torch.optim.Optimizer) -> list[tuple[str, torch.nn.Parameter]]:
    mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return [(name, parameter) for name, parameter in model.named_parameters() if id(parameter) in mine]


def _flatten(model: Transformer, optimizers: Optimizers) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Optimiser state as {"muon.blocks.0.mlp.up.weight.momentum_buffer": tensor} and the same for plain numbers."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, float] = {}
    for name, optimizer in optimizers.items():
        for parameter_name, parameter in _named(model, optimizer):
            for key, value in optimizer.state[parameter].items():
                full_name = f"{name}.{parameter_name}.{key}"
                if isinstance(value, Tensor):
                    tensors[full_name] = value
                else:
                    numbers[full_name] = value
    return tensors, numbers


def _save_tensors(folder: Path, tensors: dict[str, Tensor]) -> None:
    writer = HuggingFaceStorageWriter(os.fspath(folder), save_distributed=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            save_distributed(dict(tensors), storage_writer=writer, no_dist=True)
        except CheckpointException as error:
            causes = [cause[0] if isinstance(cause, tuple) else cause for cause in error.failures.values()]
            raise OSError(f"could not write {folder}: {causes[0] if causes else error}") from error


def _load_tensors(folder: Path) -> dict[str, Tensor]:
    reader = HuggingFaceStorageReader(os.fspath(folder))
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in reader.read_metadata().state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load_distributed(tensors, storage_reader=reader, no_dist=True)
    return tensors
