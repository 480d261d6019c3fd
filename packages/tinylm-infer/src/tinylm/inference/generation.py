"""tinylm.inference: one text as it is being written, for whoever reads it. The engine writes; this asks it to go on.

`Generation` turns the engine's steps into an iterator of pieces of text; other requests that are running go on with
each step too. How a text grows and ends is in `sequence.py`; `llm.py` makes these from prompts.
"""

from collections.abc import Iterator

from tinylm.inference._errors import InferenceError
from tinylm.inference.engine import Engine
from tinylm.inference.outputs import CompletionOutput, Logprob, TokenOutput
from tinylm.inference.sequence import Sequence


class Generation:
    """An iterator of text pieces; joined, they are `text`. No piece holds half a character or part of a stop string.

    What stands so far is in `token_ids`, `text`, `logprobs` and, at the end, `finish_reason` and `stop_reason` (see
    `CompletionOutput`). `steps()` yields once per token instead, with "" where a token completes no text. Nothing is
    computed before the first piece is asked for; to drop it ends the text. A structured output that is cut before it is
    whole has an empty `text`, and the iterator raises InferenceError after the last piece.
    """

    def __init__(self, engine: Engine, sequence: Sequence) -> None:
        """`sequence`: of `engine.make_sequence`; the first piece asked for adds it, unless that is done already."""
        self.prompt_token_ids = sequence.prompt_token_ids
        self.index = sequence.index
        self.token_ids: list[int] = []
        self.text = ""
        self.logprobs: list[dict[int, Logprob]] | None = None if sequence.params.logprobs is None else []
        self.prompt_logprobs: list[dict[int, Logprob] | None] | None = None
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self._incomplete: InferenceError | None = None
        self._engine, self._sequence, self._broken_off = engine, sequence, False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        for piece in self.steps():
            if piece:
                return piece
        if self._incomplete is not None:  # what was given out is no valid text
            error, self._incomplete = self._incomplete, None
            raise error
        raise StopIteration

    def __del__(self) -> None:
        self._engine.abort(self._sequence)  # nobody reads on; nothing to do where it has ended

    def steps(self) -> Iterator[str]:
        """One item per token: the text that it made certain, often ""."""
        while self.finish_reason is None and not self._broken_off:
            yield self._step()

    def output(self) -> CompletionOutput:
        """Writes to the end if need be; the whole answer."""
        for _ in self.steps():
            pass
        if self.finish_reason is None:  # an error or Ctrl-C came out of an earlier step
            raise InferenceError("this text was broken off; what was written stands in .text and .token_ids")
        drawn = None if self.logprobs is None else zip(self.logprobs, self.token_ids, strict=True)
        total = None if drawn is None else sum(choices[token_id].logprob for choices, token_id in drawn)
        return CompletionOutput(
            self.index, self.text, self.token_ids, total, self.logprobs, self.finish_reason, self.stop_reason
        )

    def _step(self) -> str:
        """Steps the engine until this text has something new."""
        try:
            self._engine.add(self._sequence)
            while not self._sequence.events:
                self._engine.step()
            event = self._sequence.events.popleft()
            if event.finish_reason == "error" and event.error is not None:
                raise event.error
        except BaseException:  # Ctrl-C as well
            self._broken_off = True
            self._engine.abort(self._sequence)
            raise
        self._take(event)
        return event.text

    def _take(self, event: TokenOutput) -> None:
        if event.token_id is not None:
            self.token_ids.append(event.token_id)
        if event.prompt_logprobs is not None:
            self.prompt_logprobs = event.prompt_logprobs
        if self.logprobs is not None and event.logprobs is not None:
            self.logprobs.append(event.logprobs)
        self.text += event.text
        self.finish_reason, self.stop_reason = event.finish_reason, event.stop_reason
        if event.error is not None:
            self.text, self._incomplete = "", event.error
