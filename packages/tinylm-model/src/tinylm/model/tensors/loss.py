"""Cross-entropy of logits, with its backward.

Logits of 50,000 words are the largest tensor of a step, so one is all there is: probabilities and gradient are written
over it. Nothing here asks for a value, which on a GPU would wait for all that is queued. Not here: a chunk of rows at a
time (../loss.py). Next: blocks.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tinylm.model.tensors.activations import softmax_
from tinylm.model.tensors.layers import wide

Saved = tuple[Tensor, Tensor, Tensor]
IGNORED = -100  # a target that counts for nothing


def cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Saved]:
    """mean over the rows that count of ln Σ exp(z) − z[target], in nats; 0 if none counts. Writes over the logits.

    logits (N, V), targets (N,) -> a tensor without axes, in float32 at least. Also what the backward needs: p =
    softmax(z), the targets, and each row's part of the mean, 1 / n or 0.
    """
    counts = targets != IGNORED
    wanted = targets.where(counts, 0)[:, None]
    z = logits.to(wide(logits))
    share = counts.to(z.dtype).div_(counts.sum().clamp_(min=1))[:, None]
    at_target = z.gather(1, wanted)
    p, log_sum = softmax_(z)
    return torch.sum((log_sum - at_target).mul_(share)), (p, wanted, share)


def cross_entropy_backward(saved: Saved) -> Tensor:
    """∂z = (p − onehot(target)) / n over the n rows that count; the others get 0. Writes over p."""
    p, wanted, share = saved
    p.scatter_add_(1, wanted, p.new_full((1, 1), -1.0).expand(wanted.shape))
    return p.mul_(share)
