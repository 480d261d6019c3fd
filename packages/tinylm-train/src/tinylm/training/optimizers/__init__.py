"""Optimisers by hand, with torch.optim's interface: SGD, Adam, AdamW, Lion and Muon.

Three rungs with the same results: loop.py (read this one; the equations stand there), foreach.py (all parameters at
once), fused.py (one pass over memory), which these names are. parameter_groups.py says which parameter of a model gets
which rule. Not here: the learning rate over a run (schedule.py).
"""

from tinylm.training.optimizers.fused import SGD, Adam, AdamW, Lion, Muon
from tinylm.training.optimizers.loop import orthogonalize
from tinylm.training.optimizers.parameter_groups import compute_products_in, optimizers_for

__all__ = ["SGD", "Adam", "AdamW", "Lion", "Muon", "compute_products_in", "optimizers_for", "orthogonalize"]
