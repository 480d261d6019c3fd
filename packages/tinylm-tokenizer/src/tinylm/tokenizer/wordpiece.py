"""Where you are: WordPiece, the tokenizer of BERT, in plain Python.

Schuster and Nakajima, "Japanese and Korean voice search", 2012, learn the pieces; Wu et al., "Google's neural machine
translation system", 2016, https://arxiv.org/abs/1609.08144, section 4.1, use them; Devlin et al., "BERT", 2018,
https://arxiv.org/abs/1810.04805, put a basic tokenisation before (`_text/wordpiece_text.py`) and write "##" before a
piece that does not begin its word: `unaffable` is `una ##ffa ##ble`.

Encoding is greedy: the longest piece that the word begins with, then the longest that the rest begins with, and so on.
A word with a rest that no piece begins is `[UNK]` as a whole, and so is one of more than 100 characters.

What it does not do: keep the text (case, accents and spaces are lost, `[UNK]` more so), treat bytes, or learn pieces
(`wordpiece_training.py`). Next: the same ids from C++, `kernels/wordpiece.py`; the class around it,
`_engines/wordpiece.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tinylm.tokenizer._added import Flags
from tinylm.tokenizer._atomic import write_atomic
from tinylm.tokenizer._errors import TokenizerError
from tinylm.tokenizer._text.wordpiece_text import Rules, Splitter

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUES = "##"


@dataclass(frozen=True)
class WordPieces:
    """A WordPiece vocabulary, as plain data.

    tokens: piece → id, a piece inside a word with "##" before it; without the special and the added tokens.
    special_tokens, added_tokens: text → id. flags: how one of these is found, where not just as it is written.
    unknown: the special token of a word that cannot be taken apart. longest: words of more characters than this are
    unknown. rules: how a text is cut into words. cleanup: decoding puts no space before . ? ! and ,. prefix, suffix:
    ids put around a text on demand.
    """

    tokens: dict[str, int]
    special_tokens: dict[str, int]
    added_tokens: dict[str, int] = field(default_factory=dict)
    flags: dict[str, Flags] = field(default_factory=dict)
    unknown: str = "[UNK]"
    longest: int = 100
    rules: Rules = field(default_factory=Rules)
    cleanup: bool = True
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()

    @property
    def unknown_id(self) -> int:
        tables = (self.special_tokens, self.added_tokens, self.tokens)
        return next(table[self.unknown] for table in tables if self.unknown in table)


@dataclass(frozen=True)
class Match:
    """One step of encoding: in `word`, at character `position`, `piece` (id `id`) is the longest that fits; `tried` are
    the longer ones that were looked for in vain. A word that is unknown is one Match of the unknown token."""

    word: str
    position: int
    piece: str
    id: int
    tried: tuple[str, ...]


def longest_matches(word: str, pieces: WordPieces) -> list[Match]:
    """The pieces of one word, greedily from left to right; one unknown token if that comes to a dead end."""
    unknown = [Match(word, 0, pieces.unknown, pieces.unknown_id, ())]
    if len(word) > pieces.longest:
        return unknown
    matches: list[Match] = []
    start = 0
    while start < len(word):
        tried: list[str] = []
        for end in range(len(word), start, -1):
            piece = (CONTINUES if start else "") + word[start:end]
            if (id := pieces.tokens.get(piece)) is not None:
                break
            tried.append(piece)
        else:
            return unknown
        matches.append(Match(word, start, piece, id, tuple(tried)))
        start = end
    return matches


def explain(text: str, pieces: WordPieces) -> list[Match]:
    """Every look-up that encoding `text` does, word by word."""
    return [match for word in Splitter(pieces.rules).words(text) for match in longest_matches(word, pieces)]


class Encoder:
    """Text → ids. A word is taken apart once and remembered. One object may be shared by threads."""

    name = "python"
    _REMEMBERED = 1 << 17  # words; bounds the memory

    def __init__(self, pieces: WordPieces) -> None:
        self._pieces = pieces
        self._splitter = Splitter(pieces.rules)
        self._known: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """The ids of `text`. Errors: UnicodeEncodeError for a lone surrogate."""
        text.encode()
        ids: list[int] = []
        known = self._known
        for word in self._splitter.words(text):
            found = known.get(word)
            ids += self._new(word) if found is None else found
        return ids

    def encode_array(self, text: str) -> NDArray[np.uint32]:
        """The same, as an array."""
        return np.array(self.encode(text), np.uint32)

    def _new(self, word: str) -> list[int]:
        ids = [match.id for match in longest_matches(word, self._pieces)]
        if len(word) <= self._pieces.longest:
            if len(self._known) >= self._REMEMBERED:
                self._known = {}
            self._known[word] = ids
        return ids


def encode(text: str, pieces: WordPieces) -> list[int]:
    """The ids of `text`, once; keep an `Encoder` for many texts."""
    return Encoder(pieces).encode(text)


_CLEANUP = [(f" {mark}", mark) for mark in (".", "?", "!", ",")]
_CLEANUP += [(" ' ", "'"), (" n't", "n't"), (" 'm", "'m"), (" do not", " don't"), (" 's", "'s"), (" 've", "'ve")]
_CLEANUP += [(" 're", "'re")]


def spoken(token: str, first: bool, cleanup: bool) -> str:
    """What a token adds to a decoded text: a space before it unless it continues a word or is the first one.

    The clean-up is that of the released code, which looks at one token at a time: it takes the space before . ? ! and
    , away again; what it says about n't and 's would need several tokens at once, and does nothing.
    """
    plain = token.isalnum()  # nothing to clean up
    if not first:
        token = token.removeprefix(CONTINUES) if token.startswith(CONTINUES) else f" {token}"
        plain = plain or token.isalnum()
    for written, wanted in _CLEANUP if cleanup and not plain else ():
        token = token.replace(written, wanted)
    return token


def decode(ids: Iterable[int], pieces: WordPieces) -> str:
    """Ids → text: words with a space between, not the text that was encoded. Errors: TokenizerError: unknown id."""
    names = {id: text for text, id in {**pieces.tokens, **pieces.special_tokens, **pieces.added_tokens}.items()}
    try:
        return "".join(spoken(names[id], not place, pieces.cleanup) for place, id in enumerate(ids))
    except KeyError as error:
        raise TokenizerError(f"wanted an id of this vocabulary, got {error.args[0]!r}") from None


def write_vocab(pieces: WordPieces) -> bytes:
    """The bytes of a vocab.txt: one token a line, in order of ids. Errors: TokenizerError if ids have gaps."""
    by_id = sorted((id, text) for text, id in {**pieces.tokens, **pieces.special_tokens, **pieces.added_tokens}.items())
    if [id for id, _ in by_id] != [*range(len(by_id))]:
        raise TokenizerError("a vocab.txt has one id a line from 0 on; the ids of this tokenizer have gaps")
    return "".join(f"{text}\n" for _, text in by_id).encode()


def save_vocab(pieces: WordPieces, path: str | os.PathLike[str]) -> None:
    """Write a vocab.txt, replacing what was there. Errors: as `write_vocab`."""
    write_atomic(Path(path), write_vocab(pieces))


def read_vocab(data: bytes, where: str, rules: Rules | None = None) -> WordPieces:
    """The vocabulary of a vocab.txt, with BERT's special tokens and [CLS] … [SEP] around a text.

    Such a file does not say whether text is lower-cased: without `rules` it is if no piece has an upper-case letter.
    White space that ends a line is no part of a token. Errors: TokenizerError for what is no such file.
    """
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"wanted UTF-8 text in {where}, got byte 0x{data[error.start]:02x}") from None
    tokens: dict[str, int] = {}
    for id, line in enumerate(lines[:-1] if not lines[-1] else lines):
        token = line.rstrip()
        if not token or token in tokens:
            raise TokenizerError(f"{where}, line {id + 1}: the token {token!r} is empty or there twice")
        tokens[token] = id
    specials = {text: tokens.pop(text) for text in SPECIAL_TOKENS if text in tokens}
    if missing := {"[UNK]", "[CLS]", "[SEP]"} - set(specials):
        raise TokenizerError(f"{where}: wanted BERT's vocab.txt, but it has no {', '.join(sorted(missing))}")
    cased = any(token != token.lower() for token in tokens if not token.startswith("["))
    rules = rules or (Rules(accents=False, lower=False) if cased else Rules())
    around = (specials["[CLS]"],), (specials["[SEP]"],)
    return WordPieces(tokens, specials, rules=rules, prefix=around[0], suffix=around[1])
