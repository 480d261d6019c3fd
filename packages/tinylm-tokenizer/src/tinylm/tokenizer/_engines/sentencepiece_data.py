"""Everything that defines a tokenizer of the SentencePiece family, as plain data: the file readers make it
(`_formats/sentencepiece_model.py`, `_formats/json_sentencepiece.py`, GGUF), the engine `sentencepiece.py` and the
kernels take it.

It does nothing by itself. How text is normalised: `normalizer.py`; how it is encoded: `sentencepiece_bpe.py` and
`unigram.py`. Source: Kudo and Richardson 2018 (SentencePiece); the kinds are those of its ModelProto.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

from tinylm.tokenizer._added import Flags

SPACE = "\u2581"  # "▁", LOWER ONE EIGHTH BLOCK: how a space is written inside a piece


class Kind(IntEnum):
    """What a piece is for. The numbers are those of SentencePiece's files.

    Only NORMAL, USER_DEFINED and UNUSED pieces are ever found in text.
    """

    NORMAL = 1
    UNKNOWN = 2  # stands for text that no piece covers; at most one
    CONTROL = 3  # <s>, </s>: never found in text, nothing in the decoded text
    USER_DEFINED = 4  # always one token wherever it stands in the text, and never normalised
    UNUSED = 5  # known to the merges of BPE, but never a result; also fills an id that no piece has (text "")
    BYTE = 6  # "<0x0A>": one byte of a character that no piece covers


# ---- the steps that make normalised text of a text, done one after the other ----


@dataclass(frozen=True)
class Charsmap:
    """Rewrite by SentencePiece's compiled rules (`normalizer.py` parses the bytes): the longest rule that matches wins.

    by_grapheme: as Hugging Face's tokenizers apply the same rules: to whole grapheme clusters of fewer than 6 bytes,
    else to single characters.
    """

    rules: bytes
    by_grapheme: bool = False


@dataclass(frozen=True)
class Form:
    """A named rewriting: nfc, nfd, nfkc, nfkd (whole texts, Python's Unicode tables), lower, strip_accents, nmt."""

    name: str


@dataclass(frozen=True)
class Replace:
    """Replace a literal string everywhere."""

    old: str
    new: str


@dataclass(frozen=True)
class ReplaceSpaces:
    """Replace every run of two or more U+0020 by `new`; at "start" or "end": the one run there, which at the end may
    hold "▁" too (the regular expressions that converted files hold)."""

    new: str
    at: Literal["anywhere", "start", "end"] = "anywhere"


@dataclass(frozen=True)
class Strip:
    """Remove white space at the ends."""

    left: bool
    right: bool


@dataclass(frozen=True)
class Prepend:
    """Put `text` before a part that is not empty. first_only: only where the part starts the whole text, and its first
    character is still there; unless_there: not before a part that starts with `text` already (Metaspace)."""

    text: str
    first_only: bool = False
    unless_there: bool = False


@dataclass(frozen=True)
class Spaces:
    """What SentencePiece does with spaces, in one pass: drop leading, trailing and repeated ones
    (remove_extra_whitespaces), put one at the start of the text (dummy_prefix; at its end with suffix=True), and write
    each as "▁" (escape)."""

    dummy_prefix: bool = True
    remove_extra: bool = True
    suffix: bool = False
    escape: bool = True


@dataclass(frozen=True)
class WhiteSpace:
    """Every word between Unicode white space is written with a "▁" before it, unless it begins with one; the white
    space itself goes (WhitespaceSplit and then Metaspace in a tokenizer.json)."""


@dataclass(frozen=True)
class Only:
    """Remove all characters but these: a BPE that has no unknown token passes them over before it merges what is around
    them."""

    characters: frozenset[str]


Step = Charsmap | Form | Replace | ReplaceSpaces | Strip | Prepend | Spaces | WhiteSpace | Only


@dataclass(frozen=True)
class SentencePieceModel:
    """A SentencePiece-BPE or Unigram vocabulary. The id of a piece is its place in `pieces`.

    pieces, scores, kinds: one entry an id. scores are float32 values in files of SentencePiece.
    merges: None: two neighbours may merge if their joined text is a piece that may be found in text; the highest score
    goes first, then the leftmost (SentencePiece). Otherwise (left id, right id, result id) in order of rank: the lowest
    rank goes first, then the leftmost (tokenizer.json). Unused by Unigram.
    unk_id: the id for text that no piece covers; None: there is none (byte_fallback covers everything).
    byte_fallback: a character that no piece covers becomes BYTE pieces, one a UTF-8 byte.
    fuse_unknown: neighbouring unknown pieces become one.
    double: Unigram as tokenizer.json has it: scores are added in float64, not in float32 from the start of the text as
    SentencePiece does (it decides near-ties), and BYTE pieces are found in text as well.
    steps: the normalisation, in order. words: each part that begins at a "▁" is encoded on its own.
    drop_space: decoding drops the "▁" that starts the text: "never", "once" or "all" (all that stand there); of a
    tokenizer.json every "▁" of the "first" piece (Metaspace), or a "space" at the start of the text (Strip).
    special_tokens: text → id, found in a text only when allowed. added_tokens: text → id, cut out of every text before
    it is normalised (only tokenizer.json has them; pieces of kind USER_DEFINED are found by the engine itself).
    flags: text → how that special or added token is found, where not just as it is written.
    prefix, suffix: ids put around a text when special tokens are asked for.
    """

    algorithm: Literal["sentencepiece-bpe", "unigram"]
    pieces: tuple[str, ...]
    scores: tuple[float, ...]
    kinds: tuple[int, ...]
    merges: tuple[tuple[int, int, int], ...] | None = None
    unk_id: int | None = 0
    unk_surface: str = " \u2047 "
    byte_fallback: bool = False
    fuse_unknown: bool = True
    double: bool = False
    steps: tuple[Step, ...] = (Spaces(),)
    words: bool = False
    drop_space: Literal["never", "once", "all", "first", "space"] = "once"
    special_tokens: dict[str, int] = field(default_factory=dict)
    added_tokens: dict[str, int] = field(default_factory=dict)
    flags: dict[str, Flags] = field(default_factory=dict)
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
