"""tokenizer.json of byte-level BPE: read and write.

Reading accepts what this package encodes exactly and refuses everything else by name: a part that were ignored would
give wrong ids without a word. Does not touch the disk (see `load.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tinylm.tokenizer._engines.vocabulary import Vocabulary
from tinylm.tokenizer._errors import TokenizerError
from tinylm.tokenizer._formats.json_parts import (
    Reader,
    boolean,
    dump,
    flat,
    write_added_tokens,
    write_places,
    write_template,
)
from tinylm.tokenizer.byte_bpe import BYTE_OF_ID
from tinylm.tokenizer.patterns import PATTERNS

# GPT-2 writes bytes as printable characters, because its files hold one token a line: byte → character.
_CHARACTER = {byte: chr(byte if id < 188 else 256 + id - 188) for id, byte in enumerate(BYTE_OF_ID)}
_BYTE = {character: byte for byte, character in _CHARACTER.items()}
# A vocabulary without them is damaged. Some lack control characters and bytes that assigned characters never have.
_NEEDED = {*b"\t\n\r", *range(0x20, 0x7F), *range(0x80, 0xC0), *range(0xC2, 0xF1)}


def to_printable(token: bytes) -> str:
    """b" a" → "Ġa"."""
    return token.decode("latin-1").translate(_CHARACTER)


def from_printable(token: str) -> bytes:
    """ "Ġa" → b" a"; KeyError for a character that stands for no byte."""
    return bytes(_BYTE[character] for character in token)


def is_printable(text: str) -> bool:
    """Whether every character of `text` stands for a byte."""
    return _BYTE.keys() >= set(text)


def write(vocabulary: Vocabulary) -> bytes:
    """The bytes of the tokenizer.json: always the same for the same vocabulary."""
    vocab = {to_printable(token): id for id, token in sorted(vocabulary.tokens.items())}
    by_id = {id: name for name, id in vocab.items()}
    vocab |= write_places(vocab, {**vocabulary.special_tokens, **vocabulary.added_tokens})
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    template = write_template(vocabulary.prefix, vocabulary.suffix, vocabulary.special_tokens)
    content: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": write_added_tokens(vocabulary.special_tokens, vocabulary.added_tokens, vocabulary.flags),
        "normalizer": {"type": "NFC"} if vocabulary.nfc else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*map(_stage, vocabulary.stages)]},
        "post_processor": template or {**byte_level, "use_regex": True},
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
    return dump(content)


def _stage(name: str) -> dict[str, Any]:
    if name == "digits":
        return {"type": "Digits", "individual_digits": True}
    return {"type": "Split", "pattern": {"Regex": PATTERNS[name]}, "behavior": "Isolated", "invert": False}


def read(content: Mapping[str, Any], where: str) -> Vocabulary:
    """The vocabulary of a parsed tokenizer.json; `where` names the file in error messages.

    Errors: TokenizerError for each part that is not understood; TypeError and the like for a part of another shape.
    """
    return _Reader(where).vocabulary(content)


class _Reader(Reader):
    def vocabulary(self, content: Mapping[str, Any]) -> Vocabulary:
        self.no_limits(content)
        model = content["model"]
        for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
            if model.get(option):
                raise self.refuse(f"the model's {option}", model[option], "none (byte-level BPE)")
        normalizer = content.get("normalizer")
        if normalizer is not None and normalizer.get("type") != "NFC":
            raise self.refuse("the normalizer", normalizer.get("type"), "none or NFC")
        decoder = content.get("decoder")
        if decoder is not None and decoder.get("type") != "ByteLevel":
            raise self.refuse("the decoder", decoder.get("type"), "ByteLevel")
        specials, added, flags = self.added_tokens(content)
        tokens = self.tokens(model["vocab"], specials, added)
        prefix, suffix = self.template(content.get("post_processor"), specials)
        return Vocabulary(
            tokens=tokens,
            merges=self.merges(model["merges"], {token: id for id, token in tokens.items()}, from_printable),
            special_tokens=specials,
            stages=self.stages(content.get("pre_tokenizer")),
            whole_piece_first=boolean(model.get("ignore_merges", False)),
            nfc=normalizer is not None,
            prefix=prefix,
            suffix=suffix,
            added_tokens=added,
            flags=flags,
        )

    def tokens(
        self, vocab: Mapping[str, Any], specials: Mapping[str, int], added: Mapping[str, int]
    ) -> dict[int, bytes]:
        tokens: dict[int, bytes] = {}
        named = {**specials, **added}
        names = {id: text for text, id in named.items()}
        for text, id in named.items():
            if vocab.get(text, id) != id:  # tokenizers would take the vocabulary's
                raise TokenizerError(
                    f"{self.where}: the added token {text!r} (id {id}) is {vocab[text]} in the vocabulary"
                )
        for name, number in vocab.items():
            id = self.id(number)
            if specials.get(name) == id:  # no text may become one that is not allowed
                continue
            if id in tokens or names.get(id, name) != name:
                raise TokenizerError(f"{self.where}: the id {id} is there twice, the second time for {name!r}")
            try:
                tokens[id] = from_printable(name)
            except KeyError:
                if added.get(name) == id:  # merges cannot make it
                    continue
                raise TokenizerError(
                    f"{self.where}: the token {name!r} is not written in byte-level characters; only byte-level BPE "
                    "is supported"
                ) from None
        missing = _NEEDED - {token[0] for token in tokens.values() if len(token) == 1}
        if missing or b"" in tokens.values():
            raise TokenizerError(
                f"{self.where}: wanted every byte of text in the vocabulary and no empty token, got {len(missing)} "
                "bytes missing; only byte-level BPE is supported"
            )
        return tokens

    def stages(self, pre_tokenizer: Any) -> tuple[str, ...]:
        parts = flat(pre_tokenizer, "pretokenizers")
        stages: list[str] = []
        if not parts or parts[-1]["type"] != "ByteLevel":
            raise self.refuse("the pre-tokenizer", pre_tokenizer, "one that ends in ByteLevel")
        if boolean(parts[-1]["add_prefix_space"]):
            raise self.refuse("add_prefix_space of the pre-tokenizer", True, "false")
        for part in parts[:-1]:
            stages.append(self.stage(part))
        if boolean(parts[-1].get("use_regex", True)):
            stages.append("gpt2")
        if tuple(stages) != ("digits", "gpt2") and (len(stages) != 1 or stages == ["digits"]):
            raise self.refuse("the pre-tokenizer", stages, "one of the known patterns, or digits and then gpt2")
        return tuple(stages)

    def stage(self, part: dict[str, Any]) -> str:
        if part["type"] == "Digits" and boolean(part["individual_digits"]):
            return "digits"
        if part["type"] == "Split" and part["behavior"] == "Isolated" and not boolean(part.get("invert", False)):
            expression = part["pattern"].get("Regex")
            for name, known in PATTERNS.items():
                if known == expression:
                    return name
        raise self.refuse("a step of the pre-tokenizer", part, f"Split by a known pattern: {', '.join(PATTERNS)}")
