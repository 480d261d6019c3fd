"""Everything that defines a byte-level BPE tokenizer, as plain data. The file formats make one; the encoders read it.

Does not encode (see the rungs) and does not know files (see `_formats/json_format.py` and
`_formats/tiktoken_format.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any, overload

from tinylm.tokenizer._added import Flags
from tinylm.tokenizer.byte_bpe import Pair, token_bytes

Merge3 = tuple[int, int, int]  # left id, right id, the id of the two joined


class RankedMerges(Sequence[Merge3]):
    """The merges of a vocabulary in which any two neighbours merge whose joined bytes are a token, the lowest id first
    (tiktoken). There are many, and the kernel does without them, so they are made when somebody looks."""

    def __init__(self, tokens: Mapping[int, bytes]) -> None:
        self._tokens = tokens

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._tokens,)  # a pickle has no need of what can be made again

    @cached_property
    def _merges(self) -> list[Merge3]:
        ids = {token: id for id, token in self._tokens.items()}
        merges: list[Merge3] = []
        for result, token in sorted(self._tokens.items()):
            halves = ((ids.get(token[:cut]), ids.get(token[cut:])) for cut in range(1, len(token)))
            merges += sorted((left, right, result) for left, right in halves if left is not None and right is not None)
        return merges

    @overload
    def __getitem__(self, index: int) -> Merge3: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Merge3]: ...
    def __getitem__(self, index: int | slice) -> Merge3 | Sequence[Merge3]:
        return self._merges[index]

    def __len__(self) -> int:
        return len(self._merges)


@dataclass(frozen=True)
class Vocabulary:
    """A byte-level BPE vocabulary.

    tokens: id → bytes, without the special tokens; every single byte is among them.
    merges: (left, right, result) in order of rank: the earlier merge is done first.
    special_tokens: text → id; found in a text only when they are allowed.
    added_tokens: text → id; found in any text (`"special": false` in a tokenizer.json). They may be tokens, too: what
    `single_word` or upper case keeps from being found may still be merged.
    flags: text → how that special or added token is found, where not just as it is written.
    stages: names of the pre-tokenisation patterns (`patterns.py`), applied one after the other.
    whole_piece_first: a piece that is a token is that token, whatever the merges say (tiktoken; `ignore_merges`).
    nfc: text is normalised to Unicode NFC first (Qwen).
    prefix, suffix: ids put around a text when `add_special_tokens` is asked for.
    merges_make_all: known to hold: the bytes of each token merge to that token. Then the kernel need not look.
    """

    tokens: dict[int, bytes]
    merges: Sequence[Merge3]
    special_tokens: dict[str, int] = field(default_factory=dict)
    stages: tuple[str, ...] = ("gpt2",)
    whole_piece_first: bool = False
    nfc: bool = False
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    added_tokens: dict[str, int] = field(default_factory=dict)
    flags: dict[str, Flags] = field(default_factory=dict)
    merges_make_all: bool = field(default=False, compare=False)

    @property
    def ranked(self) -> bool:
        """Whether the merges follow from the tokens: any two neighbours merge whose joined bytes are a token."""
        return isinstance(self.merges, RankedMerges)

    @property
    def size(self) -> int:
        """One more than the highest id: the number of rows that an embedding table needs."""
        return max([*self.tokens, *self.special_tokens.values(), *self.added_tokens.values()]) + 1

    def byte_ids(self) -> list[int]:
        """The id of each of the 256 bytes."""
        single = ((token, id) for id, token in self.tokens.items() if len(token) == 1)
        ids = dict(islice(single, 256))  # most vocabularies begin with them
        return [ids[bytes([byte])] for byte in range(256)]


def from_training(pairs: Sequence[Pair], special_tokens: Sequence[str], pattern: str) -> Vocabulary:
    """The vocabulary of freshly learned merges: 256 bytes, then the merges in order, then the special tokens."""
    tokens = dict(enumerate(token_bytes(pairs)))
    merges = [(left, right, 256 + rank) for rank, (left, right) in enumerate(pairs)]
    specials = {text: len(tokens) + number for number, text in enumerate(special_tokens)}
    return Vocabulary(tokens, merges, specials, (pattern,))
