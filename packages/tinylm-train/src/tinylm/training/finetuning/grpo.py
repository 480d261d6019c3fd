"""Group-relative policy optimisation: draw several answers to a prompt, and make those above their mean likelier.

    A_i = (r_i − mean(r)) / (std(r) + ε)                                                     advantage in its group
    L = − 1/G Σ_i 1/|y_i| Σ_t [ min(ρ A_i, clip(ρ, 1 − ε_c, 1 + ε_c) A_i) − β D ]            ρ = π(y_t) / π_old(y_t)
    D = π_ref(y_t)/π(y_t) − log π_ref(y_t)/π(y_t) − 1                                  an estimate of KL(π ‖ π_ref)

(Shao et al. 2024, DeepSeekMath, https://arxiv.org/abs/2402.03300, eq. 3, 4 and section 4.1.1). π_old drew the answers
(tinylm.model.generate), π_ref is the model at the start and is kept only when β is not 0. A group whose rewards are all
equal teaches nothing. Records: {"prompt": text or messages, "answer": ..., "format": ...}; "task:addition" and
"task:format" stand for made ones. Not here: rewards.py.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinylm.model import Transformer, generate
from tinylm.tokenizer import Tokenizer
from tinylm.training._errors import TrainingError
from tinylm.training.finetuning.chat_data import Example, ends_of_answer, fitting, prompt_ids, read_records
from tinylm.training.finetuning.packing import Batch, log_probabilities, pack, per_example
from tinylm.training.finetuning.rewards import Reward, check_record, make_task

_PATIENCE = 10  # draws
_EPSILON = 1e-4  # beside the standard deviation: a group of equal rewards has none


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What is asked, and the record that says what is right."""

    ids: list[int]
    record: Mapping[str, Any]


def read_prompts(
    path: str | Path, tokenizer: Tokenizer, longest: int, rewards: str, say: Callable[[str], None] = print
) -> list[Prompt]:
    """Every prompt of a file; those of more than `longest` tokens, which leave no room for an answer, are left out."""
    prompts = []
    named = str(path).removeprefix("task:")
    made = None if named == str(path) else [(f"{path}:{n}", record) for n, record in enumerate(make_task(named), 1)]
    for where, record in made or read_records(path):
        if "prompt" not in record:
            raise TrainingError(f'{where}: wanted {{"prompt": ..., "answer": ...}}, got {", ".join(sorted(record))}')
        check_record(rewards, record, where)
        prompts.append(Prompt(prompt_ids(record["prompt"], tokenizer, where), record))
    kept: list[Prompt] = fitting(prompts, [len(prompt.ids) for prompt in prompts], longest, str(path), say)
    return kept


def advantages(rewards: Tensor) -> Tensor:
    """(prompts, G) rewards -> the same shape, mean 0 in each group."""
    return (rewards - rewards.mean(dim=1, keepdim=True)) / (rewards.std(dim=1, keepdim=True) + _EPSILON)


def grpo_loss(
    policy: Tensor, old: Tensor, advantage: Tensor, clip_ratio: float, reference: Tensor | None = None, kl: float = 0.0
) -> Tensor:
    """policy, old, reference (N,): log-probabilities of tokens; advantage (N,): their answer's -> the terms (N,)."""
    ratio = torch.exp(policy - old)
    terms = -torch.minimum(ratio * advantage, ratio.clamp(1 - clip_ratio, 1 + clip_ratio) * advantage)
    if reference is not None and kl:
        distance = torch.exp(reference - policy) - (reference - policy) - 1
        terms = terms + kl * distance
    return terms


@dataclasses.dataclass
class _Drawn:
    batch: Batch
    old: Tensor  # (N,)
    reference: Tensor | None  # (N,)
    advantage: Tensor  # (answers,)
    figures: dict[str, float]
    left: int  # updates that may still be made with it


