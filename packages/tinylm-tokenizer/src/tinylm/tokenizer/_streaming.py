"""Text in chunks → ids, and ids one by one → text, with results that equal those of the whole.

`encode_stream` may cut only where no later character can change what comes before; `StreamDecoder` gives out text only
when its characters are complete. Neither knows how text is encoded: `tokenizer.py` gives them the functions.
"""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Callable, Iterable, Iterator

from tinylm.tokenizer._errors import TokenizerError

# No pattern of patterns.py looks further than this past the end of a piece, white space aside (a contraction: 3).
_MARGIN = 8
_ENOUGH = 1 << 16  # characters that are worth a look for a place to cut


class StreamDecoder:
    """Ids one by one → text, never half a character: `text = "".join(map(d.push, ids)) + d.finish()`."""

    def __init__(self, id_to_bytes: Callable[[int], bytes]) -> None:
        self._id_to_bytes = id_to_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, id: int) -> str:
        """The characters that `id` completes; "" while a character is still incomplete."""
        return self._decoder.decode(self._id_to_bytes(id))

    def finish(self) -> str:
        """What is left at the end: U+FFFD if the last character never became complete. Ready for a new text then."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def encode_stream(
    chunks: Iterable[str],
    encode: Callable[[str], list[int]],
    pieces: Callable[[str], list[str]],
    last_special_end: Callable[[str, int], int],
    longest_special: int,
) -> Iterator[int]:
    """The ids of all chunks joined, holding back only what later text could still change.

    encode: text → ids; pieces: text → pieces; last_special_end(text, limit): the end of the last special token that
    starts before `limit`, or 0; longest_special: characters (0: none is allowed). Memory is bounded by the largest
    chunk and the longest piece, whatever the length of the stream.
    """
    held = ""
    look_at = _ENOUGH
    for chunk in chunks:
        if not isinstance(chunk, str):
            raise TokenizerError(f"wanted chunks of text, got {type(chunk).__name__}")
        held += chunk
        if len(held) >= look_at:
            cut = _safe_cut(held, pieces, last_special_end, longest_special)
            yield from encode(held[:cut])
            held = held[cut:]
            look_at = max(_ENOUGH, 2 * len(held))  # one endless piece: look again only when twice as much has come
    yield from encode(held)


def _safe_cut(
    text: str, pieces: Callable[[str], list[str]], last_special_end: Callable[[str, int], int], longest_special: int
) -> int:
    """The last place where `text` may be cut so that both sides are encoded as if they stood together; 0 if none.

    Up to `certain` no special token can begin that is not complete. From the last one that does begin there the text is
    ordinary, and it may be cut at the start of a piece if (1) a margin follows, for patterns look a little ahead, and
    (2) no white space precedes: how a run of white space is cut depends on what follows the whole of it.
    """
    certain = len(text) - max(longest_special - 1, 0)
    start = last_special_end(text, certain)
    cut = position = start
    for piece in pieces(text[start:certain]):
        if position > certain - _MARGIN:
            break
        if position > start and not text[position - 1].isspace():
            cut = position
        position += len(piece)
    return cut


def normalized(chunks: Iterable[str]) -> Iterator[str]:
    """Each chunk in Unicode NFC, cut only before an ASCII character, which never combines with what precedes it."""
    held = ""
    look_at = _ENOUGH
    for chunk in chunks:
        held += chunk
        if len(held) >= look_at:
            cut = next((place for place in range(len(held) - 1, 0, -1) if held[place].isascii()), 0)
            yield unicodedata.normalize("NFC", held[:cut])
            held = held[cut:]
            look_at = max(_ENOUGH, 2 * len(held))
    yield unicodedata.normalize("NFC", held)
