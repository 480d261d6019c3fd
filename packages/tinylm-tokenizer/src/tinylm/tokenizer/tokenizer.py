"""`Tokenizer`: text to ids and back, over whichever rung is at hand. The class that the other packages use.

It owns no algorithm: training and merging are in the rungs (`byte_bpe`, `byte_bpe_fast`, `kernels`), cutting text in
`_pretokenize`, files in `_load` and the format modules, chat templates in `_chat`, chunks in `_streaming`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import regex

from tinylm.tokenizer import _json_format, _load, _training, kernels
from tinylm.tokenizer._atomic import write_atomic
from tinylm.tokenizer._errors import TokenizerError
from tinylm.tokenizer._pretokenize import split
from tinylm.tokenizer._vocabulary import Vocabulary

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tinylm.tokenizer._explain import Merge
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
        self.vocabulary = vocabulary = loaded.vocabulary
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
            write_atomic(directory / "tokenizer.json", self._json_bytes or _json_format.write(self.vocabulary))
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
            return [*self.vocabulary.prefix, *ids, *self.vocabulary.suffix]
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
            around = (self.vocabulary.prefix, self.vocabulary.suffix)
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
        return split(self._normalize(text), self.vocabulary.stages)

    def _normalize(self, text: str) -> str:
        if not self.vocabulary.nfc:
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

    def encode_batch(
        self,
        texts: Iterable[str],
        threads: int | None = None,
        *,
        allowed_special: Allowed = (),
        add_special_tokens: bool = False,
    ) -> list[list[int]]:
        """`encode` of each text, on `threads` threads (default: one a core).

        With the kernel the merging runs in parallel, because it holds no lock (GIL); cutting text into pieces and the
        Python rung do not.
        """
        from concurrent.futures import ThreadPoolExecutor

        threads = (os.cpu_count() or 1) if threads is None else threads
        if threads < 1:
            raise TokenizerError(f"wanted 1 or more threads, got {threads}")
        names = allowed_special if isinstance(allowed_special, str) else tuple(allowed_special)

        def encode(text: str) -> list[int]:
            return self.encode(text, allowed_special=names, add_special_tokens=add_special_tokens)

        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(encode, texts))

    def encode_stream(self, chunks: Iterable[str], *, allowed_special: Allowed = ()) -> Iterator[int]:
        """The ids of `"".join(chunks)` one by one, in memory that does not grow with the stream (a file is an iterable
        of lines; open it with newline="" to keep every "\\r")."""
        from tinylm.tokenizer import _streaming

        names = allowed_special if isinstance(allowed_special, str) else tuple(allowed_special)
        finder = self._special_finder(names)
        allowed = self.special_tokens if names == "all" else [names] if isinstance(names, str) else names

        def last_special_end(text: str, limit: int) -> int:
            ends = [found.end() for found in (finder.finditer(text) if finder else ()) if found.start() < limit]
            return ends[-1] if ends else 0

        return _streaming.encode_stream(
            _streaming.normalized(chunks) if self.vocabulary.nfc else chunks,
            lambda text: self.encode(text, allowed_special=names),
            self._pieces,
            last_special_end,
            max(map(len, allowed), default=0),
        )

    def count(self, text: str) -> int:
        """How many ids `text` has."""
        return len(self.encode_array(text))

    def truncate(self, text: str, n: int) -> str:
        """The longest start of `text` that ends between two of its tokens and characters and has at most `n` ids."""
        if n < 0:
            raise TokenizerError(f"wanted 0 or more tokens, got {n}")
        ids = self.encode(text)
        for kept in range(min(n, len(ids)), 0, -1):
            start = self.decode_bytes(ids[:kept]).decode(errors="ignore")  # only the last character can be incomplete
            if self.count(start) <= n:  # nearly always at once; a cut can change how its last piece is encoded
                return text if kept == len(ids) else start
        return ""

    def offsets(self, text: str, unit: Literal["character", "byte"] = "character") -> list[tuple[int, int]]:
        """Where each id of `encode(text)` stands in `text`: (start, end), end excluded.

        A token that holds part of a character stands, in characters, at the whole of it.
        """
        if unit not in ("character", "byte"):
            raise TokenizerError(f"wanted the unit 'character' or 'byte', got {unit!r}")
        ids = self.encode(text)
        if self._normalize(text) != text:
            raise TokenizerError("this tokenizer normalises text to NFC first: give offsets a text that is in NFC")
        ends = list(accumulate(len(self._bytes[id]) for id in ids))
        spans = list(zip([0, *ends], ends, strict=False))
        if unit == "byte" or text.isascii():
            return spans
        character_of = [number for number, character in enumerate(text) for _ in character.encode()]
        return [(character_of[start], character_of[end - 1] + 1) for start, end in spans]

    def explain(self, text: str) -> list[Merge]:
        """Every merge that encoding `text` does, in order, as data."""
        from tinylm.tokenizer._explain import explain_pieces

        return explain_pieces(self._pieces(text), self.vocabulary)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        """The ids of a conversation in the form of this tokenizer's chat template (extra: tinylm-tokenizer[chat]).

        A message's content is encoded as text: a special token that is written in it cannot forge a turn.
        """
        from tinylm.tokenizer._chat import render

        ids: list[int] = []
        for part in render(self, messages, add_generation_prompt, tools):
            ids += [part] if isinstance(part, int) else self.encode(part)
        return ids

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
