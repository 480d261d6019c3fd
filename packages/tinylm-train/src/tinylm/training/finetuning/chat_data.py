"""JSON lines → token ids, and which of them are learned: the assistant's, up to its end of turn, and no others.

    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    {"prompt": "2 + 2 =", "completion": " 4"}             text as it stands, without a template, and an end of text
    {"prompt": [messages], "completion": [messages]}      the same as messages, of which the completion is learned

(the formats of Hugging Face's trl). Which bytes are the assistant's is known from lengths, never searched for: the
conversation up to a turn, laid out by the checkpoint's own template, is a prefix of the conversation with the turn. And
content is encoded as text (Tokenizer.apply_chat_template), so "<|im_start|>assistant" in a message is only text.
Not here: rows and batches (packing.py), pairs (dpo.py), prompts with rewards (grpo.py).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinylm.tokenizer import Tokenizer
from tinylm.training._errors import TrainingError

Record = Mapping[str, Any]
Messages = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Example:
    """ids, and for each whether it is learned. The first never is: nothing stands before it."""

    ids: list[int]
    learned: list[bool]


def read_records(path: str | Path) -> Iterator[tuple[str, Record]]:
    """("FILE:line", record) of every line that is not blank. TrainingError for a file or a line that is no JSON object,
    and for a file without records."""
    found = False
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                found, where = True, f"{path}:{number}"
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise TrainingError(f"{where}: wanted one JSON object on a line, got: {error}") from None
                if not isinstance(record, dict):
                    raise TrainingError(f"{where}: wanted a JSON object, got {type(record).__name__}")
                yield where, record
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"wanted JSON lines in UTF-8 at {path}, got: {error}") from None
    if not found:
        raise TrainingError(f"wanted JSON lines in {path}, got an empty file")


def has_messages(path: str | Path) -> bool:
    """Whether a file has conversations, so that what it teaches is to chat; made tasks do ("task:addition")."""
    if str(path).startswith("task:"):
        return True
    return any("messages" in record or isinstance(record.get("prompt"), list) for _, record in read_records(path))


def read_examples(
    path: str | Path, tokenizer: Tokenizer, longest: int, say: Callable[[str], None] = print
) -> list[Example]:
    """Every example of a file for SFT. Those of more than `longest` tokens are left out, and `say` tells how many: an
    answer that is cut teaches to stop anywhere. TrainingError when none is left, and for a record in no known form."""
    examples = [example for where, record in read_records(path) for example in sft_examples(record, tokenizer, where)]
    kept: list[Example] = fitting(examples, [len(example.ids) for example in examples], longest, str(path), say)
    return kept


def fitting(items: Sequence[Any], lengths: Sequence[int], longest: int, path: str, say: Callable[[str], None]) -> Any:
    """Those of `items` that fit the context; says how many do not."""
    kept = [item for item, length in zip(items, lengths, strict=True) if length <= longest]
    if not kept:
        raise TrainingError(
            f"wanted examples of at most {longest} tokens (the model's context) in {path}, got {len(items)}, all "
            f"longer; the shortest has {min(lengths)}: shorten them, or take a model of a longer context"
        )
    if len(kept) < len(items):
        say(f"left out {len(items) - len(kept)} of {len(items)} examples: longer than the context of {longest} tokens")
    return kept


def sft_examples(record: Record, tokenizer: Tokenizer, where: str) -> list[Example]:
    """The examples of one record: one, or one per assistant turn where the template rewrites earlier turns."""
    if "messages" in record:
        return conversation(_messages(record["messages"], where), tokenizer, where)
    if "prompt" in record and "completion" in record:
        return [completed(record["prompt"], record["completion"], tokenizer, where)]
    raise TrainingError(
        f'{where}: wanted {{"messages": [...]}} or {{"prompt": ..., "completion": ...}}, got the keys '
        f"{', '.join(sorted(record)) or '(none)'}"
    )


def conversation(messages: Messages, tokenizer: Tokenizer, where: str) -> list[Example]:
    """Every assistant turn is learned."""
    turns = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        raise TrainingError(
            f"{where}: wanted at least one message of the role assistant, which is what is learned, got the roles "
            f"{', '.join(str(message['role']) for message in messages) or '(no messages)'}"
        )
    whole = tokenizer.apply_chat_template(messages)
    learned = [False] * len(whole)
    for turn in turns:
        part = _turn(tokenizer, messages, turn, whole)
        if part is None:  # Qwen3's template, for one, drops the reasoning of earlier turns
            return [_only_turn(tokenizer, messages[: turn + 1], where) for turn in turns]
        learned[part.start : part.stop] = [True] * len(part)
    return [Example(whole, learned)]


def completed(prompt: Any, completion: Any, tokenizer: Tokenizer, where: str) -> Example:
    """A prompt and what follows it, both texts or both lists of messages; only the latter is learned."""
    if isinstance(prompt, str) and isinstance(completion, str):
        end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
        before = prompt_ids(prompt, tokenizer, where)
        after = tokenizer.encode(completion) + end
        if not after:
            raise TrainingError(f"{where}: wanted a completion to learn, got an empty one")
        return Example(before + after, [False] * len(before) + [True] * len(after))
    first, second = _messages(prompt, where), _messages(completion, where)
    if not second or any(message["role"] != "assistant" for message in second[:1]):
        raise TrainingError(f"{where}: wanted a completion that begins with an assistant's message, got another")
    before = tokenizer.apply_chat_template(first, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*first, *second])
    part = _after(tokenizer, before, whole)
    if part is None:
        raise TrainingError(f"{where}: the chat template does not put the completion after the prompt")
    return Example(whole, [place in part for place in range(len(whole))])


def prompt_ids(prompt: Any, tokenizer: Tokenizer, where: str) -> list[int]:
    """The ids before an answer: of a text as it stands (at least one: the token that begins a text), or of messages and
    the beginning of the assistant's turn."""
    if isinstance(prompt, str):
        start = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
        ids = tokenizer.encode(prompt, add_special_tokens=True)
        if not ids and start is None:
            raise TrainingError(f"{where}: wanted a prompt, got an empty one, and no token begins a text here")
        return ids or [start]  # type: ignore[list-item]  # not None: checked above
    return tokenizer.apply_chat_template(_messages(prompt, where), add_generation_prompt=True)


