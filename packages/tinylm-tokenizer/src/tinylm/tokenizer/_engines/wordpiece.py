"""The engine of WordPiece: a `WordPieces` vocabulary, the fastest encoder at hand, and what `Tokenizer` asks for.

The algorithm is in `wordpiece.py` and `kernels/wordpiece.py`. Does not know files (`_formats/json_wordpiece.py`) and
does not train (`_trainers/wordpiece.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from tinylm.tokenizer import wordpiece
from tinylm.tokenizer._engines.batch import on_threads
from tinylm.tokenizer._text.wordpiece_text import Splitter
from tinylm.tokenizer.kernels.wordpiece import make_encoder
from tinylm.tokenizer.wordpiece import CONTINUES, Match, WordPieces

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class WordPieceEngine:
    """See `protocol.Engine`. `first` makes no difference: nothing is put before a text."""

    algorithm = "wordpiece"
    parts_alone = False

    def __init__(self, pieces: WordPieces) -> None:
        self.pieces = pieces
        self.special_tokens = dict(pieces.special_tokens)
        self.added_tokens = dict(pieces.added_tokens)
        self.flags = dict(pieces.flags)
        self.prefix, self.suffix = pieces.prefix, pieces.suffix
        self._encoder = make_encoder(pieces)
        self._splitter = Splitter(pieces.rules)
        named = {**self.special_tokens, **self.added_tokens}
        self._names = {id: text for text, id in {**pieces.tokens, **named}.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.pieces,)

    @property
    def backend(self) -> str:
        return self._encoder.name

    @property
    def vocab_size(self) -> int:
        return max(self._names) + 1

    # ---- text → ids ----

    def encode(self, text: str, first: bool = True) -> list[int]:
        return self._encoder.encode(text)

    def encode_array(self, text: str, first: bool = True) -> NDArray[np.uint32]:
        return self._encoder.encode_array(text)

    def count(self, text: str, first: bool = True) -> int:
        return len(self._encoder.encode_array(text))

    def encode_batch(self, texts: Sequence[str], threads: int) -> list[list[int]]:
        return on_threads(self.encode, texts, threads if self.backend == "kernels" else 1)

    # ---- ids → text ----

    @cached_property
    def _first(self) -> dict[int, bytes]:
        """Id → what it adds to a text that it begins."""
        return self._spoken(True)

    @cached_property
    def _later(self) -> dict[int, bytes]:
        """Id → what it adds behind others."""
        return self._spoken(False)

    def _spoken(self, first: bool) -> dict[int, bytes]:
        cleanup = self.pieces.cleanup
        return {id: wordpiece.spoken(text, first, cleanup).encode() for id, text in self._names.items()}

    def bytes_of(self, id: int) -> bytes:
        text = self._names[id]
        return (text.removeprefix(CONTINUES) if text in self.pieces.tokens else text).encode()

    def byte_stream(self) -> Callable[[int], bytes]:
        """A space stands before every word but the first one of the text."""
        table = self._first

        def bytes_of(id: int) -> bytes:
            nonlocal table
            data = table[id]
            table = self._later
            return data

        return bytes_of

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        ids = list(ids)
        later = self._later
        return b"".join([self._first[id] for id in ids[:1]] + [later[id] for id in ids[1:]])

    # ---- where and why ----

    def spans(self, text: str, first: bool = True) -> list[tuple[int, int]]:
        text.encode()
        byte_of = [0, *accumulate(len(character.encode()) for character in text)]
        spans: list[tuple[int, int]] = []
        for located in self._splitter.located(text):
            for match, size in self._matches("".join(character for character, _ in located)):
                places = [place for _, place in located[match.position : match.position + size]]
                spans.append((byte_of[min(places)], byte_of[max(places) + 1]))
        return spans

    def _matches(self, word: str) -> list[tuple[Match, int]]:
        """The matches of a word, each with its length in characters."""
        matches = wordpiece.longest_matches(word, self.pieces)
        ends = [*(match.position for match in matches[1:]), len(word)]
        return [(match, end - match.position) for match, end in zip(matches, ends, strict=True)]

    def explain(self, text: str, first: bool = True) -> list[Match]:
        """Every look-up; `position` is the byte of the text at which the piece begins."""
        from dataclasses import replace

        text.encode()
        words = ("".join(character for character, _ in located) for located in self._splitter.located(text))
        steps = [match for word in words for match, _ in self._matches(word)]
        return [replace(step, position=start) for step, (start, _) in zip(steps, self.spans(text), strict=True)]

    def cut(self, text: str, first: bool = True) -> int:
        """Behind the last character that ends a word whatever follows: a space, punctuation, a Chinese character."""
        text.encode()
        places = (place for place in range(len(text), 0, -1) if self._splitter[ord(text[place - 1])].endswith(" "))
        return next(places, 0)

    def stream(self) -> Callable[[str, bool], list[int]]:
        return self.encode

    def files(self) -> dict[str, bytes]:
        from tinylm.tokenizer._formats.json_wordpiece import write

        return {"tokenizer.json": write(self.pieces)}
