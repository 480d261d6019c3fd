"""tokenizer.json of WordPiece (BERT and its family): read and write.

Reading accepts what this package encodes exactly and refuses everything else by name: a part that were ignored would
give wrong ids without a word. Does not touch the disk (see `load.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tinylm.tokenizer._errors import TokenizerError
from tinylm.tokenizer._formats.json_parts import Reader, boolean, dump, short, write_added_tokens
from tinylm.tokenizer._text.wordpiece_text import Rules
from tinylm.tokenizer.wordpiece import CONTINUES, WordPieces

_LONGEST = 10_000  # characters: taking a word apart is quadratic in this


def write(pieces: WordPieces) -> bytes:
    """The bytes of the tokenizer.json: always the same for the same vocabulary."""
    rules = pieces.rules
    vocab = {**pieces.tokens, **pieces.special_tokens, **pieces.added_tokens}
    return dump(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": write_added_tokens(pieces.special_tokens, pieces.added_tokens, pieces.flags),
            "normalizer": {
                "type": "BertNormalizer",
                "clean_text": rules.clean,
                "handle_chinese_chars": rules.cjk,
                "strip_accents": None if rules.accents == rules.lower else rules.accents,
                "lowercase": rules.lower,
            },
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": _template(pieces),
            "decoder": {"type": "WordPiece", "prefix": CONTINUES, "cleanup": pieces.cleanup},
            "model": {
                "type": "WordPiece",
                "unk_token": pieces.unknown,
                "continuing_subword_prefix": CONTINUES,
                "max_input_chars_per_word": pieces.longest,
                "vocab": dict(sorted(vocab.items(), key=lambda item: item[1])),
            },
        }
    )


def _template(pieces: WordPieces) -> dict[str, Any] | None:
    """[CLS] A [SEP], and [CLS] A [SEP] B [SEP] for two texts, of which the second has the type 1."""
    if not pieces.prefix and not pieces.suffix:
        return None
    names = {id: text for text, id in pieces.special_tokens.items()}

    def tokens(ids: tuple[int, ...], type_id: int) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": names[id], "type_id": type_id}} for id in ids]

    single = [*tokens(pieces.prefix, 0), {"Sequence": {"id": "A", "type_id": 0}}, *tokens(pieces.suffix, 0)]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}, *tokens(pieces.suffix, 1)]
    used = {names[id]: {"id": names[id], "ids": [id], "tokens": [names[id]]} for id in (*pieces.prefix, *pieces.suffix)}
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": used}


def read(content: Mapping[str, Any], where: str) -> WordPieces:
    """The vocabulary of a parsed tokenizer.json; `where` names the file in error messages.

    Errors: TokenizerError for each part that is not understood; TypeError and the like for a part of another shape.
    """
    return _Reader(where).vocabulary(content)


class _Reader(Reader):
    def vocabulary(self, content: Mapping[str, Any]) -> WordPieces:
        self.no_limits(content)
        model = content["model"]
        if model.get("continuing_subword_prefix", CONTINUES) != CONTINUES:
            raise self.refuse("the model's continuing_subword_prefix", model["continuing_subword_prefix"], CONTINUES)
        pre_tokenizer = content.get("pre_tokenizer") or {"type": "none"}
        if pre_tokenizer["type"] != "BertPreTokenizer":
            raise self.refuse("the pre-tokenizer", pre_tokenizer["type"], "BertPreTokenizer")
        specials, added, flags = self.added_tokens(content)
        tokens = self.tokens(model["vocab"], specials, added)
        unknown = model["unk_token"]
        if unknown not in {**tokens, **specials, **added}:
            raise TokenizerError(f"{self.where}: the unknown token {short(unknown)} is not in the vocabulary")
        prefix, suffix = self.template(content.get("post_processor"), specials)
        return WordPieces(
            tokens=tokens,
            special_tokens=specials,
            added_tokens=added,
            flags=flags,
            unknown=unknown,
            longest=self.longest(model.get("max_input_chars_per_word", 100)),
            rules=self.rules(content.get("normalizer")),
            cleanup=self.cleanup(content.get("decoder")),
            prefix=prefix,
            suffix=suffix,
        )

    def tokens(self, vocab: Mapping[str, Any], special: Mapping[str, int], added: Mapping[str, int]) -> dict[str, int]:
        """The pieces; an added token that is one may still be found in a word, where it is not found as it is written
        (`single_word`, another case), a special one may not."""
        tokens: dict[str, int] = {}
        used = {id: text for text, id in (*special.items(), *added.items())}
        for text, number in vocab.items():
            id = self.id(number)
            if special.get(text) == id:
                continue
            if used.get(id, text) != text or text in special or added.get(text, id) != id or not text:
                raise TokenizerError(f"{self.where}: the token {text!r} (id {id}) is empty, or there twice")
            text.encode()  # a lone surrogate is no text
            used[id] = text
            tokens[text] = id
        return tokens

    def rules(self, normalizer: Any) -> Rules:
        if normalizer is None:
            return Rules(clean=False, cjk=False, accents=False, lower=False)
        if normalizer["type"] != "BertNormalizer":
            raise self.refuse("the normalizer", normalizer["type"], "BertNormalizer or none")
        lower = boolean(normalizer["lowercase"])
        accents = normalizer.get("strip_accents")
        return Rules(
            clean=boolean(normalizer["clean_text"]),
            cjk=boolean(normalizer["handle_chinese_chars"]),
            accents=lower if accents is None else boolean(accents),
            lower=lower,
        )

    def longest(self, value: Any) -> int:
        if type(value) is not int or not 1 <= value <= _LONGEST:
            raise self.refuse("the model's max_input_chars_per_word", value, f"a number from 1 to {_LONGEST}")
        return value

    def cleanup(self, decoder: Any) -> bool:
        if decoder is None or decoder["type"] != "WordPiece" or decoder.get("prefix", CONTINUES) != CONTINUES:
            raise self.refuse("the decoder", decoder, f"WordPiece with the prefix {CONTINUES}")
        return boolean(decoder.get("cleanup", True))