class GRPO:
    """A method, as run.py drives it."""

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        prompts: Sequence[Prompt],
        reward: Reward,
        *,
        samples: int = 8,
        max_tokens: int = 32,
        temperature: float = 1.0,
        clip_ratio: float = 0.2,
        kl: float = 0.0,
        iterations: int = 1,
        packing: bool = True,
        seed: int = 0,
        say: Callable[[str], None] = print,
    ) -> None:
        self.say = say
        self.model, self.tokenizer, self.items, self.reward = model, tokenizer, prompts, reward
        self.samples, self.max_tokens, self.temperature = samples, max_tokens, temperature
        self.clip_ratio, self.kl, self.iterations, self.packing = clip_ratio, kl, iterations, packing
        self.ends = set(ends_of_answer(tokenizer))
        self.device = model.embed.weight.device
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.first = copy.deepcopy(model).requires_grad_(False) if kl else None
        self.drawn: _Drawn | None = None
        self._equal = 0  # draws, one after the other from the first, that taught nothing

    @property
    def settled(self) -> bool:
        """Whether the drawn answers have had all their updates."""
        return self.drawn is None or not self.drawn.left

    def loss(self, chosen: Sequence[int]) -> tuple[Tensor, dict[str, float]]:
        """Draw answers to these prompts (or use those that stand, for more iterations), and their loss."""
        drawn = self.drawn if self.drawn is not None and self.drawn.left else self._draw(chosen)
        self.drawn = drawn
        drawn.left -= 1
        policy = self._log_probabilities(self.model, drawn.batch)
        advantage = drawn.advantage[drawn.batch.owner]
        terms = grpo_loss(policy, drawn.old, advantage, self.clip_ratio, drawn.reference, self.kl)
        lengths = per_example(torch.ones_like(terms), drawn.batch).clamp(min=1)
        return (per_example(terms, drawn.batch) / lengths).mean(), drawn.figures

    def _log_probabilities(self, model: Transformer, batch: Batch) -> Tensor:
        """(N,), at the temperature of the draws: π_old has to be what drew them."""
        return log_probabilities(model, batch, self.temperature)

    @torch.no_grad()
    def _draw(self, chosen: Sequence[int]) -> _Drawn:
        prompts = [self.items[i] for i in chosen for _ in range(self.samples)]
        answers = self.answers([prompt.ids for prompt in prompts])
        texts = [self.tokenizer.decode([id for id in answer if id not in self.ends]) for answer in answers]
        rewards = torch.tensor(
            [self.reward(text, prompt.record) for text, prompt in zip(texts, prompts, strict=True)], device=self.device
        )
        examples = [
            Example(prompt.ids + answer, [False] * len(prompt.ids) + [True] * len(answer))
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        batch = pack(examples, self.model.config.context, self.packing).to(self.device)
        rewards = rewards.view(len(chosen), self.samples)
        spread = float(rewards.std(dim=1).mean())
        self._does_it_teach(spread)
        return _Drawn(
            batch=batch,
            old=self._log_probabilities(self.model, batch),
            reference=None if self.first is None else self._log_probabilities(self.first, batch),
            advantage=advantages(rewards).flatten(),
            figures={
                "reward": float(rewards.mean()),
                "reward_std": spread,
                "answer_tokens": sum(map(len, answers)) / len(answers),
                "tokens": float(len(batch.owner)),
            },
            left=self.iterations,
        )

    def _does_it_teach(self, spread: float) -> None:
        """Say once when it does not: the loss is then 0, and nothing else tells."""
        if self._equal < _PATIENCE:
            self._equal = _PATIENCE + 1 if spread else self._equal + 1
            if self._equal == _PATIENCE:
                self.say(self._nothing())

    def learned_nothing(self) -> str | None:
        """What to say at the end of a run that was too short for it to be said."""
        return self._nothing() if 0 < self._equal < _PATIENCE else None

    def _nothing(self) -> str:
        return (
            f"{self._equal} time{'s' * (self._equal != 1)} all answers to each prompt had the same reward, and from "
            "that nothing is learned: where they are wrong, teach the task by --method sft first, or try more "
            "--samples, a higher --temperature or easier prompts; where they are right, harder ones"
        )

    def answers(self, prompts: Sequence[list[int]]) -> list[list[int]]:
        """An answer to each: the drawn ids up to and with the first that ends a turn."""
        longest = max(map(len, prompts))
        ids, mask = torch.zeros(len(prompts), longest, dtype=torch.int64), torch.zeros(len(prompts), longest).bool()
        for row, prompt in enumerate(prompts):  # padded on the left, so that all answers begin in one column
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = True
        ids, mask = ids.to(self.device), mask.to(self.device)
        drawn = generate(
            self.model, ids, self.max_tokens, self.temperature, self.generator, None if bool(mask.all()) else mask
        )
        return [self._until_end(row) for row in drawn.tolist()]

    def _until_end(self, ids: list[int]) -> list[int]:
        end = next((place for place, id in enumerate(ids) if id in self.ends), len(ids))
        return ids[: end + 1]
