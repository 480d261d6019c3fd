"""A run over many processes and hosts, with torch.distributed; `torchrun` starts them.

launch.py chooses by the options; processes.py joins them and lets them agree; replicated.py gives each a copy
of the model (DDP); divided.py gives each a part of every parameter (FSDP2), tensor_parallel.py a part of every product.
They answer strategy.py's questions.
"""

from tinylm.training.parallel.launch import strategy_for

__all__ = ["strategy_for"]
