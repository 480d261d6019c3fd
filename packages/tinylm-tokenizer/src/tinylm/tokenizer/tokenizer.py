"""`Tokenizer`: text to ids and back, over whichever rung is at hand. The class that the other packages use.

It owns no algorithm: training and merging are in the rungs (`byte_bpe`, `byte_bpe_fast`, `kernels`), cutting text in
`_pretokenize`, files in `_load` and the format modules, chat templates in `_chat`, chunks in `_streaming`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import regex

from tinylm.tokenizer import _json_format, _load, _training, kernels
from tinylm.tokenizer._atomic import write_atomic
from tinylm.tokenizer._errors import TokenizerError
from tinylm.tokenizer._pretokenize import split
from tinylm.tokenizer._vocabulary import Vocabulary

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tinylm.tokenizer._streaming import StreamDecoder

Allowed = Literal["all"] | Iterable[str]

_BOS = ("<|begin_of_text|>", "<s>", "<bos>", "[BOS]", "<|startoftext|>")
_EOS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "[EOS]")


class Tokenizer:
    """A byte-level BPE tokenizer; make one with `Tokenizer.train` or `Tokenizer.load`. Safe to share between threads.

    Every method raises TokenizerError for what it cannot use: a text with lone surrogates, an id out of range, a
    special token that is not there.
    """

    def __init__(self, vocabulary: Vocabulary, *, chat_template: str | None = None) -> None:
        self._setup(_load.Loaded(vocabulary, chat_template=chat_template))

    def _setup(self, loaded: _load.Loaded) -> None:
        self._vocabulary = vocabulary = loaded.vocabulary
        self._json_bytes = loaded.json_bytes
        self.chat_template = loaded.chat_template
        self.special_tokens: dict[str, int] = dict(vocabulary.special_tokens)
        self.vocab_size = vocabulary.size
        self.bos_id = self._id_of(loaded.bos_token, _BOS)
        self.eos_id = self._id_of(loaded.eos_token, _EOS)
        self._bytes = vocabulary.tokens | {id: text.encode() for text, id in vocabulary.special_tokens.items()}
        self._encoder = kernels.make_encoder(vocabulary)

    def _id_of(self, name: str | None, well_known: Iterable[str]) -> int | None:
        return next((self.special_tokens[text] for text in (name, *well_known) if text in self.special_tokens), None)

    # ---- making one ----

    @classmethod
    def train(
        cls,
        corpus: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        *,
        vocab_size: int,
        algorithm: str = "bpe",
        pattern: str = "cl100k",
        special_tokens: Sequence[str] = ("<|endoftext|>",),
        chat_template: str | None = None,
        progress: Callable[[int, int], None] = lambda done, wanted: None,
    ) -> Tokenizer:
        """Learn a tokenizer of `vocab_size` ids (bytes, merges and special tokens together) from a corpus.

        corpus: paths of UTF-8 files, or an iterable of strings. pattern: a name of `patterns.py`. `progress(done,
        wanted)` is called after every merge. If the corpus has too few pairs the result is smaller, with a warning.
        """
        vocabulary = _training.train(corpus, vocab_size, algorithm, pattern, special_tokens, progress)
        return cls(vocabulary, chat_template=chat_template)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        pattern: str | None = None,
        special_tokens: dict[str, int] | None = None,
    ) -> Tokenizer:
        """Read a directory or file: tokenizer.json, vocab.json + merges.txt, or *.tiktoken.

        pattern, special_tokens: for files that do not say theirs (an unknown *.tiktoken).
        """
        tokenizer = cls.__new__(cls)
        tokenizer._setup(_load.load(path, pattern, special_tokens))
        return tokenizer

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write tokenizer.json (and chat_template.jinja) into `directory`, each as a whole or not at all.

        What was loaded from a tokenizer.json is written back byte for byte.
        """
        directory = Path(directory)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if self.chat_template is not None:
                write_atomic(directory / "chat_template.jinja", self.chat_template.encode())
            else:
                (directory / "chat_template.jinja").unlink(missing_ok=True)
            write_atomic(directory / "tokenizer.json", self._json_bytes or _json_format.write(self._vocabulary))
        except OSError as error:
            raise TokenizerError(f"cannot write the tokenizer to {directory}: {error.strerror or error}") from None

    # ---- text → ids ----

    def encode(self, text: str, *, allowed_special: Allowed = (), add_special_tokens: bool = False) -> list[int]:
        """The ids of `text`.

        A special token that is written in the text stays text unless `allowed_special` names it ("all": every one).
        add_special_tokens: also put the tokens around it that the tokenizer's template says (a BOS, for example).
        """
        ids: list[int] = []
        for part in self._parts(text, allowed_special):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self._encoder.encode_pieces(part)
        if add_special_tokens:
            return [*self._vocabulary.prefix, *ids, *self._vocabulary.suffix]
        return ids

    def encode_array(
        self, text: str, *, allowed_special: Allowed = (), add_special_tokens: bool = False
    ) -> NDArray[np.uint32]:
        """`encode` as a NumPy array of shape (ids,), dtype uint32."""
        import numpy as np

        arrays = [
            np.array([part], np.uint32) if isinstance(part, int) else self._encoder.encode_pieces_array(part)
            for part in self._parts(text, allowed_special)
        ]
        if add_special_tokens:
            around = (self._vocabulary.prefix, self._vocabulary.suffix)
            arrays = [np.array(around[0], np.uint32), *arrays, np.array(around[1], np.uint32)]
        return np.concatenate(arrays) if arrays else np.empty(0, np.uint32)

    def _parts(self, text: str, allowed_special: Allowed) -> Iterator[int | list[str]]:
        """Special ids and, between them, the pieces of ordinary text."""
        finder = self._special_finder(allowed_special)
        start = 0
        for found in finder.finditer(text) if finder and isinstance(text, str) else ():
            if found.start() > start:
                yield self._pieces(text[start : found.start()])
            yield self.special_tokens[found.group()]
            start = found.end()
        if start == 0 or start < len(text):
            yield self._pieces(text[start:] if start else text)

    def _pieces(self, text: str) -> list[str]:
        """`text` normalised and cut into pieces, after a look at whether it can be encoded at all."""
        if not isinstance(text, str):
            raise TokenizerError(f"wanted a string, got {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"wanted text, got the lone surrogate U+{ord(text[error.start]):04X} at character {error.start}: it "
                "has no UTF-8 form; remove or replace it"
            ) from None
        return split(self._normalize(text), self._vocabulary.stages)

    def _normalize(self, text: str) -> str:
        if not self._vocabulary.nfc:
            return text
        import unicodedata

        return unicodedata.normalize("NFC", text)

    def _special_finder(self, allowed: Allowed) -> regex.Pattern[str] | None:
        """A pattern that finds the allowed special tokens, the longest first."""
        names = list(self.special_tokens) if allowed == "all" else [allowed] if isinstance(allowed, str) else [*allowed]
        for name in names:
            if name not in self.special_tokens:
                known = ", ".join(self.special_tokens) or "none"
                raise TokenizerError(f"{name!r} is no special token of this tokenizer; it has: {known}")
        return regex.compile("|".join(map(regex.escape, sorted(names, key=len, reverse=True)))) if names else None

    # ---- ids → text ----

    def id_to_bytes(self, id: int) -> bytes:
        """The bytes of one id. Errors: TokenizerError for an id that the tokenizer does not have."""
        try:
            return self._bytes[id]
        except (KeyError, TypeError):
            raise TokenizerError(f"wanted an id from 0 to {self.vocab_size - 1}, got {id!r}") from None

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of `ids` (a list or an integer array), one after the other."""
        if hasattr(ids, "tolist"):
            ids = ids.tolist()
        known = self._bytes
        try:
            return b"".join([known[id] for id in ids])
        except (KeyError, TypeError):
            return b"".join([self.id_to_bytes(id) for id in ids])  # the same, to name the wrong id

    def decode(self, ids: Iterable[int], errors: str = "replace") -> str:
        """The text of `ids`; `errors` as in `bytes.decode`: what to do with half a character (default U+FFFD)."""
        return self.decode_bytes(ids).decode("utf-8", errors=errors)

    def stream_decoder(self) -> StreamDecoder:
        """A decoder for ids that come one by one: `.push(id)` → the characters that are complete now."""
        from tinylm.tokenizer._streaming import StreamDecoder

        return StreamDecoder(self.id_to_bytes)

    @property
    def backend(self) -> str:
        """The rung in use: "kernels" (C++) or "python"."""
        return self._encoder.name
