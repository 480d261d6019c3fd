"""Cross-entropy of logits, with its backward.

Not here: doing it a chunk of rows at a time (../loss.py). Next: transformer.py.
"""

from __future__ import annotations

import numpy as np

from tinylm.model.arrays.layers import Array

IGNORED = -100  # a target that counts for nothing


def cross_entropy(logits: Array, targets: Array) -> tuple[float, Array]:
    """mean over the rows that count of ln Σ exp(z) − z[target], in nats; 0 if none counts. Also p = softmax(z).

    logits (N, V), targets (N,).
    """
    z = logits - logits.max(axis=-1, keepdims=True)
    p = np.exp(z)
    total = np.add.reduce(p, axis=-1, keepdims=True)
    rows = np.flatnonzero(targets != IGNORED)
    losses = np.log(total)[rows, 0] - z[rows, targets[rows]]
    p /= total
    return float(np.add.reduce(losses)) / max(len(rows), 1), p


def cross_entropy_backward(p: Array, targets: Array) -> Array:
    """∂z = (p − onehot(target)) / n over the n rows that count; the others get 0."""
    counts = targets != IGNORED
    rows = np.flatnonzero(counts)
    dz: Array = p * (counts * p.dtype.type(1 / max(len(rows), 1)))[:, None]
    dz[rows, targets[rows]] -= 1 / max(len(rows), 1)
    return dz
