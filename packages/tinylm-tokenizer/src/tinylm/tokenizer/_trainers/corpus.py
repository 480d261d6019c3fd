"""The texts that a tokenizer is trained on: paths, or an iterable of strings; whole, or in chunks of bounded size.

Does not cut text into pieces, but knows where every pattern of `patterns.py` begins a new piece whatever stands around
it: there a text may be cut into chunks, and what is learned does not depend on it. Each file and each string is a text
of its own: no piece reaches from one into the next.
"""

from __future__ import annotations

import os
import re
import select
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import NamedTuple

from tinylm.tokenizer._errors import TokenizerError

Corpus = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]

CHUNK = 1 << 20  # bytes

# A character that is certainly no white space: ASCII, or one of the blocks in which there is none (between them lie
# U+0085, U+00A0, U+1680, U+2000 to U+205F and U+3000).
_SOLID = (
    rb"[!-~]|[\xc3-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|\xe3[\x81-\xbf][\x80-\xbf]"
    rb"|[\xe4-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}"
)
# A piece begins at a space that follows such a character, and at such a character that follows a line end; not at "/",
# which o200k takes with the punctuation and line ends before it.
_BEGINNING = re.compile(rb"(?:%b)(?= )|\n(?!/)(?=%b)" % (_SOLID, _SOLID))
_UTF8_LENGTH = {**dict.fromkeys(range(0xC0, 0xE0), 2), **dict.fromkeys(range(0xE0, 0xF0), 3), 0xF0: 4}


class Chunk(NamedTuple):
    """Whole characters of one text, as UTF-8.

    Pieces that start before `stop` are cut in `data` as in the whole text; what follows is there to be looked at only.
    of_file: the bytes are a file's and may be anything; `where` and `offset` say from where they are.
    """

    data: bytes
    stop: int
    of_file: bool = False
    where: str = ""
    offset: int = 0

    def text(self) -> str:
        """The chunk as text. Errors: TokenizerError for bytes of a file that are no text."""
        return decode_text(self.data, self.where, self.offset) if self.of_file else self.data.decode()


@dataclass(frozen=True)
class Head(os.PathLike[str]):
    """A file of which only the first `fraction` of the characters is used."""

    path: str | os.PathLike[str]
    fraction: float

    def __fspath__(self) -> str:
        return os.fspath(self.path)


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


