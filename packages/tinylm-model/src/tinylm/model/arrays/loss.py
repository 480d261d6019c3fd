"""Cross-entropy of logits, with its backward.

Not here: doing it a chunk of rows at a time (../loss.py). Next: transformer.py.
"""

from __future__ import annotations

import numpy as np

from tinylm.model.arrays.layers import Array

Saved = tuple[Array, Array, Array]
IGNORED = -100  # a target that counts for nothing


def cross_entropy(logits: Array, targets: Array) -> tuple[float, Saved]:
    """mean over the rows that count of ln Σ exp(z) − z[target], in nats; 0 if none counts.

    logits (N, V), targets (N,). Also what the backward needs: p = softmax(z), the rows that count, and their targets.
    """
    z = logits - np.maximum.reduce(logits, axis=-1, keepdims=True)
    p = np.exp(z)
    total = np.add.reduce(p, axis=-1, keepdims=True)
    (rows,) = (targets != IGNORED).nonzero()
    wanted = targets[rows]
    losses = np.log(total)[rows, 0] - z[rows, wanted]
    p /= total
    return float(np.add.reduce(losses)) / max(len(rows), 1), (p, rows, wanted)


def cross_entropy_backward(saved: Saved) -> Array:
    """∂z = (p − onehot(target)) / n over the n rows that count; the others get 0."""
    p, rows, wanted = saved
    share = 1 / max(len(rows), 1)
    dz: Array = p * share
    dz[rows, wanted] -= share
    if len(rows) < len(p):
        dz[np.setdiff1d(np.arange(len(p)), rows)] = 0
    return dz
