"""`tokenizer.json` in the schema of Hugging Face's tokenizers: read and write byte-level BPE.

Reading accepts what this package encodes exactly and refuses everything else by name: a part that were ignored would
give wrong ids without a word. Does not touch the disk (see `_load.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tinylm.tokenizer._errors import TokenizerError
from tinylm.tokenizer._vocabulary import Merge3, Vocabulary
from tinylm.tokenizer.byte_bpe import BYTE_OF_ID
from tinylm.tokenizer.patterns import PATTERNS

# GPT-2 writes bytes as printable characters, because its files hold one token a line: byte → character.
_CHARACTER = {byte: chr(byte if id < 188 else 256 + id - 188) for id, byte in enumerate(BYTE_OF_ID)}
_BYTE = {character: byte for byte, character in _CHARACTER.items()}
_MAX_ID = 2**32 - 2  # the kernel keeps 2**32 - 1 for "none"


def to_printable(token: bytes) -> str:
    """b" a" → "Ġa"."""
    return "".join(_CHARACTER[byte] for byte in token)


def from_printable(token: str) -> bytes:
    """ "Ġa" → b" a"; KeyError for a character that stands for no byte."""
    return bytes(_BYTE[character] for character in token)


def write(vocabulary: Vocabulary) -> bytes:
    """The bytes of the tokenizer.json: always the same for the same vocabulary."""
    vocab = {to_printable(token): id for id, token in sorted(vocabulary.tokens.items())}
    by_id = {id: name for name, id in vocab.items()}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    content: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(text, id) for text, id in sorted(vocabulary.special_tokens.items(), key=_id)],
        "normalizer": {"type": "NFC"} if vocabulary.nfc else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*map(_stage, vocabulary.stages)]},
        "post_processor": _template(vocabulary) or {**byte_level, "use_regex": True},
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": vocabulary.whole_piece_first,
            "vocab": vocab,
            "merges": [[by_id[left], by_id[right]] for left, right, _ in vocabulary.merges],
        },
    }
    content["pre_tokenizer"]["pretokenizers"].append({**byte_level, "use_regex": False})
    return (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode()


def _id(item: tuple[str, int]) -> int:
    return item[1]


def _added_token(text: str, id: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": id, "content": text, **flags, "special": True}


def _stage(name: str) -> dict[str, Any]:
    if name == "digits":
        return {"type": "Digits", "individual_digits": True}
    return {"type": "Split", "pattern": {"Regex": PATTERNS[name]}, "behavior": "Isolated", "invert": False}


def _template(vocabulary: Vocabulary) -> dict[str, Any] | None:
    if not vocabulary.prefix and not vocabulary.suffix:
        return None
    names = {id: text for text, id in vocabulary.special_tokens.items()}
    around = [
        [{"SpecialToken": {"id": names[id], "type_id": 0}} for id in ids]
        for ids in (vocabulary.prefix, vocabulary.suffix)
    ]
    single = [*around[0], {"Sequence": {"id": "A", "type_id": 0}}, *around[1]]
    used = {id: {"id": names[id], "ids": [id], "tokens": [names[id]]} for id in vocabulary.prefix + vocabulary.suffix}
    pair = [*single, *around[0], {"Sequence": {"id": "B", "type_id": 0}}, *around[1]]
    specials = {names[id]: entry for id, entry in used.items()}
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": specials}


def read(data: bytes, where: str) -> Vocabulary:
    """The vocabulary of a tokenizer.json; `where` names the file in error messages.

    Errors: TokenizerError for JSON that is broken or no tokenizer, and for each part that is not understood.
    """
    try:
        content = json.loads(data.decode())
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise TokenizerError(
            f"wanted a tokenizer.json, got broken JSON in {where}: {error}; the file is damaged or cut short"
        ) from None
    try:
        return _Reader(where).vocabulary(content)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        if isinstance(error, TokenizerError):
            raise
        raise TokenizerError(
            f"wanted a tokenizer.json in the schema of Hugging Face's tokenizers, got something else in {where} "
            f"({type(error).__name__}: {error})"
        ) from None


class _Reader:
    """Takes a parsed tokenizer.json apart; holds the file's name for its error messages."""

    def __init__(self, where: str) -> None:
        self.where = where

    def refuse(self, part: str, got: object, wanted: str) -> TokenizerError:
        return TokenizerError(f"{self.where}: {part} is {_short(got)}, which is not supported; wanted {wanted}")

    def vocabulary(self, content: Mapping[str, Any]) -> Vocabulary:
        for part in ("truncation", "padding"):
            if content.get(part) is not None:
                raise self.refuse(part, content[part], "none: it would change the ids of long or short texts")
        model = content["model"]
        if model.get("type", "BPE") != "BPE":
            raise self.refuse("the model", model["type"], "BPE (Unigram, WordPiece and WordLevel are not there yet)")
        for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
            if model.get(option):
                raise self.refuse(f"the model's {option}", model[option], "none (byte-level BPE)")
        normalizer = content.get("normalizer")
        if normalizer is not None and normalizer.get("type") != "NFC":
            raise self.refuse("the normalizer", normalizer.get("type"), "none or NFC")
        decoder = content.get("decoder")
        if decoder is not None and decoder.get("type") != "ByteLevel":
            raise self.refuse("the decoder", decoder.get("type"), "ByteLevel")
        specials = self.special_tokens(content.get("added_tokens") or [])
        tokens = self.tokens(model["vocab"], specials)
        prefix, suffix = self.template(content.get("post_processor"), specials)
        return Vocabulary(
            tokens=tokens,
            merges=self.merges(model["merges"], tokens),
            special_tokens=specials,
            stages=self.stages(content.get("pre_tokenizer")),
            whole_piece_first=_boolean(model.get("ignore_merges", False)),
            nfc=normalizer is not None,
            prefix=prefix,
            suffix=suffix,
        )

    def special_tokens(self, added: list[dict[str, Any]]) -> dict[str, int]:
        specials: dict[str, int] = {}
        for token in added:
            text, id = token["content"], self.id(token["id"])
            for flag in ("single_word", "lstrip", "rstrip"):
                if _boolean(token.get(flag, False)):
                    raise self.refuse(f"{flag} of the added token {text!r}", True, "false")
            if not isinstance(text, str) or not text or text in specials or id in specials.values():
                raise TokenizerError(f"{self.where}: the added token {text!r} (id {id}) is empty or there twice")
            specials[text] = id
        return specials

    def tokens(self, vocab: Mapping[str, Any], specials: Mapping[str, int]) -> dict[int, bytes]:
        tokens: dict[int, bytes] = {}
        special_ids = {id: text for text, id in specials.items()}
        for name, number in vocab.items():
            id = self.id(number)
            if special_ids.get(id) == name:
                continue
            if id in tokens or id in special_ids:
                raise TokenizerError(f"{self.where}: the id {id} is there twice, the second time for {name!r}")
            try:
                tokens[id] = from_printable(name)
            except KeyError:
                raise TokenizerError(
                    f"{self.where}: the token {name!r} is not written in byte-level characters; only byte-level BPE "
                    "is supported"
                ) from None
        missing = set(range(256)) - {token[0] for token in tokens.values() if len(token) == 1}
        if missing or b"" in tokens.values():
            raise TokenizerError(
                f"{self.where}: wanted all 256 bytes in the vocabulary and no empty token, got {len(missing)} bytes "
                "missing; only byte-level BPE is supported"
            )
        return tokens

    def merges(self, rows: list[Any], tokens: dict[int, bytes]) -> list[Merge3]:
        ids = {token: id for id, token in tokens.items()}
        merges: list[Merge3] = []
        for number, row in enumerate(rows):
            pair = row.split(" ") if isinstance(row, str) else row
            try:
                left, right = map(from_printable, pair)
                merges.append((ids[left], ids[right], ids[left + right]))
            except (KeyError, ValueError, TypeError):
                raise TokenizerError(
                    f"{self.where}: merge {number} is {_short(row)}; wanted two tokens that are in the vocabulary "
                    "together with what they make"
                ) from None
        return merges

    def stages(self, pre_tokenizer: Any) -> tuple[str, ...]:
        parts = _flat(pre_tokenizer, "pretokenizers")
        stages: list[str] = []
        if not parts or parts[-1]["type"] != "ByteLevel":
            raise self.refuse("the pre-tokenizer", pre_tokenizer, "one that ends in ByteLevel")
        if _boolean(parts[-1]["add_prefix_space"]):
            raise self.refuse("add_prefix_space of the pre-tokenizer", True, "false")
        for part in parts[:-1]:
            stages.append(self.stage(part))
        if _boolean(parts[-1].get("use_regex", True)):
            stages.append("gpt2")
        if tuple(stages) != ("digits", "gpt2") and (len(stages) != 1 or stages == ["digits"]):
            raise self.refuse("the pre-tokenizer", stages, "one of the known patterns, or digits and then gpt2")
        return tuple(stages)

    def stage(self, part: dict[str, Any]) -> str:
        if part["type"] == "Digits" and _boolean(part["individual_digits"]):
            return "digits"
        if part["type"] == "Split" and part["behavior"] == "Isolated" and not _boolean(part.get("invert", False)):
            expression = part["pattern"].get("Regex")
            for name, known in PATTERNS.items():
                if known == expression:
                    return name
        raise self.refuse("a step of the pre-tokenizer", part, f"Split by a known pattern: {', '.join(PATTERNS)}")

    def template(self, processor: Any, specials: Mapping[str, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        around: tuple[list[int], list[int]] = ([], [])
        for part in _flat(processor, "processors"):
            if part["type"] == "ByteLevel":  # it only trims offsets
                continue
            if part["type"] != "TemplateProcessing":
                raise self.refuse("the post-processor", part["type"], "ByteLevel or TemplateProcessing")
            side = 0
            for item in part["single"]:
                if "Sequence" in item:
                    side += 1
                else:
                    text = item["SpecialToken"]["id"]
                    ids = part["special_tokens"][text]["ids"]
                    if side > 1 or ids != [specials.get(text)]:
                        raise self.refuse("the post-processor's template", item, "special tokens of this file")
                    around[side].append(specials[text])
            if side != 1:
                raise self.refuse("the post-processor's template", part["single"], "exactly one sequence")
        return tuple(around[0]), tuple(around[1])

    def id(self, value: Any) -> int:
        if type(value) is not int or not 0 <= value <= _MAX_ID:
            raise TokenizerError(f"{self.where}: wanted an id from 0 to {_MAX_ID}, got {_short(value)}")
        return value


def _boolean(value: Any) -> bool:
    if type(value) is not bool:
        raise TypeError(f"wanted true or false, got {_short(value)}")
    return value


def _flat(part: Any, list_name: str) -> list[dict[str, Any]]:
    """A part, a Sequence of parts, or nothing → a list of parts."""
    if part is None:
        return []
    return list(part[list_name]) if part["type"] == "Sequence" else [part]


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 120 else text[:117] + "..."