def decode_text(data: bytes, where: str, offset: int = 0) -> str:
    """`data`, which stands at `offset` of a file, as text. Errors: TokenizerError, with the place, if it is none."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise TokenizerError(
            f"wanted UTF-8 text, got byte 0x{data[error.start]:02x} at offset {offset + error.start} of {where}: it is "
            "binary or in another encoding; convert it, for example with iconv -t UTF-8"
        ) from None
    if b"\0" in data:
        raise TokenizerError(
            f"wanted text, got a zero byte at offset {offset + data.index(0)} of {where}: it looks binary"
        )
    return text


def items(corpus: Corpus) -> Iterator[str | os.PathLike[str]]:
    """A path-like object for each file, a string for each text that is given as it is.

    A path-like object (`Path`) is a file; a string is a file if there is one of that name. A list of strings is taken
    for paths if its first string names a file, or looks like a path to one (a short single line that ends in .txt and
    the like); otherwise its strings are the texts themselves.
    """
    if isinstance(corpus, (str, os.PathLike)):
        corpus = [corpus]
    paths: bool | None = None
    for item in corpus:
        if isinstance(item, os.PathLike):
            yield item
        elif isinstance(item, str):
            paths = _names_a_file(item) if paths is None else paths
            yield Path(item) if paths else item
        else:
            raise TokenizerError(f"wanted a corpus of paths or strings, got {type(item).__name__}")


def _names_a_file(text: str) -> bool:
    if not text or len(text) > 4096 or "\n" in text or "\0" in text:
        return False
    suffix = Path(text).suffix
    looks_like_one = " " not in text and 1 < len(suffix) <= 6 and suffix[1:].isalnum()
    try:
        return looks_like_one or Path(text).is_file()
    except OSError:  # too long for a name
        return False


def size_of(corpus: Corpus) -> int:
    """The size in bytes of a corpus of files, for a progress bar; 0 if it is not known beforehand."""
    if not isinstance(corpus, (str, os.PathLike, list, tuple)):
        return 0
    if not isinstance(next(items(corpus), None), os.PathLike):
        return 0
    files = [item for item in items(corpus) if isinstance(item, os.PathLike)]
    fractions = [item.fraction if isinstance(item, Head) else 1.0 for item in files]
    try:
        return sum(int(Path(item).stat().st_size * part) for item, part in zip(files, fractions, strict=True))
    except OSError:
        return 0  # reading it will say what is wrong


def batches(corpus: Corpus, progress: Callable[[int], None] = lambda read: None) -> Iterator[list[Chunk]]:
    """The corpus in lists of chunks of about 1 MB together; no file and no long string is held as a whole.

    `progress(n)` is called with the bytes read so far. Errors: as `read_text`; UnicodeEncodeError for lone surrogates.
    """
    batch: list[Chunk] = []
    size = read = 0
    for item in items(corpus):
        for chunk in _chunks_of_file(item) if isinstance(item, os.PathLike) else _chunks_of_text(item):
            batch.append(chunk)
            size += chunk.stop
            if size >= CHUNK:
                yield batch
                read += size
                progress(read)
                batch, size = [], 0
    yield batch
    progress(read + size)


def _chunks_of_text(text: str) -> Iterator[Chunk]:
    slices = (text[start : start + CHUNK].encode() for start in range(0, len(text), CHUNK))
    return _chunks(slices, Chunk(b"", 0))


def _chunks_of_file(item: os.PathLike[str]) -> Iterator[Chunk]:
    return _chunks(_blocks_of(item), Chunk(b"", 0, True, os.fspath(item)))


def lines(corpus: Corpus, progress: Callable[[int], None] = lambda read: None) -> Iterator[str]:
    """The corpus in texts of whole lines, about a megabyte of a file at a time; see `items` for what it may be.

    `progress(n)` is called with the bytes of files read so far.
    """
    read = 0
    for item in items(corpus):
        if isinstance(item, str):
            yield item
            continue
        held, offset = bytearray(), 0
        for block in _blocks_of(item):
            stop = len(held) + block.rfind(b"\n") + 1 if b"\n" in block else 0
            held += block
            yield decode_text(bytes(held[:stop]), os.fspath(item), offset)
            del held[:stop]
            offset += stop
            read += len(block)
            progress(read)
        yield decode_text(bytes(held), os.fspath(item), offset)


def _blocks_of(item: os.PathLike[str]) -> Iterator[bytes]:
    blocks = _blocks(item)
    if isinstance(item, Head) and item.fraction < 1:
        if Path(item).is_fifo():
            raise TokenizerError(f"wanted a file to take a part of, got the pipe {item.path}: it is read once only")
        return _first(blocks, int(sum(map(_characters, _blocks(item))) * item.fraction))
    return blocks


def _blocks(item: os.PathLike[str]) -> Iterator[bytes]:
    """A file's bytes, a block at a time."""
    path, empty = Path(item), True
    try:
        with path.open("rb", buffering=0) as file:
            while block := _read(file):
                empty = False
                yield block
    except OSError as error:
        raise TokenizerError(f"wanted a text file, got {path}: {error.strerror or error}; check the path") from None
    if empty:
        raise TokenizerError(f"wanted a text file, got an empty one: {path}")


def _read(file: FileIO) -> bytes:
    """The next block, b"" at the end. Waits for a pipe a moment at a time: a Ctrl-C that comes just before a read does
    not interrupt it, and Python could act on it only when the read returns."""
    if hasattr(select, "poll"):  # Windows has none
        waiting = select.poll()
        waiting.register(file, select.POLLIN)
        while not waiting.poll(100):  # milliseconds
            pass
    return file.read(CHUNK)


def _characters(block: bytes) -> int:
    return len(block.translate(None, bytes(range(0x80, 0xC0))))  # every byte that does not continue a character


def _first(blocks: Iterator[bytes], characters: int) -> Iterator[bytes]:
    """The first so many characters."""
    for block in blocks:
        here = _characters(block)
        if here > characters:
            starts = (at for at, byte in enumerate(block) if byte & 0xC0 != 0x80)
            yield block[: next(at for number, at in enumerate(starts) if number == characters)]
            return
        yield block
        characters -= here


def _chunks(blocks: Iterable[bytes], like: Chunk) -> Iterator[Chunk]:
    """One text that comes in blocks, cut where a piece begins. Memory: a few blocks, or the longest piece."""
    held = bytearray()
    offset, look_at = like.offset, CHUNK
    for block in blocks:
        held += block
        if len(held) >= look_at:
            if stop := _last_beginning(held):
                end = stop + _UTF8_LENGTH.get(held[stop], 1)
                yield like._replace(data=bytes(held[:end]), stop=stop, offset=offset)
                del held[:stop]
                offset += stop
            look_at = max(CHUNK, 2 * len(held))  # one endless piece: look again only when twice as much has come
    yield like._replace(data=bytes(held), stop=len(held), offset=offset)


def _last_beginning(held: bytearray) -> int:
    """The last place where certainly a piece begins, whatever precedes and follows; 0 if none is found."""
    for start in (max(0, len(held) - 4096), 0):
        places = [found.end() for found in _BEGINNING.finditer(held, start)]
        if places:
            return places[-1]
    return 0
