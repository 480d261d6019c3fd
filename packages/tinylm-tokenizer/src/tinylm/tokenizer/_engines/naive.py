"""The engine of `naive_bpe`, the lowest rung: its files (merge_rules.txt and vocab.json) behind the class `Tokenizer`.

Everything is done by the functions of `naive_bpe.py`; what its text form cannot say (runs of spaces, spaces at either
end, unknown characters) is lost here too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tinylm.tokenizer import naive_bpe
from tinylm.tokenizer._errors import TokenizerError
from tinylm.tokenizer._explain import Merge

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tinylm.tokenizer._added import Flags


class NaiveEngine:
    """See `protocol.Engine`."""

    algorithm = "naive-bpe"
    backend = "python"
    parts_alone = False

    def __init__(self, merges: list[naive_bpe.Pair], vocab: dict[str, int]) -> None:
        self.merges, self.vocab = merges, vocab
        self.special_tokens = {text: vocab[text] for text in naive_bpe.SPECIAL_TOKENS}
        self.added_tokens: dict[str, int] = {}
        self.flags: dict[str, Flags] = {}
        self.prefix: tuple[int, ...] = ()
        self.suffix: tuple[int, ...] = ()
        self._bytes = {id: token.replace(naive_bpe.END_OF_WORD, " ").encode() for token, id in vocab.items()}

    @property
    def vocab_size(self) -> int:
        return max(self._bytes) + 1

    def encode(self, text: str, first: bool = True) -> list[int]:
        text.encode()  # a lone surrogate is refused on every rung
        return naive_bpe.encode(text, self.merges, self.vocab)

    def encode_array(self, text: str, first: bool = True) -> NDArray[np.uint32]:
        import numpy as np

        return np.array(self.encode(text), dtype=np.uint32)

    def count(self, text: str, first: bool = True) -> int:
        return len(self.encode(text))

    def encode_batch(self, texts: Sequence[str], threads: int) -> list[list[int]]:
        return [self.encode(text) for text in texts]  # plain Python holds the lock: threads would bring nothing

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join(self._bytes[id] for id in ids).removesuffix(b" ")

    def bytes_of(self, id: int) -> bytes:
        return self._bytes[id]

    def byte_stream(self) -> Callable[[int], bytes]:
        held = b""  # a space at the very end is dropped, so it waits for what follows

        def push(id: int) -> bytes:
            nonlocal held
            data = held + self._bytes[id]
            held = b" " if data.endswith(b" ") else b""
            return data.removesuffix(b" ")

        return push

    def spans(self, text: str, first: bool = True) -> list[tuple[int, int]]:
        data = text.encode()
        spans: list[tuple[int, int]] = []
        names = list(self.vocab)
        place = 0
        for id in self.encode(text):
            while data[place : place + 1] == b" ":
                place += 1
            if id == naive_bpe.UNKNOWN:
                raise TokenizerError("offsets of a text with characters that this vocabulary does not know are unknown")
            end = place + len(names[id].removesuffix(naive_bpe.END_OF_WORD).encode())
            spans.append((place, end))
            place = end
        return spans

    def explain(self, text: str, first: bool = True) -> list[Merge]:
        data, place, steps = text.encode(), 0, []
        for word in naive_bpe.char_spaced_words(text):
            while data[place : place + 1] == b" ":
                place += 1
            symbols = word.split(" ")
            for rank, pair in enumerate(self.merges):
                for left in range(len(symbols)):
                    if tuple(symbols[left : left + 2]) == pair:
                        at = place + len("".join(symbols[:left]).encode())
                        symbols[left : left + 2] = ["".join(pair)]
                        steps.append(Merge(pair[0].encode(), pair[1].encode(), symbols[left].encode(), rank, at))
            place += len("".join(symbols).removesuffix(naive_bpe.END_OF_WORD).encode())
        return steps

    def cut(self, text: str, first: bool = True) -> int:
        """Before a space that follows a character: the word before it ends there, with its marker."""
        place = text.rstrip(" ").rfind(" ")
        return len(text[:place].rstrip(" ")) if place > 0 else 0

    def stream(self) -> Callable[[str, bool], list[int]]:
        return self.encode

    def files(self) -> dict[str, bytes]:
        rules = "".join(f"{left} {right}\n" for left, right in self.merges)
        vocab = json.dumps(self.vocab, ensure_ascii=False, indent=0) + "\n"
        return {"merge_rules.txt": rules.encode(), "vocab.json": vocab.encode()}


def load(directory: Path) -> NaiveEngine:
    """The engine of a directory with merge_rules.txt and vocab.json. Errors: TokenizerError."""
    try:
        merges = naive_bpe.load_merge_rules(directory / "merge_rules.txt")
        return NaiveEngine(merges, naive_bpe.load_vocab(directory / "vocab.json"))
    except OSError as error:
        raise TokenizerError(
            f"wanted merge_rules.txt and vocab.json in {directory}, got: {error.strerror or error}; save both again"
        ) from None
