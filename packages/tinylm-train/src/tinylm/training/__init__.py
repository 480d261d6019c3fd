"""tinylm.training: text to token data sets, and token data sets to trained checkpoints.

Start at `prepare.py` (text to shards), `data.py` (shards to batches), `optimizers/` (update rules by hand),
`schedule.py` (the learning rate), `trainer.py` (the loop) and `checkpoint.py` (what survives a kill). Names load when
they are first used, so that `tinylm-train --help` does not wait for torch. Not here: the model (`tinylm.model`).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinylm.training._errors import TrainingError
    from tinylm.training.config import TrainConfig
    from tinylm.training.data import TokenDataset
    from tinylm.training.evaluation import bits_per_character
    from tinylm.training.optimizers import AdamW, Muon
    from tinylm.training.prepare import prepare
    from tinylm.training.trainer import Trainer

__all__ = ["AdamW", "Muon", "TokenDataset", "TrainConfig", "Trainer", "TrainingError", "bits_per_character", "prepare"]

_HOME = {
    "AdamW": "optimizers",
    "Muon": "optimizers",
    "TokenDataset": "data",
    "TrainConfig": "config",
    "Trainer": "trainer",
    "TrainingError": "_errors",
    "bits_per_character": "evaluation",
    "prepare": "prepare",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tinylm.training' has no attribute {name!r}")
    value = getattr(import_module(f"tinylm.training.{_HOME[name]}"), name)
    globals()[name] = value  # `prepare` names a module and its function: the function is the public one
    return value
