"""What survives a kill: step folders, written whole or not at all, and the published copy of the newest one.

    CHECKPOINT_DIR/
      config.json model.safetensors generation_config.json                                        published copies
      tokenizer.json tokenizer_config.json [chat_template.jinja]
      steps/00000500/             the same files, and
        state/                    the optimisers' tensors: safetensors through torch.distributed.checkpoint; with an
                                  average of the weights also the weights themselves (model.safetensors is the average)
        state.json                step, RNG, loader position, options, and the SHA-256 of every file above

Resume reads `steps/` only, newest first, and passes over a folder whose checksums do not agree. Over processes that
each have a part of the model, all write their parts and one the rest; any number of processes can go on from it.
Not here: when to save (saving.py); the copy that is written (snapshot.py); state/'s files (_state_files.py); the
layout of config.json and model.safetensors (tinylm.model).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from tinylm.model import Transformer
from tinylm.model.checkpoint import save
from tinylm.training._errors import TrainingError
from tinylm.training._files import LaterFormat, new_directory, publish, read_json, same_bytes, sha256, write_json
from tinylm.training._state_files import load_tensors, save_tensors
from tinylm.training._tensor_file import write_tensors
from tinylm.training.data import LoaderState, TokenDataset
from tinylm.training.snapshot import WEIGHTS, Optimizers, Snapshot, put_back
from tinylm.training.spread import divided_as, local

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


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
    changes: tuple[str, ...] = ()  # of options in mid-run, as accepted, in words
    best_step: int | None = None  # of the best validation that has a step folder
    best_validation: float | None = None


def write(
    out: Path,
    snapshot: Snapshot,
    progress: Progress,
    dataset: TokenDataset,
    keep: int,
    check: Callable[[], None] = lambda: None,
    sharders: ProcessGroup | None = None,
) -> Path:
    """Write steps/<step>/ as a whole, publish its model at the top of `out`, and drop all but the newest `keep` and the
    best. `check` is called now and then and may raise: then nothing of the folder is left.

    sharders: processes that have parts of the state; the others of them call `write_part`."""
    final = out / "steps" / f"{progress.step:08d}"
    with new_directory(final) as folder:
        digests = _write_model(snapshot.model, folder, dataset)
        check()
        _write_tokenizer(folder, dataset)
        if sharders is not None:
            dist.broadcast_object_list([str(folder)], src=0, group=sharders)
        digests |= save_tensors(folder / "state", snapshot.tensors, sharders)
        check()
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        write_json(
            folder / "state.json",
            sealed(
                {
                    **dataclasses.asdict(progress),
                    "rng": snapshot.rng,
                    "optimizer": snapshot.numbers,
                    "sha256": {
                        path.relative_to(folder).as_posix(): digests.get(path) or sha256(path) for path in files
                    },
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


def write_part(snapshot: Snapshot, sharders: ProcessGroup) -> None:
    """This process's part of the step folder that the first of the sharders is writing."""
    folder: list[Any] = [None]
    dist.broadcast_object_list(folder, src=0, group=sharders)
    save_tensors(Path(folder[0]) / "state", snapshot.tensors, sharders)


def _write_model(model: Transformer, folder: Path, dataset: TokenDataset) -> dict[Path, str]:
    """config.json and model.safetensors; returns the SHA-256 of the second."""
    found: dict[Path, str] = {}

    def write(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        found[folder / "model.safetensors"] = write_tensors(tensors, path, metadata)

    save(model, folder, {"tokenizer_sha256": dataset.tokenizer_sha256}, write)
    return found


def publish_model(folder: Path, out: Path) -> None:
    """Put the model's files of a step folder at the top of `out`, where they differ from what stands there."""
    for path in folder.iterdir():
        target = out / path.name
        if not path.is_file() or path.name == "state.json":
            continue
        if not target.is_file() or not same_bytes(target, path):
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
        damaged = damaged_files(folder)
        if not damaged:
            return folder, _progress(folder, read_json(folder / "state.json", "a checkpoint's state"))
        say(f"{folder} is damaged ({', '.join(damaged)}: not what was written): going back to the one before")
    if folders:
        raise TrainingError(f"every checkpoint in {out / 'steps'} is damaged: remove {out} to start again")
    return None


def restore(folder: Path, model: Transformer, optimizers: Optimizers) -> dict[str, Tensor]:
    """Put the weights, the optimisers and the RNG of a step folder back in place, bit for bit.

    Returns the published weights by name: the average, where the run keeps one."""
    device = local(next(model.parameters())).device
    stored = Transformer.load(folder, device=device)
    if stored.config != model.config:
        raise TrainingError(f"{folder} holds a model of another shape ({stored.config}) than wanted ({model.config})")
    state = read_json(folder / "state.json", "a checkpoint's state")
    mine = dict(model.named_parameters())
    published = {name: divided_as(parameter.detach(), mine[name]) for name, parameter in stored.named_parameters()}
    tensors = load_tensors(folder / "state", model, optimizers)
    with torch.no_grad():
        for name, parameter in mine.items():
            local(parameter).copy_(tensors.get(f"{WEIGHTS}{name}", local(published[name])))
    put_back(model, optimizers, tensors, state["optimizer"], state["rng"])
    return published


def sealed(state: dict[str, Any]) -> dict[str, Any]:
    """`state` with the SHA-256 of itself, so that damage to state.json is found too."""
    seal = hashlib.sha256(json.dumps(state, sort_keys=True, allow_nan=False).encode()).hexdigest()
    return {**state, "seal": seal}


def damaged_files(folder: Path) -> list[str]:
    """The files of a step folder that are not what was written. TrainingError only for one of a later format."""
    try:
        state = read_json(folder / "state.json", "a checkpoint's state")
    except LaterFormat:
        raise
    except TrainingError:
        return ["state.json"]
    bare = {name: value for name, value in state.items() if name not in ("format", "seal")}
    if sealed(bare)["seal"] != state.get("seal"):
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


def _write_tokenizer(folder: Path, dataset: TokenDataset) -> None:
    """The tokenizer's files, and generation_config.json: which ids begin and end a text."""
    from tinylm.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(dataset.tokenizer_file)
    tokenizer.save(folder)
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    known = {name: id for name, id in ids.items() if id is not None}
    (folder / "generation_config.json").write_text(json.dumps(known, indent=2) + "\n", "utf-8")
