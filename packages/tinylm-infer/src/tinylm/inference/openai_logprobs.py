"""tinylm.inference: log-probabilities in OpenAI's two forms: of completions, and of chats.

The numbers come from `sampler.describe`; here they only get their shape. Next: `openai_answers.py`.
"""

import math
from collections.abc import Callable, Collection, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any

from tinylm.inference.outputs import Logprob
from tinylm.tokenizer import Tokenizer, TokenizerError

LOWEST = -9999.0  # what OpenAI gives for a probability of zero: JSON has no infinity


@dataclass(frozen=True)
class Entry:
    """One token with its place in the text, and what was likely there (None: nothing was asked, or nothing before)."""

    token_id: int
    offset: int
    logprobs: Mapping[int, Logprob] | None


class LogprobsWriter:
    """The tokens of one text, in order: `entry` for each, `form` for any stretch of them."""

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        chat: bool,
        wanted: int,
        hidden: Collection[int],
        text_of: Callable[[int], str] | None,
    ) -> None:
        """`wanted`: how many of the likeliest are named; `hidden`: ids that have no text in the answer; `text_of`: what
        each of the ids adds to it."""
        self._tokenizer, self._chat, self._wanted, self._hidden = tokenizer, chat, wanted, hidden
        self._text_of = text_of
        self._characters = 0

    def entry(self, token_id: int, logprobs: Mapping[int, Logprob] | None) -> Entry:
        offset = self._characters
        if self._text_of is not None and token_id not in self._hidden and self._bytes(token_id):
            self._characters += len(self._text_of(token_id))
        return Entry(token_id, offset, logprobs)

    def form(self, entries: Items[Entry]) -> dict[str, Any]:
        if self._chat:
            return {"content": [self._one(e.token_id, e.logprobs or {}) | self._top(e) for e in entries]}
        return {
            "tokens": [self._name(e.token_id) for e in entries],
            "token_logprobs": [None if e.logprobs is None else _number(e.logprobs[e.token_id]) for e in entries],
            "top_logprobs": [self._likeliest(e) for e in entries],
            "text_offset": [e.offset for e in entries],
        }

    def _likeliest(self, entry: Entry) -> dict[str, float] | None:
        """By the token's name; of two with the same, the likelier one."""
        if entry.logprobs is None:
            return None
        named: dict[str, float] = {}
        for token_id in [*self._ranked(entry.logprobs), entry.token_id]:  # the drawn one as well, as in OpenAI's
            named.setdefault(self._name(token_id), _number(entry.logprobs[token_id]))
        return named

    def _top(self, entry: Entry) -> dict[str, Any]:
        logprobs = entry.logprobs or {}
        return {"top_logprobs": [self._one(token_id, logprobs) for token_id in self._ranked(logprobs)]}

    def _one(self, token_id: int, logprobs: Mapping[int, Logprob]) -> dict[str, Any]:
        raw = self._bytes(token_id)
        logprob = _number(logprobs[token_id]) if token_id in logprobs else LOWEST
        return {"token": raw.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(raw)}

    def _ranked(self, logprobs: Mapping[int, Logprob]) -> list[int]:
        """The ids of the `wanted` likeliest: the drawn token stands first, wherever it ranks."""
        return sorted(logprobs, key=lambda token_id: logprobs[token_id].rank)[: self._wanted]

    def _name(self, token_id: int) -> str:
        """The token's text; OpenAI's "bytes:\\xe4" where it is half a character."""
        raw = self._bytes(token_id)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def _bytes(self, token_id: int) -> bytes:
        """Nothing for ids that a padded model has and the tokenizer lacks."""
        if self._tokenizer is None:
            return b""
        try:
            return self._tokenizer.id_to_bytes(token_id)
        except TokenizerError:
            return b""


def _number(logprob: Logprob) -> float:
    return logprob.logprob if math.isfinite(logprob.logprob) else LOWEST
