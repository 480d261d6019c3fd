"""The texts that a tokenizer is trained on: paths, or an iterable of strings. Does not cut them into pieces."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from tinylm.tokenizer._errors import TokenizerError


def read_text(path: str | os.PathLike[str]) -> str:
    r"""The whole file as text, exactly as it is (no "\r" is lost). Errors: TokenizerError for a missing file, a
    directory, an empty file, and for bytes that are not UTF-8 (with their place)."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise TokenizerError(f"wanted a text file, got {path}: {error.strerror or error}; check the path") from None
    if not data:
        raise TokenizerError(f"wanted a text file, got an empty one: {path}")
    return decode_text(data, str(path))


def decode_text(data: bytes, where: str) -> str:
    """`data` as text. Errors: TokenizerError, with the place, for bytes that are no UTF-8 text."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise TokenizerError(
            f"wanted UTF-8 text, got byte 0x{data[error.start]:02x} at offset {error.start} of {where}: it is binary "
            "or in another encoding; convert it, for example with iconv -t UTF-8"
        ) from None
    if b"\0" in data:
        raise TokenizerError(f"wanted text, got a zero byte at offset {data.index(0)} of {where}: it looks binary")
    return text


def texts(corpus: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> Iterator[str]:
    """One text after the other. A path-like object (`Path`) is a file; a string is a file if there is one of that name.

    A list of strings is taken for paths if its first string names a file, or looks like a path to one (a short single
    line that ends in .txt and the like); otherwise its strings are the texts themselves.
    """
    if isinstance(corpus, (str, os.PathLike)):
        corpus = [corpus]
    paths: bool | None = None
    for item in corpus:
        if isinstance(item, os.PathLike):
            yield read_text(item)
        elif isinstance(item, str):
            paths = _names_a_file(item) if paths is None else paths
            yield read_text(item) if paths else item
        else:
            raise TokenizerError(f"wanted a corpus of paths or strings, got {type(item).__name__}")


def _names_a_file(text: str) -> bool:
    if not text or len(text) > 4096 or "\n" in text or "\0" in text:
        return False
    suffix = Path(text).suffix
    looks_like_one = " " not in text and 1 < len(suffix) <= 6 and suffix[1:].isalnum()
    return looks_like_one or Path(text).is_file()
