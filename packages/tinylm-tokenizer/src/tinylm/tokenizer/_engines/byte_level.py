"""The engine of byte-level BPE: a `Vocabulary`, the fastest encoder at hand, and what `Tokenizer` asks of an algorithm.

The algorithm itself is in the rungs `byte_bpe.py`, `byte_bpe_fast.py` and `kernels`. Does not know files (see
`_formats/json_byte_level.py` and `_formats/tiktoken_format.py`).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from tinylm.tokenizer import kernels
from tinylm.tokenizer._errors import TokenizerError
from tinylm.tokenizer._streaming import last_word_start
from tinylm.tokenizer._text.pretokenize import split

if TYPE_CHECKING:
    from random import Random

    import numpy as np
    from numpy.typing import NDArray

    from tinylm.tokenizer import byte_bpe_fast
    from tinylm.tokenizer._engines.vocabulary import Vocabulary
    from tinylm.tokenizer._explain import Merge

_MARGIN = 8  # no pattern of patterns.py looks further past the end of a piece, white space aside (a contraction: 3)


class ByteLevelEngine:
    """See `protocol.Engine`. `first` makes no difference here: nothing is put before a text."""

    algorithm = "bpe"
    parts_alone = False

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.special_tokens = dict(vocabulary.special_tokens)
        self.added_tokens = dict(vocabulary.added_tokens)
        self.flags = dict(vocabulary.flags)
        self.prefix, self.suffix = vocabulary.prefix, vocabulary.suffix
        named = {**self.special_tokens, **self.added_tokens}
        self._named = {id: text.encode() for text, id in named.items() if id not in vocabulary.tokens}
        self._encoder = kernels.make_encoder(vocabulary, self._named)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.vocabulary,)

    @property
    def backend(self) -> str:
        return self._encoder.name

    @property
    def vocab_size(self) -> int:
        return self.vocabulary.size

    def pieces(self, text: str) -> list[str]:
        """`text` normalised and cut into the pieces that merges never cross."""
        return split(self._normalize(text), self.vocabulary.stages)

    def _normalize(self, text: str) -> str:
        return unicodedata.normalize("NFC", text) if self.vocabulary.nfc else text

    def encode(self, text: str, first: bool = True) -> list[int]:
        return self._encoder.encode(self._normalize(text))

    def encode_array(self, text: str, first: bool = True) -> NDArray[np.uint32]:
        return self._encoder.encode_array(self._normalize(text))

    def encode_batch(self, texts: Sequence[str], threads: int) -> list[list[int]]:
        return self._encoder.encode_batch([self._normalize(text) for text in texts], threads)

    def count(self, text: str, first: bool = True) -> int:
        return self._encoder.count(self._normalize(text))

    @cached_property
    def _sampler(self) -> byte_bpe_fast.Encoder:
        from tinylm.tokenizer import byte_bpe_fast

        return byte_bpe_fast.Encoder(self.vocabulary)

    def sample(self, text: str, alpha: float, chance: Random, first: bool = True) -> list[int]:
        """See `Tokenizer.sample`. With dropout a piece that is a token is merged like any other."""
        return self._sampler.sample(self._normalize(text), alpha, chance) if alpha else self.encode(text)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return self._encoder.decode_bytes(ids)

    def bytes_of(self, id: int) -> bytes:
        found = self.vocabulary.tokens.get(id)
        return self._named[id] if found is None else found

    def byte_stream(self) -> Callable[[int], bytes]:
        return self.bytes_of

    def spans(self, text: str, first: bool = True) -> list[tuple[int, int]]:
        normal = self._normalize(text)
        ends = list(accumulate(map(len, map(self.bytes_of, self.encode(normal)))))
        spans = list(zip([0, *ends], ends, strict=False))
        if normal == text:
            return spans
        starts, stops = _sources(text)
        return [(starts[start], stops[end - 1]) for start, end in spans]

    def explain(self, text: str, first: bool = True) -> list[Merge]:
        from tinylm.tokenizer._explain import explain_pieces

        return explain_pieces(self.pieces(text), self.vocabulary)

    def cut(self, text: str, first: bool = True) -> int:
        """Between a letter and " " with a letter, where every pattern cuts; if there is no such place, the start of a
        piece if (1) no white space precedes it: how a run of that is cut depends on what follows the whole of it; (2)
        the piece behind it is complete: o200k gives "日本ABC" as "日本", "ABC", but as one piece if a "d" follows; and
        (3) a margin follows that one, for patterns look a little ahead."""
        if place := last_word_start(text):
            return place
        cut = candidate = position = 0
        for piece in split(text, self.vocabulary.stages):
            if position > len(text) - _MARGIN:
                break
            cut = candidate
            if position and not text[position - 1].isspace() and self._begins_anew(text, position):
                candidate = position
            position += len(piece)
        return cut

    def stream(self) -> Callable[[str, bool], list[int]]:
        return self.encode

    def _begins_anew(self, text: str, place: int) -> bool:
        """Whether normalising what is before and after `place` apart gives what normalising them together does."""
        if not self.vocabulary.nfc or text[place].isascii():
            return True
        around = text[max(place - 4, 0) : place], text[place : place + 4]
        return self._normalize("".join(around)) == "".join(map(self._normalize, around))

    def written(self) -> Vocabulary:
        """The vocabulary as files hold it."""
        return self.vocabulary

    def files(self) -> dict[str, bytes]:
        from tinylm.tokenizer._formats.json_byte_level import write

        return {"tokenizer.json": write(self.written())}


def byte_level_engine(vocabulary: Vocabulary) -> ByteLevelEngine:
    """The engine of a vocabulary that may lack some bytes."""
    known = set(vocabulary.tokens.values())
    lacking = [byte for byte in (bytes([value]) for value in range(256)) if byte not in known]
    if not lacking:
        return ByteLevelEngine(vocabulary)
    absent = {vocabulary.size + place: byte for place, byte in enumerate(lacking)}
    return PartialEngine(replace(vocabulary, tokens={**vocabulary.tokens, **absent}), absent)


class PartialEngine(ByteLevelEngine):
    """Byte-level BPE whose vocabulary lacks some bytes (SmolLM2: control characters, bytes that UTF-8 does not have).

    absent: an id beyond the vocabulary → the byte that has no token. Text that holds one is refused, not shortened.
    """

    def __init__(self, vocabulary: Vocabulary, absent: Mapping[int, bytes]) -> None:
        super().__init__(vocabulary)
        self._absent = dict(absent)
        self._delete = b"".join(absent.values())

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.vocabulary, self._absent)

    @property
    def vocab_size(self) -> int:
        return self.written().size

    def _check(self, text: str) -> None:
        data = text.encode()
        if len(data.translate(None, self._delete)) != len(data):
            character = next(c for c in text if set(c.encode()) & set(self._delete))
            raise TokenizerError(
                f"this vocabulary has no token for a byte of U+{ord(character):04X} (at character "
                f"{text.index(character)}): remove or replace it"
            )

    def encode(self, text: str, first: bool = True) -> list[int]:
        self._check(text)
        return super().encode(text, first)

    def encode_array(self, text: str, first: bool = True) -> NDArray[np.uint32]:
        self._check(text)
        return super().encode_array(text, first)

    def encode_batch(self, texts: Sequence[str], threads: int) -> list[list[int]]:
        for text in texts:
            self._check(text)
        return super().encode_batch(texts, threads)

    def count(self, text: str, first: bool = True) -> int:
        self._check(text)
        return super().count(text, first)

    def sample(self, text: str, alpha: float, chance: Random, first: bool = True) -> list[int]:
        self._check(text)
        return super().sample(text, alpha, chance, first)

    def bytes_of(self, id: int) -> bytes:
        if id in self._absent:
            raise KeyError(id)
        return super().bytes_of(id)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        ids = list(ids)
        if not self._absent.keys().isdisjoint(ids):
            raise KeyError(next(id for id in ids if id in self._absent))
        return super().decode_bytes(ids)

    def written(self) -> Vocabulary:
        tokens = {id: token for id, token in self.vocabulary.tokens.items() if id not in self._absent}
        return replace(self.vocabulary, tokens=tokens)


def _sources(text: str) -> tuple[list[int], list[int]]:
    """For each byte of NFC(text): where the stretch of `text` that it comes from starts and ends, in bytes.

    A stretch is as short as can be: it ends where normalising both sides apart changes nothing. Of one that normalising
    leaves as it is each byte stands for itself.
    """
    starts: list[int] = []
    stops: list[int] = []
    stretch, begun = "", 0
    for character in [*text, ""]:
        done = unicodedata.normalize("NFC", stretch)
        if stretch and unicodedata.normalize("NFC", stretch + character) == done + unicodedata.normalize(
            "NFC", character
        ):
            size, ended = len(done.encode()), begun + len(stretch.encode())
            unchanged = done == stretch
            starts += range(begun, ended) if unchanged else [begun] * size
            stops += range(begun + 1, ended + 1) if unchanged else [ended] * size
            stretch, begun = "", ended
        stretch += character
    return starts, stops
