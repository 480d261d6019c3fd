"""How the processes that torchrun has started share the work: as the options say.

Not here: joining them (processes.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinylm.training._errors import TrainingError
from tinylm.training.launched import from_environment
from tinylm.training.strategy import SingleProcess

if TYPE_CHECKING:
    from tinylm.training.config import TrainConfig


def strategy_for(config: TrainConfig) -> SingleProcess:
    """As the environment says and the options want. Over many processes it waits until all are there.

    Raises TrainingError for options that do not fit the number of processes.
    """
    world = from_environment("WORLD_SIZE", 1)
    if world % config.tensor_parallel:
        raise TrainingError(
            f"wanted --tensor-parallel to divide the number of processes, got {config.tensor_parallel} and {world}: "
            f"start with torchrun --nproc-per-node {config.tensor_parallel}, or so many times that"
        )
    if world == 1:
        return SingleProcess()
    if config.tensor_parallel == 1 and config.data_parallel == "ddp":
        from tinylm.training.parallel.replicated import Replicated

        return Replicated(config)
    if config.data_parallel == "ddp" and config.tensor_parallel < world:
        raise TrainingError(
            f"wanted --data-parallel fsdp together with --tensor-parallel {config.tensor_parallel} on {world} "
            "processes, got ddp: DDP copies whole models only"
        )
    from tinylm.training.parallel.divided import Divided

    return Divided(config)
