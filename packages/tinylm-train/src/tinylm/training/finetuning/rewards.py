"""Rewards that can be verified: a function of the answer's text and the record, without a model that judges.

    number   1 when the answer's last number is that of the record's "answer" (GSM8K's "#### 42" too), else 0
    exact    1 when the answer is the record's "answer" but for white space around it, else 0
    format   1 when the whole answer matches the record's "format" (a regular expression), or, without one, is
             <think>...</think><answer>...</answer> (DeepSeek-AI 2025, R1, section 2.2.2), else 0

Several are added. Tasks that need no file: `make_task`. Not here: what is done with a reward (grpo.py).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from tinylm.training._errors import TrainingError

Reward = Callable[[str, Mapping[str, Any]], float]
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_R1 = re.compile(r"\s*<think>.*?</think>\s*<answer>.*?</answer>\s*", re.DOTALL)


def last_number(text: str) -> Decimal | None:
    """The last number that is written in a text: "so 1,234.50" -> 1234.50."""
    found = _NUMBER.findall(text)
    try:
        return Decimal(found[-1].replace(",", "")) if found else None
    except InvalidOperation:
        return None


def number(text: str, record: Mapping[str, Any]) -> float:
    """The right number, however it is introduced."""
    wanted = last_number(str(record["answer"]))
    return float(wanted is not None and last_number(text) == wanted)


def exact(text: str, record: Mapping[str, Any]) -> float:
    """The right text."""
    return float(text.strip() == str(record["answer"]).strip())


def form(text: str, record: Mapping[str, Any]) -> float:
    """The right form, whatever it says."""
    wanted = record.get("format")
    return float((_R1 if wanted is None else re.compile(wanted, re.DOTALL)).fullmatch(text) is not None)


REWARDS: dict[str, Reward] = {"number": number, "exact": exact, "format": form}


def reward(names: str) -> Reward:
    """The sum of the rewards with these names, "number,format". TrainingError for an unknown one."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in REWARDS]
    if unknown or not wanted:
        raise TrainingError(f"wanted rewards among {', '.join(REWARDS)}, got {', '.join(unknown) or 'none'}")
    return lambda text, record: sum(REWARDS[name](text, record) for name in wanted)


def check_record(names: str, record: Mapping[str, Any], where: str) -> None:
    """Whether a record says what its rewards need: TrainingError if not."""
    if ("number" in names or "exact" in names) and "answer" not in record:
        raise TrainingError(f'{where}: wanted an "answer" for the reward {names}, got none')
    if "number" in names and last_number(str(record["answer"])) is None:
        raise TrainingError(f'{where}: wanted a number in "answer" for the reward number, got {record["answer"]!r}')
    if "format" in names and record.get("format") is not None:
        try:
            re.compile(record["format"])
        except (re.error, TypeError) as error:
            raise TrainingError(f'{where}: wanted a regular expression as "format", got: {error}') from None


def make_task(name: str, seed: int = 0, count: int = 1000) -> list[dict[str, Any]]:
    """Made records with answers that can be checked. "addition": sums of two numbers below 100, no pair twice;
    "format": the same, answered as <answer>46</answer>. TrainingError for another name."""
    if name not in ("addition", "format"):
        raise TrainingError(f"wanted the task addition or format, got {name!r}")
    pairs = [(a, b) for a in range(10, 100) for b in range(10, 100)]
    random.Random(seed).shuffle(pairs)
    asked = [([{"role": "user", "content": f"{a} + {b} = ?"}], a + b) for a, b in pairs[:count]]
    more = {"format": r"<answer>.*</answer>"} if name == "format" else {}
    return [{"prompt": prompt, "answer": str(total), **more} for prompt, total in asked]
