"""`Tokenizer`: text to ids and back, over whichever algorithm and rung is at hand. The class that other packages use.

It owns no algorithm: an engine (`_engines/protocol.py` says what that is) encodes ordinary text and gives back bytes.
Here are the special tokens, batches, counts and cuts. Files are in `_formats`, training in `_trainers`, chat templates
in `_chat`, chunks in `_streaming`.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tinylm.tokenizer._added import Finder, whole
from tinylm.tokenizer._atomic import write_atomic
from tinylm.tokenizer._engines.protocol import Engine, Progress, no_progress
from tinylm.tokenizer._errors import TokenizerError, refuse_text
from tinylm.tokenizer._formats import load as _load

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tinylm.tokenizer._streaming import StreamDecoder

Allowed = Literal["all"] | Iterable[str]

_BOS = ("<|begin_of_text|>", "<s>", "<bos>", "[BOS]", "[CLS]", "<|startoftext|>")
_EOS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "[EOS]", "[SEP]")
_ROLES = {
    "unk_token": ("<unk>", "[UNK]"),
    "pad_token": ("<pad>", "[PAD]"),
    "cls_token": ("[CLS]",),
    "sep_token": ("[SEP]",),
    "mask_token": ("<mask>", "[MASK]"),
}


def _listed(allowed: Iterable[str]) -> tuple[str, ...]:
    """The names of allowed special tokens. Errors: TokenizerError for what is no list of names."""
    try:
        names = (allowed,) if isinstance(allowed, str) else tuple(allowed)
        hash(names)
    except TypeError:
        raise TokenizerError(f"wanted 'all' or names of special tokens, got {allowed!r}") from None
    return names


class Tokenizer:
    """Text ↔ ids; make one with `Tokenizer.train` or `Tokenizer.load`. Safe to share between threads.

    Every method raises TokenizerError for what it cannot use: a text with lone surrogates, an id out of range, a
    special token that is not there. `engine` is the algorithm with its vocabulary.
    """

    def __init__(self, engine: Engine, *, chat_template: str | None = None) -> None:
        self._setup(_load.Loaded(engine, chat_template=chat_template))

    def _setup(self, loaded: _load.Loaded) -> None:
        self.engine = engine = loaded.engine
        self._encode, self._has_added = engine.encode, bool(engine.added_tokens)  # asked for each text, however short
        self._files, self._settings = loaded.files, loaded.settings
        self.chat_template = loaded.chat_template
        self.special_tokens: dict[str, int] = dict(engine.special_tokens)
        self.bos_id = self._id_of(loaded.bos_token, _BOS)
        self.eos_id = self._id_of(loaded.eos_token, _EOS)
        self._finders: dict[frozenset[str], Finder | None] = {}

    def __repr__(self) -> str:
        return f"<Tokenizer: {self.algorithm}, {self.vocab_size:,} ids, {self.backend}>"

    def __getstate__(self) -> dict[str, Any]:
        """Pickled and copied (multiprocessing, DataLoader's workers) is what the tokenizer was made of: an engine is
        made anew of its vocabulary."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_encode", "_finders")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._encode = self.engine.encode
        self._finders = {}

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
        pattern: str | None = None,
        special_tokens: Sequence[str] | None = None,
        chat_template: str | None = None,
        progress: Progress = no_progress,
        threads: int | None = None,
    ) -> Tokenizer:
        """Learn a tokenizer of `vocab_size` ids (alphabet, merges or pieces, special tokens together) from a corpus.

        corpus: paths of UTF-8 files, or an iterable of strings. algorithm: "bpe" (byte-level), "sentencepiece-bpe",
        "unigram" or "wordpiece". pattern: how "bpe" cuts text, a name of `patterns.py` (default cl100k).
        special_tokens: default ["<|endoftext|>"] for "bpe", the customary ones for the others. `progress(what, done,
        wanted)` is called now and then. threads: how many to learn on (default: one a core; not for
        "sentencepiece-bpe"); the result is the same for any number. If the corpus is too small the result is smaller,
        with a warning.
        """
        from tinylm.tokenizer._trainers import choose

        engine = choose.train(corpus, vocab_size, algorithm, pattern, special_tokens, progress, threads)
        return cls(engine, chat_template=chat_template)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        pattern: str | None = None,
        special_tokens: dict[str, int] | None = None,
    ) -> Tokenizer:
        """Read a directory or file: tokenizer.json, *.tiktoken, SentencePiece *.model, vocab.json + merges.txt,
        vocab.txt, *.gguf.

        pattern, special_tokens: for files that do not say theirs (an unknown *.tiktoken).
        """
        tokenizer = cls.__new__(cls)
        tokenizer._setup(_load.load(path, pattern, special_tokens))
        return tokenizer

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write tokenizer.json, tokenizer_config.json and, if there is a chat template, chat_template.jinja into
        `directory`, each as a whole or not at all.

        A tokenizer.json that was loaded is written back byte for byte, and what a tokenizer_config.json said stays. A
        warning says what a tokenizer.json does otherwise than the *.model that was loaded.
        """
        self._write(Path(directory))
        for line in self._otherwise():
            warnings.warn(f"tokenizer.json is not quite the same as what was loaded: {line}", stacklevel=2)

    def _otherwise(self) -> list[str]:
        """What the tokenizer.json that `save` writes does in another way, a line each."""
        return [] if self._files else getattr(self.engine, "written_otherwise", list)()

    def _write(self, directory: Path) -> None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            files = dict(self._files or self.engine.files())
            if "tokenizer.json" in files:  # the lowest rung has others
                files["tokenizer_config.json"] = self._written_settings()
            for name, data in files.items():
                write_atomic(directory / name, data)
            if self.chat_template is not None:
                write_atomic(directory / "chat_template.jinja", self.chat_template.encode())
            else:
                (directory / "chat_template.jinja").unlink(missing_ok=True)
        except (OSError, ValueError) as error:  # ValueError: a zero character in the name, a surrogate in the template
            if isinstance(error, TokenizerError):
                raise
            reason = getattr(error, "strerror", None) or error
            raise TokenizerError(f"cannot write the tokenizer to {directory}: {reason}") from None

    def _written_settings(self) -> bytes:
        """What tokenizer.json has no place for: the roles of special tokens. The class says that it is to be taken as
        it is; otherwise transformers may take the one of a model's family, which cuts text in its own way."""
        import json

        names = {id: text for text, id in self.special_tokens.items()}
        ids = {"bos_token": self.bos_id, "eos_token": self.eos_id}
        ids |= {role: self._id_of(None, known) for role, known in _ROLES.items()}
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **{role: names[id] for role, id in ids.items() if id is not None},
            **self._settings,
        }
        return (json.dumps(settings, indent=2) + "\n").encode()

    # ---- text → ids ----

    def encode(self, text: str, *, allowed_special: Allowed = (), add_special_tokens: bool = False) -> list[int]:
        """The ids of `text`.

        A special token that is written in the text stays text unless `allowed_special` names it ("all": every one).
        add_special_tokens: also put the tokens around it that the tokenizer's template says (a BOS, for example).
        """
        find = self._finder(allowed_special) if allowed_special or self._has_added else None
        encode = self._encode  # calling it as an attribute would take Python 0.1 µs more
        try:
            if find is None:
                ids = encode(text)
            else:
                ids = []
                for start, end, id in whole(find, text):
                    ids += encode(text[start:end], start == 0) if id is None else [id]
        except (UnicodeEncodeError, TypeError, AttributeError):
            refuse_text(text)
        return [*self.engine.prefix, *ids, *self.engine.suffix] if add_special_tokens else ids

    def encode_array(
        self, text: str, *, allowed_special: Allowed = (), add_special_tokens: bool = False
    ) -> NDArray[np.uint32]:
        """`encode` as a NumPy array of shape (ids,), dtype uint32."""
        import numpy as np

        find = self._finder(allowed_special)
        try:
            if find is None and not add_special_tokens:
                return self.engine.encode_array(text)
            arrays = [
                self.engine.encode_array(text[start:end], start == 0) if id is None else np.array([id], np.uint32)
                for start, end, id in whole(find, text)
            ]
        except (UnicodeEncodeError, TypeError, AttributeError):
            refuse_text(text)
        around = (self.engine.prefix, self.engine.suffix) if add_special_tokens else ((), ())
        return np.concatenate([np.array(around[0], np.uint32), *arrays, np.array(around[1], np.uint32)])

    def _finder(self, allowed: Allowed) -> Finder | None:
        """What finds the tokens that stand for themselves: the added ones and the allowed special ones."""
        if not allowed and not self.engine.added_tokens:
            return None
        names = frozenset(self.special_tokens if allowed == "all" else _listed(allowed or ()))
        if names not in self._finders:
            for name in names:
                if name not in self.special_tokens:
                    known = ", ".join(self.special_tokens) or "none"
                    raise TokenizerError(f"{name!r} is no special token of this tokenizer; it has: {known}")
            ids = {**{name: self.special_tokens[name] for name in names}, **self.engine.added_tokens}
            self._finders[names] = Finder(ids, self.engine.flags) if ids else None
        return self._finders[names]

    def encode_batch(
        self,
        texts: Iterable[str],
        threads: int | None = None,
        *,
        allowed_special: Allowed = (),
        add_special_tokens: bool = False,
    ) -> list[list[int]]:
        """`encode` of each text, on `threads` threads (default: one a core). The kernels work without Python's lock."""
        threads = (os.cpu_count() or 1) if threads is None else threads
        if threads < 1:
            raise TokenizerError(f"wanted 1 or more threads, got {threads}")
        if isinstance(texts, str):
            raise TokenizerError("wanted a list of texts, got one string; put it into a list")
        texts = list(texts)
        names = "all" if allowed_special == "all" else _listed(allowed_special or ())
        if self._finder(names) is not None or add_special_tokens:
            from tinylm.tokenizer._engines.batch import on_threads

            options: dict[str, Any] = {"allowed_special": names, "add_special_tokens": add_special_tokens}
            return on_threads(lambda text: self.encode(text, **options), texts, threads)
        try:
            return self.engine.encode_batch(texts, threads)
        except (UnicodeEncodeError, TypeError, AttributeError):
            for text in texts:
                self.encode(text)  # the same, to name what is wrong in which text
            raise

    def encode_stream(self, chunks: Iterable[str], *, allowed_special: Allowed = ()) -> Iterator[int]:
        """The ids of `"".join(chunks)` one by one, in memory that does not grow with the stream, but with its longest
        stretch that may not be cut (a file is an iterable of lines; open it with newline="" to keep every "\\r")."""
        from tinylm.tokenizer._streaming import encode_stream

        return encode_stream(chunks, self.engine, self._finder(allowed_special))

    def encode_parts(
        self, chunks: Iterable[str], *, threads: int = 1
    ) -> Iterator[tuple[NDArray[np.uint32], int | None]]:
        """The ids of `encode_stream(chunks)` as arrays in their order, encoded on `threads` threads.

        With each, how many characters it stands for: the text behind it can be encoded by a call of its own. None
        where it cannot (SentencePiece, whose parts lean on each other, and which is encoded on one thread).
        """
        from tinylm.tokenizer._streaming import encode_parts

        if threads < 1:
            raise TokenizerError(f"wanted 1 or more threads, got {threads}")
        return encode_parts(chunks, self.engine, self._finder(()), threads)

    def sample(self, text: str, alpha: float, seed: int) -> list[int]:
        """The ids of some way to cut `text`, drawn at random, the same for the same seed: subword regularisation.

        alpha: for BPE the probability that a merge is left out (BPE dropout: 0 none, 1 all of them); for Unigram the
        power of the cuts' probabilities (1: the model's own; 0: all cuts alike). Slow: the readable rungs do it.
        Errors: TokenizerError for WordPiece, which has no other way.
        """
        from random import Random

        draw = getattr(self.engine, "sample", None)
        if draw is None:
            raise TokenizerError(f"wanted BPE or Unigram to sample from, got {self.algorithm}")
        if not 0 <= alpha <= (sys.float_info.max if self.algorithm == "unigram" else 1):
            raise TokenizerError(f"wanted an alpha from 0 on, for BPE up to 1, got {alpha}")
        chance = Random(seed)
        ids: list[int] = []
        try:
            for start, end, id in whole(self._finder(()), text):
                ids += draw(text[start:end], alpha, chance, start == 0) if id is None else [id]
        except (UnicodeEncodeError, TypeError, AttributeError):
            refuse_text(text)
        return ids

    def count(self, text: str) -> int:
        """How many ids `text` has."""
        try:
            found = whole(self._finder(()), text)
            return sum(self.engine.count(text[start:end], start == 0) if id is None else 1 for start, end, id in found)
        except (UnicodeEncodeError, TypeError, AttributeError):
            refuse_text(text)

    def truncate(self, text: str, n: int) -> str:
        """The start of `text` that its first `n` tokens hold, without a part of a character at its end; fewer of
        them where that start by itself would have more than `n` ids."""
        if n < 0:
            raise TokenizerError(f"wanted 0 or more tokens, got {n}")
        text = self._beginning(text, n)
        spans = self.offsets(text, "byte")
        if len(spans) <= n:
            return text
        data = text.encode()
        for kept in range(n, 0, -1):
            start = data[: spans[kept - 1][1]].decode(errors="ignore")  # only the last character can be incomplete
            if self.count(start) <= n:  # nearly always at once; a cut can change how its last piece is encoded
                return start
        return ""

    def _beginning(self, text: str, n: int) -> str:
        """A beginning of `text` whose ids are those of the whole, more than `n`, so that long texts cost no more than
        short ones; else the whole text."""
        from tinylm.tokenizer._streaming import safe_cut

        try:
            text.encode()
            size = max(16 * n, 1 << 12)
            while size < len(text):
                place = safe_cut(text[:size], True, self.engine, self._finder(()))
                if place and self.count(text[:place]) > n:
                    return text[:place]
                size *= 4
        except (UnicodeEncodeError, TypeError, AttributeError):
            refuse_text(text)
        return text

    def offsets(self, text: str, unit: Literal["character", "byte"] = "character") -> list[tuple[int, int]]:
        """Where each id of `encode(text)` stands in `text`: (start, end), end excluded.

        A token that holds part of a character stands, in characters, at the whole of it. Added tokens overlap where
        one begins inside the white space that the one before it took (`rstrip`), as in tokenizers.
        """
        if unit not in ("character", "byte"):
            raise TokenizerError(f"wanted the unit 'character' or 'byte', got {unit!r}")
        spans: list[tuple[int, int]] = []
        before = done = 0  # bytes, and characters
        try:
            for start, end, id in whole(self._finder(()), text):
                before -= len(text[start:done].encode())  # parts may overlap
                size = len(text[start:end].encode())
                inner = self.engine.spans(text[start:end], start == 0) if id is None else [(0, size)]
                spans += [(before + left, before + right) for left, right in inner] if before else inner
                before, done = before + size, end
        except (UnicodeEncodeError, TypeError, AttributeError):
            refuse_text(text)
        if unit == "byte" or text.isascii():
            return spans
        character_of = [number for number, character in enumerate(text) for _ in character.encode()]
        character_of.append(len(text))
        return [
            (character_of[start], character_of[end - 1] + 1 if end > start else character_of[start])
            for start, end in spans
        ]

    def explain(self, text: str) -> list[Any]:
        """Every step that encoding `text` does, in order, as data: for BPE, `Merge` objects."""
        from dataclasses import replace

        steps: list[Any] = []
        before = done = 0
        try:
            for start, end, id in whole(self._finder(()), text):
                before -= len(text[start:done].encode())  # parts may overlap
                if id is None:
                    inner = self.engine.explain(text[start:end], start == 0)
                    steps += [replace(step, position=step.position + before) for step in inner] if before else inner
                before, done = before + len(text[start:end].encode()), end
        except (UnicodeEncodeError, TypeError, AttributeError):
            refuse_text(text)
        return steps

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
        find, alone = self._finder(()), self.engine.parts_alone
        for number, part in enumerate(render(self, messages, add_generation_prompt, tools)):
            if isinstance(part, int):
                ids.append(part)
                continue
            try:
                for start, end, id in whole(find, part):
                    first = (alone or not number) and not start
                    ids += self._encode(part[start:end], first) if id is None else [id]
            except UnicodeEncodeError:
                refuse_text(part)
        return ids

    # ---- ids → text ----

    def id_to_bytes(self, id: int) -> bytes:
        """The bytes of one id. Errors: TokenizerError for an id that the tokenizer does not have."""
        try:
            return self.engine.bytes_of(id)
        except (KeyError, TypeError):
            raise TokenizerError(f"wanted an id from 0 to {self.vocab_size - 1}, got {id!r}") from None

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of `ids` (a list or an integer array), one after the other."""
        if hasattr(ids, "tolist"):
            ids = ids.tolist()
        try:
            numbers = ids if isinstance(ids, (list, tuple)) else list(ids)
        except TypeError:
            raise TokenizerError(f"wanted ids, got {type(ids).__name__}; put one id into a list") from None
        try:
            return self.engine.decode_bytes(numbers)
        except (KeyError, IndexError, TypeError, OverflowError):
            for id in numbers:
                self.id_to_bytes(id)  # names the wrong one
            return self.engine.decode_bytes([int(id) for id in numbers])  # NumPy's integers are ids too

    def decode(self, ids: Iterable[int], errors: str = "replace") -> str:
        """The text of `ids`; `errors` as in `bytes.decode`: what to do with half a character (default U+FFFD)."""
        return self.decode_bytes(ids).decode("utf-8", errors=errors)

    def stream_decoder(self) -> StreamDecoder:
        """A decoder for ids that come one by one: `.push(id)` → the characters that are complete now."""
        from tinylm.tokenizer._streaming import StreamDecoder

        return StreamDecoder(self.engine.byte_stream, self.id_to_bytes)

    @cached_property
    def vocab_size(self) -> int:
        """One more than the highest id: the number of rows that an embedding table needs."""
        return self.engine.vocab_size

    @property
    def algorithm(self) -> str:
        """ "bpe", "sentencepiece-bpe", "unigram" or "wordpiece" ("naive-bpe" for the files of the lowest rung)."""
        return self.engine.algorithm

    @property
    def backend(self) -> str:
        """The rung in use: "kernels" (C++) or "python"."""
        return self.engine.backend
