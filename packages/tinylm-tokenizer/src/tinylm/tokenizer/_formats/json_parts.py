"""What the tokenizer.json of every algorithm has in common: added tokens, the template around a text, checks.

Next: `json_byte_level.py`, `json_sentencepiece.py`, `json_wordpiece.py`, which read and write the rest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

from tinylm.tokenizer._added import PLAIN, Flags
from tinylm.tokenizer._errors import TokenizerError

if TYPE_CHECKING:
    from tinylm.tokenizer._engines.vocabulary import Merge3

T = TypeVar("T", str, bytes)
Around = tuple[tuple[int, ...], tuple[int, ...]]  # the ids before and after a text
MAX_ID = 2**32 - 2  # the kernel keeps 2**32 - 1 for "none"


def dump(content: Mapping[str, Any]) -> bytes:
    """The bytes of a tokenizer.json: always the same for the same content."""
    # With indent= json would leave its encoder in C, which is ten times as fast; the separators make the lines.
    return (json.dumps(content, ensure_ascii=False, separators=(",\n", ": ")) + "\n").encode()


def write_added_tokens(
    special: Mapping[str, int], added: Mapping[str, int], flags: Mapping[str, Flags]
) -> list[dict[str, Any]]:
    """The entries of special tokens and of those that are found in any text, in order of their ids."""
    entries = [(id, text, True) for text, id in special.items()] + [(id, text, False) for text, id in added.items()]
    return [
        {"id": id, "content": text, **asdict(flags.get(text, PLAIN)), "special": is_special}
        for id, text, is_special in sorted(entries)
    ]


def write_places(vocab: Mapping[str, int], named: Mapping[str, int]) -> dict[str, int]:
    """The special and added tokens that have to stand in the vocabulary as well: tokenizers gives one that does not the
    next free id behind the vocabulary, whatever its own entry says. Errors: TokenizerError for one that is there as
    another token."""
    for text, id in named.items():
        if vocab.get(text, id) != id:
            raise TokenizerError(f"a tokenizer.json has no place for the token {text!r}: id {vocab[text]} is called so")
    missing = {text: id for text, id in named.items() if text not in vocab}
    follow = sorted(missing.values()) == [*range(len(vocab), len(vocab) + len(missing))]
    return {} if follow else missing


def write_template(prefix: Iterable[int], suffix: Iterable[int], special: Mapping[str, int]) -> dict[str, Any] | None:
    """The post-processor that puts `prefix` and `suffix` around a text; None if there is nothing to put."""
    prefix, suffix = tuple(prefix), tuple(suffix)
    if not prefix and not suffix:
        return None
    names = {id: text for text, id in special.items()}

    def around(sequence: str, type_id: int) -> list[dict[str, Any]]:
        before, after = (
            [{"SpecialToken": {"id": names[id], "type_id": type_id}} for id in ids] for ids in (prefix, suffix)
        )
        return [*before, {"Sequence": {"id": sequence, "type_id": type_id}}, *after]

    used = {names[id]: {"id": names[id], "ids": [id], "tokens": [names[id]]} for id in (*prefix, *suffix)}
    pair = [*around("A", 0), *around("B", 1)]
    return {"type": "TemplateProcessing", "single": around("A", 0), "pair": pair, "special_tokens": used}


class Reader:
    """Takes a parsed tokenizer.json apart; holds the file's name for its error messages."""

    def __init__(self, where: str) -> None:
        self.where = where

    def refuse(self, part: str, got: object, wanted: str) -> TokenizerError:
        """The error for a part that is not understood: ignoring it would give wrong ids without a word."""
        return TokenizerError(f"{self.where}: {part} is {short(got)}, which is not supported; wanted {wanted}")

    def no_limits(self, content: Mapping[str, Any]) -> None:
        """Refuse truncation and padding."""
        for part in ("truncation", "padding"):
            if content.get(part) is not None:
                raise self.refuse(part, content[part], "none: it would change the ids of long or short texts")

    def added_tokens(self, content: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, int], dict[str, Flags]]:
        """The special tokens, those that are found in any text (text → id), and the flags of both that have any."""
        special: dict[str, int] = {}
        added: dict[str, int] = {}
        flags: dict[str, Flags] = {}
        ids: set[int] = set()
        for token in content.get("added_tokens") or []:
            text, id = token["content"], self.id(token["id"])
            found = Flags(**{flag: boolean(token.get(flag, False)) for flag in asdict(PLAIN)})
            if found.normalized and content.get("normalizer") is not None:
                raise self.refuse(f"normalized of the added token {text!r}", True, "false in a file with a normalizer")
            if not isinstance(text, str) or not text or text in special or text in added or id in ids:
                raise TokenizerError(f"{self.where}: the added token {text!r} (id {id}) is empty or there twice")
            ids.add(id)
            (special if boolean(token.get("special", True)) else added)[text] = id
            if found != PLAIN:
                flags[text] = found
        return special, added, flags

    def merges(self, rows: Iterable[Any], ids: Mapping[T, int], part: Callable[[str], T]) -> list[Merge3]:
        """The merges, each written as "left right" or as two strings, of which `part` makes what `ids` holds."""
        merges: dict[tuple[int, int], Merge3] = {}
        for number, row in enumerate(rows):
            try:
                left, right = map(part, row.split(" ") if isinstance(row, str) else row)
                merge = ids[left], ids[right], ids[left + right]
            except (KeyError, ValueError, TypeError):
                raise TokenizerError(
                    f"{self.where}: merge {number} is {short(row)}; wanted two tokens that are in the vocabulary "
                    "together with what they make"
                ) from None
            merges.pop(merge[:2], None)  # of a merge that is there twice tokenizers takes the last rank
            merges[merge[:2]] = merge
        return [*merges.values()]

    def template(self, processor: Any, special: Mapping[str, int]) -> Around:
        """The ids that the post-processor puts around a text."""
        around: tuple[list[int], list[int]] = ([], [])
        parts = [part for part in flat(processor, "processors") if part["type"] != "ByteLevel"]  # it only trims offsets
        if len(parts) > 1:  # tokenizers takes what the first one made for several texts
            raise self.refuse("the post-processor", [part["type"] for part in parts], "one that adds tokens")
        for part in parts:
            if part["type"] in ("BertProcessing", "RobertaProcessing"):
                for side, (text, id) in enumerate((part["cls"], part["sep"])):
                    if special.get(text) != self.id(id):
                        raise self.refuse("the post-processor", part, "special tokens of this file")
                    around[side].append(id)
                continue
            if part["type"] != "TemplateProcessing":
                raise self.refuse("the post-processor", part["type"], "ByteLevel, TemplateProcessing or BERT's")
            side = 0
            for item in part["single"]:
                if "Sequence" in item:
                    side += 1
                else:
                    text = item["SpecialToken"]["id"]
                    ids = part["special_tokens"][text]["ids"]
                    if side > 1 or ids != [special.get(text)]:
                        raise self.refuse("the post-processor's template", item, "special tokens of this file")
                    around[side].append(special[text])
            if side != 1:
                raise self.refuse("the post-processor's template", part["single"], "exactly one sequence")
        return tuple(around[0]), tuple(around[1])

    def id(self, value: Any) -> int:
        """`value`, if it is an id."""
        if type(value) is not int or not 0 <= value <= MAX_ID:
            raise TokenizerError(f"{self.where}: wanted an id from 0 to {MAX_ID}, got {short(value)}")
        return value


def boolean(value: Any) -> bool:
    """`value`, if it is true or false; TypeError otherwise."""
    if type(value) is not bool:
        raise TypeError(f"wanted true or false, got {short(value)}")
    return value


def flat(part: Any, list_name: str) -> list[dict[str, Any]]:
    """A part, a Sequence of parts, or nothing → a list of parts."""
    if part is None:
        return []
    return list(part[list_name]) if part["type"] == "Sequence" else [part]


def short(value: object) -> str:
    """`value` as JSON, cut to a line."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 120 else text[:117] + "..."