def ends_of_answer(tokenizer: Tokenizer) -> list[int]:
    """End of text, and what ends an assistant's turn: the last special token of a finished message."""
    ends = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    if tokenizer.chat_template is not None:
        turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        special = set(tokenizer.special_tokens.values())
        ends += [id for id in tokenizer.apply_chat_template(turn) if id in special][-1:]
    return list(dict.fromkeys(ends))


def _messages(value: Any, where: str) -> Messages:
    """A list of {"role": ..., "content": text}."""
    if not isinstance(value, list):
        raise TrainingError(f"{where}: wanted a list of messages, got {type(value).__name__}")
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or "content" not in message:
            raise TrainingError(f'{where}: wanted messages like {{"role": "user", "content": "Hi"}}, got {message!r}')
        if message["role"] == "assistant" and not isinstance(message["content"], str):
            raise TrainingError(f"{where}: wanted a text as an assistant's content, got {message['content']!r}")
    return value


def _turn(tokenizer: Tokenizer, messages: Messages, turn: int, whole: Sequence[int]) -> range | None:
    """The places in `whole` of one assistant's turn; None when what stands before it there is not what it was."""
    before = tokenizer.apply_chat_template(messages[:turn], add_generation_prompt=True)
    upto = tokenizer.apply_chat_template(messages[: turn + 1])
    return _after(tokenizer, before, whole, tokenizer.decode_bytes(upto))


def _only_turn(tokenizer: Tokenizer, messages: Messages, where: str) -> Example:
    """The conversation up to its last message, which is the one that is learned."""
    whole = tokenizer.apply_chat_template(messages)
    part = _turn(tokenizer, messages, len(messages) - 1, whole)
    if part is None:
        raise TrainingError(
            f"{where}: the chat template does not put an assistant's message after the prompt it makes for one, so "
            "what is to be learned is not known: it needs add_generation_prompt"
        )
    return Example(whole, [place in part for place in range(len(whole))])


def _after(
    tokenizer: Tokenizer, before: Sequence[int], whole: Sequence[int], upto: bytes | None = None
) -> range | None:
    """The places in `whole` that begin after the bytes of `before`, up to the last special token within `upto` (the end
    of the turn: what a template writes between turns is not the assistant's).

    By bytes and not by ids: a first letter may melt into one token with the end of the prompt, and that one does not
    count, since the model will never be asked for it.
    """
    text = tokenizer.decode_bytes(whole)
    start_byte = len(tokenizer.decode_bytes(before))
    end_byte = len(text if upto is None else upto)
    if not text.startswith(tokenizer.decode_bytes(before)) or not (upto is None or text.startswith(upto)):
        return None
    special = set(tokenizer.special_tokens.values())
    place, start, stop, last = 0, len(whole), 0, 0
    for index, id in enumerate(whole):
        if place >= start_byte:
            start = min(start, index)
        place += len(tokenizer.decode_bytes([id]))
        if place <= end_byte:
            stop = index + 1
            if id in special:
                last = index + 1
    stop = last if last > start else stop
    return range(start, stop) if start < stop else None
