"""Text in chunks → ids, and ids one by one → text, with results that equal those of the whole.

`encode_stream` may cut only where no later character can change what comes before; `StreamDecoder` gives out text only
when its characters are complete. Neither knows how text is encoded: `tokenizer.py` gives them the functions.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable


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
