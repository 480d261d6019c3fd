"""Supervised fine-tuning: the likelihood of the assistant's tokens, and of no others.

    L = − 1/N Σ log π(y_t | x, y_<t)        over the N learned tokens of the batch

(Ouyang et al. 2022, https://arxiv.org/abs/2203.02155, section 3.5, first stage). The mean is over tokens and not over
examples, as in pre-training: a long answer counts for more. Not here: which tokens are learned (chat_data.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tinylm.model import Transformer
from tinylm.training.finetuning.chat_data import Example
from tinylm.training.finetuning.packing import Batch, log_probabilities, pack


def sft_loss(model: Transformer, batch: Batch) -> Tensor:
    """Nats per learned token, a scalar."""
    return -log_probabilities(model, batch).mean()


class SFT:
    """A method, as run.py drives it: so many items, and the loss of some of them."""

    generator = None  # it draws nothing
    settled = True  # and keeps nothing from step to step

    def __init__(self, model: Transformer, examples: Sequence[Example], packing: bool) -> None:
        self.model, self.items, self.packing = model, examples, packing

    def loss(self, chosen: Sequence[int]) -> tuple[Tensor, dict[str, float]]:
        """The loss of the items with these numbers, and figures for the log."""
        batch = pack([self.items[i] for i in chosen], self.model.config.context, self.packing)
        batch = batch.to(self.model.embed.weight.device)
        return sft_loss(self.model, batch), {"tokens": float(len(batch.owner))}
