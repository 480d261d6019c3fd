"""Text in chunks → ids, and ids one by one → text, with results that equal those of the whole.

`encode_stream` may cut only where no later character can change what comes before; `StreamDecoder` gives out text only
when its characters are complete. Neither knows how text is encoded: that is the engine's.
"""

from __future__ import annotations

import codecs
import itertools
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from tinylm.tokenizer._added import whole
from tinylm.tokenizer._errors import TokenizerError, refuse_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tinylm.tokenizer._added import Finder
    from tinylm.tokenizer._engines.protocol import Engine

_ENOUGH = 1 << 16  # characters that are worth a look for a place to cut
TAIL = 1 << 12  # characters at the end among which a place is looked for first
_WORD_END = re.compile("[A-Za-z](?= [A-Za-z])")


class StreamDecoder:
    """Ids one by one → text, never half a character: `text = "".join(map(d.push, ids)) + d.finish()`.

    byte_stream: makes a function that gives the bytes of one id after the other; check: raises for an unknown id.
    """

    def __init__(self, byte_stream: Callable[[], Callable[[int], bytes]], check: Callable[[int], bytes]) -> None:
        self._byte_stream = byte_stream
        self._check = check
        self._bytes_of = byte_stream()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, id: int) -> str:
        """The characters that `id` completes; "" while a character is still incomplete."""
        self._check(id)
        return self._decoder.decode(self._bytes_of(id))

    def finish(self) -> str:
        """What is left at the end: U+FFFD if the last character never became complete. Ready for a new text then."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        self._bytes_of = self._byte_stream()
        return rest


def encode_stream(chunks: Iterable[str], engine: Engine, find: Finder | None) -> Iterator[int]:
    """The ids of all chunks joined, holding back only what later text could still change.

    find: the tokens that stand for themselves. Memory is bounded by the largest chunk and the longest stretch without a
    place where it may be cut, whatever the length of the stream.
    """
    held = ""
    first = True
    look_at = _ENOUGH
    encode = engine.stream()

    def ids_of(text: str) -> Iterator[int]:
        nonlocal encode
        try:
            for start, end, id in whole(find, text):
                if id is None:
                    yield from encode(text[start:end], first and start == 0)
                else:
                    yield id
                    encode = engine.stream()  # what follows is a text of its own
        except UnicodeEncodeError:
            refuse_text(text)

    for chunk in chunks:
        if not isinstance(chunk, str):
            raise TokenizerError(f"wanted chunks of text, got {type(chunk).__name__}")
        held += chunk
        if len(held) >= look_at:
            try:
                cut = safe_cut(held, first, engine, find)
            except UnicodeEncodeError:
                refuse_text(held)
            if cut:
                yield from ids_of(held[:cut])
                held, first = held[cut:], False
            look_at = max(_ENOUGH, 2 * len(held))  # one endless piece: look again only when twice as much has come
    yield from ids_of(held)


def encode_parts(
    chunks: Iterable[str], engine: Engine, find: Finder | None, threads: int
) -> Iterator[tuple[NDArray[np.uint32], int | None]]:
    """The same ids in arrays, several parts at a time; see Tokenizer.encode_parts."""
    import numpy as np

    if engine.stream() != engine.encode:  # one part leaves something to the next: in their order, in one go
        ids = encode_stream(chunks, engine, find)
        while (block := np.fromiter(itertools.islice(ids, _ENOUGH), dtype=np.uint32)).size:
            yield block, None
        return

    def ids_of(text: str) -> tuple[NDArray[np.uint32], int]:
        try:
            arrays = [
                engine.encode_array(text[start:end]) if id is None else np.array([id], np.uint32)
                for start, end, id in whole(find, text)
            ]
        except UnicodeEncodeError:
            refuse_text(text)
        return np.concatenate([np.empty(0, np.uint32), *arrays]), len(text)

    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[tuple[NDArray[np.uint32], int]]] = deque()
        for text in _cuts(chunks, engine, find):
            waiting.append(pool.submit(ids_of, text))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _cuts(chunks: Iterable[str], engine: Engine, find: Finder | None) -> Iterator[str]:
    """The stream in parts that can be encoded one without the other."""
    held, look_at = "", _ENOUGH
    for chunk in chunks:
        if not isinstance(chunk, str):
            raise TokenizerError(f"wanted chunks of text, got {type(chunk).__name__}")
        held += chunk
        if len(held) >= look_at:
            try:
                cut = safe_cut(held, False, engine, find)
            except UnicodeEncodeError:
                refuse_text(held)
            if cut:
                yield held[:cut]
                held = held[cut:]
            look_at = max(_ENOUGH, 2 * len(held))
    if held:
        yield held


def safe_cut(text: str, first: bool, engine: Engine, find: Finder | None) -> int:
    """The last place where `text` may be cut: the tokens that are found say where it is ordinary text, and the engine
    where that may be cut."""
    fence, start, end, closed = find.certain(text) if find else (0, 0, len(text), [])
    cut = engine.cut(text[start:end], first and not start)
    for left, right in reversed(closed):
        if left <= start + cut <= right:
            cut = engine.cut(text[start : left - 1], first and not start) if left > start else 0
    places = (start + cut if cut else 0, fence)
    if find:  # flags of neighbours can work together (white space that two want, a name inside a refused one)
        return next((place for place in places if place and find.may_cut(text, place)), 0)
    return places[0]


def last_word_start(text: str) -> int:
    """The last place between an ASCII letter and a space with an ASCII letter behind it, near the end; or 0."""
    places = [found.end() for found in _WORD_END.finditer(text, max(len(text) - TAIL, 0))]
    return places[-1] if places else 0
