"""Direct preference optimisation: of two answers the preferred one becomes likelier, measured from the first model.

    L = − log σ( β [ log π(y_w|x)/π_ref(y_w|x) − log π(y_l|x)/π_ref(y_l|x) ] )

(Rafailov et al. 2023, https://arxiv.org/abs/2305.18290, eq. 7; y_w is chosen, y_l rejected, π_ref the model at the
start). π_ref never changes, so its log-probabilities are computed once, before the first step, and no second model is
kept. Records, as in trl, texts or lists of messages:

    {"prompt": ..., "chosen": ..., "rejected": ...}

Not here: answers that are drawn and rewarded (grpo.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tinylm.model import Transformer
from tinylm.tokenizer import Tokenizer
from tinylm.training._errors import TrainingError
from tinylm.training.finetuning.chat_data import Example, completed, fitting, read_records
from tinylm.training.finetuning.packing import log_probabilities, pack, per_example

Pair = tuple[Example, Example]  # chosen, rejected
_AT_ONCE = 64


def read_pairs(path: str | Path, tokenizer: Tokenizer, longest: int, say: Callable[[str], None] = print) -> list[Pair]:
    """Every pair of a file; those with an answer that does not fit `longest` tokens are left out, and `say` counts."""
    pairs: list[Pair] = []
    for where, record in read_records(path):
        if not {"prompt", "chosen", "rejected"} <= record.keys():
            raise TrainingError(
                f'{where}: wanted {{"prompt": ..., "chosen": ..., "rejected": ...}}, got the keys '
                f"{', '.join(sorted(record)) or '(none)'}"
            )
        chosen, rejected = (
            completed(record["prompt"], record[side], tokenizer, where) for side in ("chosen", "rejected")
        )
        if chosen.ids == rejected.ids:
            raise TrainingError(f"{where}: wanted two different answers, got the same one twice")
        pairs.append((chosen, rejected))
    lengths = [max(len(chosen.ids), len(rejected.ids)) for chosen, rejected in pairs]
    kept: list[Pair] = fitting(pairs, lengths, longest, str(path), say)
    return kept


def dpo_loss(policy: Tensor, reference: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """policy, reference (2, B): log π of chosen and rejected answers -> mean loss, and margins (B,), β [...]."""
    chosen, rejected = policy - reference
    margins = beta * (chosen - rejected)
    return -F.logsigmoid(margins).mean(), margins.detach()


class DPO:
    """A method, as run.py drives it."""

    generator = None  # it draws nothing
    settled = True  # and keeps nothing from step to step

    def __init__(self, model: Transformer, pairs: Sequence[Pair], beta: float, packing: bool) -> None:
        self.model, self.items, self.beta, self.packing = model, pairs, beta, packing
        with torch.no_grad():
            parts = [range(at, min(at + _AT_ONCE, len(pairs))) for at in range(0, len(pairs), _AT_ONCE)]
            self.reference = torch.cat([self._log_probabilities(part) for part in parts], dim=1)  # (2, pairs)

    def _log_probabilities(self, chosen: Sequence[int]) -> Tensor:
        """(2, B): log π(y|x) of the chosen and the rejected answers of these pairs."""
        examples = [self.items[i][side] for side in (0, 1) for i in chosen]
        batch = pack(examples, self.model.config.context, self.packing).to(self.model.embed.weight.device)
        return per_example(log_probabilities(self.model, batch), batch).view(2, len(chosen))

    def loss(self, chosen: Sequence[int]) -> tuple[Tensor, dict[str, float]]:
        """The loss of these pairs; how many are ranked as wanted, and by how much."""
        loss, margins = dpo_loss(self._log_probabilities(chosen), self.reference[:, list(chosen)], self.beta)
        return loss, {"accuracy": float((margins > 0).float().mean()), "margin": float(margins.mean())}
