"""Questions with known answers, from local JSON lines in the field's formats, and how sure a share of right ones is.

    HellaSwag   {"ctx": ..., "endings": [...], "label": 2}                                            multiple choice
    ARC         {"question": ..., "choices": {"text": [...], "label": [...]}, "answerKey": "B"}       multiple choice
    GSM8K       {"question": ..., "answer": "... #### 42"}                                            exact match

Multiple choice: the choice with the highest log p(choice | context), and the same per byte of the choice (acc and
acc_norm of EleutherAI's lm-evaluation-harness). Exact match: the likeliest answer is written out, and its last number
has to be the record's last number; where that has none, the whole text has to be the same. A model tuned for chat is
asked through its template. Not here: bits per byte (evaluation.py).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tinylm.model import Transformer, generate, pick_device, read_provenance
from tinylm.tokenizer import Tokenizer
from tinylm.training._errors import TrainingError
from tinylm.training.finetuning.chat_data import Example, ends_of_answer, prompt_ids, read_records
from tinylm.training.finetuning.packing import log_probabilities, pack, per_example
from tinylm.training.finetuning.rewards import exact, last_number, number

_FORMS = "HellaSwag (ctx, endings, label), ARC (question, choices with text and label, answerKey)"
_CONFIDENCE = 1.959964  # standard deviations on either side that hold 95 % of a normal distribution


@dataclasses.dataclass(frozen=True)
class Share:
    """right of asked, and the interval that holds the true share with 95 % confidence."""

    right: int
    asked: int

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's score interval (1927): sensible for few questions and near 0 and 1, where p ± 2σ is not."""
        z, n, p = _CONFIDENCE, self.asked, self.right / self.asked
        middle = p + z * z / (2 * n)
        reach = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, (middle - reach) / (1 + z * z / n)), min(1.0, (middle + reach) / (1 + z * z / n))

    def description(self) -> dict[str, Any]:
        """Plain values."""
        low, high = self.interval
        return {
            "value": self.right / self.asked,
            "right": self.right,
            "asked": self.asked,
            "low": low,
            "high": high,
            "interval": "Wilson, 95 %",
        }


@dataclasses.dataclass(frozen=True)
class Choice:
    """A question, what may follow it, and which of these does."""

    context: str
    endings: Sequence[str]
    right: int
    where: str  # it stands, for errors


def run_task(checkpoint: str | Path, file: str | Path, device: str = "auto", max_tokens: int = 128) -> dict[str, Share]:
    """{"accuracy": ..., "accuracy_per_byte": ...} of multiple choice, {"exact_match": ...} of questions with answers.

    A context that does not fit the model's is cut at its beginning, a question that fits half of it never is.
    TrainingError names a record in no known form.
    """
    records = list(read_records(file))
    model = Transformer.load(checkpoint, device=pick_device(device)).eval()
    tokenizer = Tokenizer.load(Path(checkpoint) / "tokenizer.json")
    choices = [choice(record, where) for where, record in records]
    with torch.no_grad():
        if all(item is not None for item in choices):
            return _multiple_choice(model, tokenizer, [item for item in choices if item is not None])
        for where, record in records:
            if not {"question", "answer"} <= record.keys():
                raise TrainingError(
                    f"{where}: wanted the form of {_FORMS} or GSM8K (question, answer), the same in each line, got the "
                    f"keys {', '.join(sorted(record)) or '(none)'}"
                )
        tuned = read_provenance(checkpoint).get("tuned_for") == "chat" and tokenizer.chat_template is not None
        return _exact_match(model, tokenizer, [record for _, record in records], tuned, max_tokens)


def choice(record: Mapping[str, Any], where: str) -> Choice | None:
    """A record of HellaSwag or ARC; None when it is neither. TrainingError for a right answer that is not there."""
    if {"ctx", "endings", "label"} <= record.keys():
        context, label = record["ctx"], record["label"]
        choices: Any = {"text": record["endings"]}
    elif {"question", "choices", "answerKey"} <= record.keys():
        context, label = f"Question: {record['question']}\nAnswer:", record["answerKey"]
        choices = record["choices"]
    else:
        return None
    endings, labels = (choices.get(name) if isinstance(choices, Mapping) else None for name in ("text", "label"))
    if not isinstance(endings, list) or not isinstance(labels, list | None):
        raise TrainingError(f"{where}: wanted lists of choices, in the form of {_FORMS}, got {choices!r}")
    names = [str(name) for name in labels or range(len(endings))]
    if len(names) != len(endings) or str(label) not in names:
        raise TrainingError(f"{where}: wanted the right answer among {', '.join(names) or 'choices'}, got {label!r}")
    return Choice(str(context), [str(ending) for ending in endings], names.index(str(label)), where)


def _multiple_choice(model: Transformer, tokenizer: Tokenizer, questions: Sequence[Choice]) -> dict[str, Share]:
    plain = per_byte = 0
    for question in questions:
        examples = [_continued(model, tokenizer, question, f" {ending}") for ending in question.endings]
        batch = pack(examples, model.config.context).to(model.embed.weight.device)
        scores = per_example(log_probabilities(model, batch), batch).tolist()
        sizes = [max(1, len(ending.encode())) for ending in question.endings]
        normal = [score / size for score, size in zip(scores, sizes, strict=True)]
        plain += scores.index(max(scores)) == question.right
        per_byte += normal.index(max(normal)) == question.right
    return {"accuracy": Share(plain, len(questions)), "accuracy_per_byte": Share(per_byte, len(questions))}


def _continued(model: Transformer, tokenizer: Tokenizer, question: Choice, ending: str) -> Example:
    before, after = prompt_ids(question.context, tokenizer, question.where), tokenizer.encode(ending)
    room = model.config.context - len(after)
    if room < 1:
        raise TrainingError(
            f"{question.where}: wanted choices below the context of {model.config.context} tokens, got {len(after)}"
        )
    before = before[-room:]
    return Example(before + after, [False] * len(before) + [True] * len(after))


def _exact_match(
    model: Transformer, tokenizer: Tokenizer, records: Sequence[Mapping[str, Any]], tuned: bool, max_tokens: int
) -> dict[str, Share]:
    ends, device, right = set(ends_of_answer(tokenizer)), model.embed.weight.device, 0
    context = model.config.context
    room = max(1, context - max_tokens, context // 2)  # for the question: it is more than a long answer
    for record in records:
        asked = str(record["question"])
        prompt: Any = [{"role": "user", "content": asked}] if tuned else f"Question: {asked}\nAnswer:"
        ids = prompt_ids(prompt, tokenizer, "a question")[-room:]
        drawn = generate(model, torch.tensor([ids], device=device), min(max_tokens, context - len(ids)))[0].tolist()
        end = next((place for place, id in enumerate(drawn) if id in ends), len(drawn))
        verify = exact if last_number(str(record["answer"])) is None else number
        right += verify(tokenizer.decode(drawn[:end]), record) == 1
    return {"exact_match": Share(right, len(records))}
