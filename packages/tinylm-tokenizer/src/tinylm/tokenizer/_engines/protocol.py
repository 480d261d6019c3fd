"""What `Tokenizer` needs of an algorithm: an engine is one algorithm with one vocabulary, ready to encode.

`tokenizer.py` finds special tokens in a text, batches, streams, counts and cuts; an engine turns the ordinary text
between the special tokens into ids, and any ids into bytes. Engines: `byte_level.py` (byte-level BPE),
`sentencepiece.py` (BPE and Unigram with "▁" for a space), `wordpiece.py` (BERT), `naive.py` (the lowest rung). The
protocol has no code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tinylm.tokenizer._added import Flags

Progress = Callable[[str, int, int], None]  # (what is being done, how much of it is done, how much there is)


def no_progress(what: str, done: int, wanted: int) -> None:
    """The progress that nobody looks at."""


class Engine(Protocol):
    """One algorithm with its vocabulary. Nothing in it changes after it is made: threads may share it.

    special_tokens: text → id; they stand for themselves in a text only when the caller allows them.
    added_tokens: text → id; found in any text (user-defined symbols; `"special": false` in a tokenizer.json).
    flags: text → how that token is found, for those that are not found just as they are written.
    prefix, suffix: ids put around a text when `add_special_tokens` is asked for.
    parts_alone: in a conversation each part between special tokens begins as a text does (files of SentencePiece, which
    finds no special tokens in a text: its space goes before each of them).
    """

    special_tokens: dict[str, int]
    added_tokens: dict[str, int]
    flags: dict[str, Flags]
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    parts_alone: bool

    @property
    def algorithm(self) -> str:
        """The name that `Tokenizer.train(algorithm=...)` takes."""

    @property
    def backend(self) -> str:
        """The rung in use: "kernels" or "python"."""

    @property
    def vocab_size(self) -> int:
        """One more than the highest id."""

    def encode(self, text: str, first: bool = True) -> list[int]:
        """The ids of ordinary text; first: it is the start of the whole text (where a dummy space may go).

        Errors: UnicodeEncodeError for a lone surrogate, which `Tokenizer` says in words.
        """

    def encode_array(self, text: str, first: bool = True) -> NDArray[np.uint32]:
        """The same as an array of shape (ids,)."""

    def count(self, text: str, first: bool = True) -> int:
        """How many ids `encode` gives."""

    def encode_batch(self, texts: Sequence[str], threads: int) -> list[list[int]]:
        """`encode` of each text, on `threads` threads."""

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of any ids, special and added ones included. Errors: KeyError or IndexError for an unknown id."""

    def bytes_of(self, id: int) -> bytes:
        """The bytes of one id by itself, special and added ones included. Errors: KeyError for an unknown id."""

    def byte_stream(self) -> Callable[[int], bytes]:
        """A new function that is given ids one by one and returns the bytes that each of them adds to the text."""

    def spans(self, text: str, first: bool = True) -> list[tuple[int, int]]:
        """Where each id of `encode(text, first)` stands in the UTF-8 bytes of `text`: (start, end), end excluded."""

    def explain(self, text: str, first: bool = True) -> list[Any]:
        """What encoding `text` does, step by step, as data."""

    def cut(self, text: str, first: bool = True) -> int:
        """The last place where `text` may be cut for `stream`: whatever follows `text`. 0 if there is no such place."""

    def stream(self) -> Callable[[str, bool], list[int]]:
        """A new function that is given (part, first) for the parts of one text in order, as `cut` cut it; what it
        returns for all of them is `encode` of the whole."""

    def files(self) -> dict[str, bytes]:
        """What `Tokenizer.save` writes: name → bytes, the main file (tokenizer.json) first; always the same bytes."""
