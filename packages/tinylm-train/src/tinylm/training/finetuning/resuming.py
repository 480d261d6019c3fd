"""What a fine-tuning goes on from after Ctrl-C or a kill: step folders, each written whole or not at all.

    OUT/steps/00000120/
      config.json model.safetensors ... [adapter/]     the model as it is then, published at the top of OUT
      state/state.safetensors                          what is trained, and the optimisers' tensors
      state.json                                       step, random numbers, options, SHA-256 of each file

The order of the examples is a function of seed and step, so it needs no state. A folder whose checksums do not agree is
passed over for the one before. Not here: when to save (run.py), pre-training's folders (tinylm.training.checkpoint).
"""

from __future__ import annotations

import base64
import dataclasses
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tinylm.model import Transformer
from tinylm.training._errors import TrainingError
from tinylm.training._files import new_directory, read_json, sha256, write_json
from tinylm.training._tensor_file import write_tensors
from tinylm.training.checkpoint import damaged_files, publish_model, sealed, step_folders
from tinylm.training.finetuning.config import FinetuneConfig
from tinylm.training.snapshot import flatten, named

_FREE = ("checkpoint", "data", "out", "overwrite", "checkpoint_every")  # where files stand: what is in them counts
_KEEP = 2
_KIND = "finetune"
_STATE = "state/state.safetensors"
Optimizers = Mapping[str, torch.optim.Optimizer]


@dataclasses.dataclass(frozen=True)
class Saved:
    """A whole step folder of a fine-tuning."""

    folder: Path
    state: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Updates done."""
        return int(self.state["step"])

    @property
    def finished(self) -> bool:
        """Whether it was the last one."""
        return self.step >= int(self.state["options"]["steps"])


def identity(config: FinetuneConfig) -> dict[str, Any]:
    """What must be the same for a run to go on: options as they came out, data, and the model it starts from."""
    options = {name: value for name, value in dataclasses.asdict(config).items() if name not in _FREE}
    weights = sorted(Path(config.checkpoint).glob("*.safetensors"))
    data = config.data if config.data.startswith("task:") else sha256(Path(config.data))
    return options | {"data": data, "checkpoint": [sha256(path) for path in weights]}


def newest(out: Path, say: Callable[[str], None]) -> Saved | None:
    """The newest undamaged step folder; None when there is none at all. TrainingError when every one is damaged, and
    when they are of another kind of run."""
    folders = step_folders(out)
    for folder in folders:
        damaged = damaged_files(folder)
        if damaged:
            say(f"{folder} is damaged ({', '.join(damaged)}: not what was written): going back to the one before")
            continue
        state = read_json(folder / "state.json", "a fine-tuning's state")
        if state.get("kind") != _KIND:
            raise TrainingError(f"another kind of run stands at {out}: choose another --out, or --overwrite it")
        return Saved(folder, state)
    if folders:
        raise TrainingError(f"every checkpoint in {out / 'steps'} is damaged: --overwrite to start again")
    return None


def refuse_changes(saved: Saved, now: Mapping[str, Any], out: Path) -> None:
    """TrainingError that names the options that are not those the run was started with."""
    before = saved.state["options"]
    different = [name for name in now if before.get(name) != now[name]]
    if different:
        changes = ", ".join(
            f"another {name}" if name in ("data", "checkpoint") else f"{name} was {before.get(name)}, now {now[name]}"
            for name in different
        )
        raise TrainingError(
            f"{out} was started with other options ({changes}): give the same to continue it, choose another --out, or "
            "--overwrite to start again"
        )


def save(
    out: Path,
    step: int,
    options: Mapping[str, Any],
    model: Transformer,
    optimizers: Optimizers,
    generator: torch.Generator | None,
    write_model: Callable[[Path], None],
) -> None:
    """Write steps/<step>/ as a whole, publish its model, and drop all but the newest two."""
    tensors, numbers = flatten(model, optimizers)
    trained = {f"weights.{name}": p.detach() for name, p in model.named_parameters() if p.requires_grad}
    final = out / "steps" / f"{step:08d}"
    with new_directory(final) as folder:
        write_model(folder)
        (folder / "state").mkdir()
        digests = {folder / _STATE: write_tensors(tensors | trained, folder / _STATE)}
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        state = {
            "kind": _KIND,
            "step": step,
            "options": dict(options),
            "threads": torch.get_num_threads(),
            "rng": _text(torch.get_rng_state()),
            "generator": None if generator is None else _text(generator.get_state()),
            "optimizer": numbers,
            "sha256": {path.relative_to(folder).as_posix(): digests.get(path) or sha256(path) for path in files},
        }
        write_json(folder / "state.json", sealed(state))
    publish(final, out)
    for old in step_folders(out)[_KEEP:]:
        shutil.rmtree(old)


def publish(folder: Path, out: Path) -> None:
    """Put the model of a step folder at the top of OUT, where it is not there yet."""
    publish_model(folder, out)
    if (folder / "adapter").is_dir():
        with new_directory(out / "adapter") as place:
            shutil.copytree(folder / "adapter", place, dirs_exist_ok=True)


def restore(saved: Saved, model: Transformer, optimizers: Optimizers, generator: torch.Generator | None) -> None:
    """Weights, optimisers, random numbers and threads as they were, bit for bit."""
    tensors = load_file(saved.folder / _STATE)
    numbers, state = saved.state["optimizer"], saved.state
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(tensors[f"weights.{name}"])
    for name, optimizer in optimizers.items():
        for parameter_name, parameter in named(model, optimizer):
            prefix = f"{name}.{parameter_name}."
            entry: dict[str, Tensor | float] = {
                key.removeprefix(prefix): value.to(parameter.device)
                for key, value in tensors.items()
                if key.startswith(prefix)
            }
            entry |= {key.removeprefix(prefix): value for key, value in numbers.items() if key.startswith(prefix)}
            if entry:
                optimizer.state[parameter] = entry
    torch.set_num_threads(state["threads"])
    torch.set_rng_state(_bytes(state["rng"]))
    if generator is not None:
        generator.set_state(_bytes(state["generator"]))


def _text(state: Tensor) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode()


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
