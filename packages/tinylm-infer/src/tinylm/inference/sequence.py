"""tinylm.inference: one text being written: its tokens, where they are cached, and what they read as.

The engine's unit of work; a request with n answers is n of these. It computes no logits and draws nothing; whoever does
hands each new token to `accept`, which says what the token made certain, and whether the text has ended. Next:
`scheduler.py`.
"""

import codecs
import contextlib
import random
from collections import deque
from collections.abc import Callable, Collection, Mapping
from collections.abc import Sequence as Items

from tinylm.inference._errors import InferenceError
from tinylm.inference.outputs import Logprob, TokenOutput
from tinylm.inference.sampling_params import SamplingParams
from tinylm.inference.stopping import StopBuffer
from tinylm.inference.structured import Matcher, incomplete
from tinylm.tokenizer import Tokenizer, TokenizerError

_ENOUGH = 64  # tokens of the prompt: whether there is text before the answer, and the beginning of a character


class Sequence:
    """`tokens` is the prompt and what was drawn after it; of them the first `cached` have keys and values, in the
    blocks `table`. `events` holds, in order, what `accept` and `end` returned, for whoever reads this text.
    """

    def __init__(
        self,
        request_id: str,
        prompt_token_ids: Items[int],
        params: SamplingParams,
        context: int,
        tokenizer: Tokenizer | None = None,
        eos_token_ids: Collection[int] = (),
        index: int = 0,
        matcher: Matcher | None = None,
    ) -> None:
        """`prompt_token_ids`: 1 to context - 1 ids. `index`: which of the n answers this is; it shifts the seed.
        `matcher`: of the grammar that the text must follow.
        """
        self.matcher = matcher
        self.request_id, self.index, self.params = request_id, index, params
        self.prompt_token_ids = list(prompt_token_ids)
        self.tokens = list(prompt_token_ids)
        self.random = random.Random(None if params.seed is None else params.seed + index)
        self.added = False  # to an engine
        self.table: list[int] = []
        self.cached = 0
        self.draft: list[int] = []  # guesses of the tokens that follow, to be checked in the next step
        self.block_names: list[bytes] = []
        self.remembered = 0  # of its blocks, how many the prefix cache knows
        self.events: deque[TokenOutput] = deque()
        self.finish_reason: str | None = None
        self.prompt_logprobs: list[dict[int, Logprob] | None] | None = (
            None if params.prompt_logprobs is None else [None]
        )
        self.limit = context - len(self.prompt_token_ids)
        if params.max_tokens is not None:
            self.limit = min(self.limit, params.max_tokens)
        self._tokenizer = tokenizer
        self._eos = frozenset() if params.ignore_eos else frozenset(eos_token_ids)
        self._stop_ids = frozenset(params.stop_token_ids or ())
        self._first_end = next(iter(eos_token_ids), None)
        self._ends = self._stop_ids.union(eos_token_ids)  # not before min_tokens, ignore_eos or not
        self._buffer = StopBuffer(params.stop_strings, params.include_stop_str_in_output)
        hidden = tokenizer.special_tokens.values() if tokenizer is not None and params.skip_special_tokens else ()
        self.hidden = frozenset(hidden)  # ids that have no text
        self._text_of = self.reader(tokenizer) if tokenizer is not None and params.detokenize else None

    @property
    def output(self) -> list[int]:
        """What was drawn so far."""
        return self.tokens[len(self.prompt_token_ids) :]

    @property
    def drawn(self) -> int:
        """How many tokens were drawn so far."""
        return len(self.tokens) - len(self.prompt_token_ids)

    @property
    def pending(self) -> int:
        """How many tokens, guesses included, the model has still to read before the next one can be drawn."""
        return len(self.tokens) + len(self.draft) - self.cached

    @property
    def forbidden(self) -> Collection[int]:
        """Tokens that may not be drawn now: those that end the text, before `min_tokens`."""
        return self._ends if self.drawn < self.params.min_tokens else ()

    def accept(self, token_id: int, logprobs: Mapping[int, Logprob] | None = None) -> TokenOutput:
        """Appends a drawn token and decides whether it ends the text."""
        self.tokens.append(token_id)
        if self.matcher is not None:
            self.matcher.advance(token_id)
        piece, stop_reason = self._read(token_id)
        cut = self.matcher is not None and self.finish_reason == "length" and not self.matcher.accepting
        return self._tell(token_id, piece, logprobs, stop_reason, incomplete(self.drawn) if cut else None)

    def end(self, reason: str, error: InferenceError | None = None) -> TokenOutput:
        """Ends the text from outside: "abort", or "error" with what went wrong."""
        self.finish_reason = reason
        return self._tell(None, "", None, None, error)

    def _tell(
        self,
        token_id: int | None,
        piece: str,
        logprobs: Mapping[int, Logprob] | None,
        stop_reason: int | str | None,
        error: InferenceError | None,
    ) -> TokenOutput:
        event = TokenOutput(
            self.request_id,
            self.index,
            token_id,
            piece,
            None if logprobs is None else dict(logprobs),
            self.finish_reason,
            stop_reason,
            error,
            self.prompt_logprobs if self.drawn == 1 else None,
        )
        self.events.append(event)
        return event

    def _read(self, token_id: int) -> tuple[str, int | str | None]:
        """(the text that is now certain, stop reason)."""
        if token_id in self._eos or token_id in self._stop_ids:
            self.finish_reason = "stop"
            shown = self._to_text(token_id) if self.params.include_stop_str_in_output else ""
            piece = self._buffer.push(shown, check=False) + self._buffer.flush()
            return piece, token_id if token_id in self._stop_ids and token_id != self._first_end else None
        piece = self._buffer.push(self._to_text(token_id), check=self.drawn > self.params.min_tokens)
        if self._buffer.stopped_by is not None:
            self.finish_reason = "stop"
            return piece, self._buffer.stopped_by
        if self.matcher is not None and self.matcher.finished and not self.matcher.error:
            self.finish_reason = "stop"
            piece += self._buffer.flush()
        elif self.drawn >= self.limit:
            self.finish_reason = "length"
            piece += self._buffer.flush()
        return piece, None

    def _to_text(self, token_id: int) -> str:
        """What the token adds. Ids that a padded model has and the tokenizer lacks have no text."""
        if self._text_of is None or token_id in self.hidden:
            return ""
        try:
            return self._text_of(token_id)
        except TokenizerError:
            return ""

    def reader(self, tokenizer: Tokenizer) -> Callable[[int], str]:
        """A function of the drawn ids, one by one, that gives what each adds to the text as it reads after the prompt:
        of a SentencePiece tokenizer the first word keeps the space before it, and half a character at the prompt's end
        is completed. Beside a grammar it is the tokens' own bytes, which are what the grammar saw."""
        if self.matcher is not None:
            alone = codecs.getincrementaldecoder("utf-8")("replace")
            return lambda token_id: alone.decode(tokenizer.id_to_bytes(token_id))
        decoder = tokenizer.stream_decoder()
        shown = [token_id for token_id in self.prompt_token_ids if token_id not in self.hidden]
        for token_id in shown[-_ENOUGH:]:
            with contextlib.suppress(TokenizerError):  # an id that a padded model has and the tokenizer lacks
                decoder.push(token_id)
        return decoder.push

    def token_text(self, token_id: int) -> str | None:
        """The text of one token alone, for logprobs; None without a tokenizer, or where no text is wanted."""
        if self._tokenizer is None or not self.params.detokenize:
            return None
        try:
            return self._tokenizer.decode([token_id])
        except TokenizerError:
            return None
