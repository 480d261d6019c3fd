"""tinylm.inference: what goes back: the engine's events in the form of OpenAI's JSON, whole or in chunks.

Plain data in and out: what a request may hold is in `openai_api.py`, who runs it in `server_desk.py`.
"""

import contextlib
import time
from collections.abc import Sequence as Items
from typing import Any

from tinylm.inference._errors import InferenceError
from tinylm.inference.openai_api import Body, CompletionBody
from tinylm.inference.openai_chat import ChatBody
from tinylm.inference.openai_logprobs import Entry, LogprobsWriter
from tinylm.inference.openai_tools import tool_call
from tinylm.inference.outputs import TokenOutput
from tinylm.inference.sequence import Sequence
from tinylm.tokenizer import Tokenizer, TokenizerError


class Choice:
    """One text of an answer, as far as it is written."""

    def __init__(self, index: int, prompt: str | None, writer: LogprobsWriter | None) -> None:
        """`prompt`: what is given back before the text (echo)."""
        self.index, self.writer = index, writer
        self.text = self.fresh = prompt or ""  # fresh: not yet in a chunk
        self.entries: list[Entry] = []
        self.sent = 0  # of the entries
        self.begun = False
        self.tokens = 0
        self.finish_reason: str | None = None
        self.error: InferenceError | None = None  # a structured output that is not complete: no text to rely on

    def take(self, event: TokenOutput) -> None:
        """Adds what one event brought."""
        if self.writer is not None and event.token_id is not None:
            self.entries.append(self.writer.entry(event.token_id, event.logprobs))
        self.text += event.text
        self.fresh += event.text
        self.tokens += event.token_id is not None
        self.finish_reason, self.error = event.finish_reason, event.error


class Answer:
    """One request's texts in OpenAI's form. `take` each event; then `chunks` for a stream, or `whole` at the end."""

    def __init__(
        self, name: str, model: str, body: Body, sequences: Items[Sequence], tokenizer: Tokenizer | None
    ) -> None:
        """`name`: the request's id; `sequences`: its texts, in the order of the choices."""
        self.body, self.chat = body, isinstance(body, ChatBody)
        self._echo = isinstance(body, CompletionBody) and bool(body.echo)
        self._only_echo = isinstance(body, CompletionBody) and body.only_echo
        self._called = body.called() if isinstance(body, ChatBody) else None
        self._prompts = [sequence.prompt_token_ids for sequence in sequences]
        self.prompt_tokens = sum(len(s.prompt_token_ids) for s in sequences if s.index == 0)
        wanted = sequences[0].params.logprobs
        self.choices = []
        for index, sequence in enumerate(sequences):
            text = writer = text_of = None
            if self._echo and tokenizer is not None:
                text = _echoed(tokenizer, sequence, whole=self._only_echo)
            if wanted is not None:
                if tokenizer is not None:
                    text_of = tokenizer.stream_decoder().push if self._echo else sequence.reader(tokenizer)
                writer = LogprobsWriter(tokenizer, self.chat, wanted, sequence.hidden, text_of)
            self.choices.append(Choice(index, text, writer))
        self._place = {(s.request_id, s.index): index for index, s in enumerate(sequences)}
        self._head = {
            "id": name,
            "object": "chat.completion" if self.chat else "text_completion",
            "created": int(time.time()),
            "model": model,
        }

    def take(self, event: TokenOutput) -> Choice:
        """Adds what one event brought to its choice."""
        choice = self.choices[self._place[event.request_id, event.index]]
        if choice.writer is not None and event.prompt_logprobs is not None:
            ids = self._prompts[choice.index]
            told = zip(ids, event.prompt_logprobs, strict=True)
            choice.entries += [choice.writer.entry(token_id, logprobs) for token_id, logprobs in told]
        if self._only_echo:
            choice.finish_reason = event.finish_reason
        else:
            choice.take(event)
        return choice

    @property
    def error(self) -> InferenceError | None:
        """What is wrong with one of the texts that have ended."""
        return next((choice.error for choice in self.choices if choice.error is not None), None)

    @property
    def reason(self) -> str:
        """How the request ended: as the worst of its texts."""
        if self.error is not None:
            return "incomplete"
        reasons = {choice.finish_reason for choice in self.choices}
        return "length" if "length" in reasons else "stop"

    def whole(self) -> dict[str, Any]:
        choices = []
        for choice in self.choices:
            message = {"role": "assistant", **self._told(choice, None if choice.error else choice.text)}
            text = {"message": message} if self.chat else {"text": "" if choice.error else choice.text}
            choices.append({"index": choice.index, **text, **self._end(choice, 0)})
        return {**self._head, "choices": choices, "usage": self.usage()}

    def chunks(self, choice: Choice) -> list[dict[str, Any]]:
        """What of `choice` is new; none where that is nothing yet."""
        waits = self._called is not None or (not choice.fresh and choice.begun)  # a call comes whole
        if waits and choice.finish_reason is None:
            return []
        delta = {} if choice.begun else {"role": "assistant"}
        delta |= self._told(choice, choice.fresh, index=0)
        end = self._end(choice, choice.sent)
        parts = [{**({"delta": delta} if self.chat else {"text": choice.fresh}), **end}]
        if "tool_calls" in delta:  # its end in a chunk of its own, at which OpenAI's client takes the call for whole
            parts = [{**parts[0], "finish_reason": None}, {"delta": {}, **end, "logprobs": None}]
        choice.fresh, choice.begun, choice.sent = "", True, len(choice.entries)
        return [self._chunk([{"index": choice.index, **part}], None) for part in parts]

    def _told(self, choice: Choice, text: str | None, **place: int) -> dict[str, Any]:
        """What a message holds: text, or the call of a tool; `place` is where in a stream's list of calls."""
        if self._called is None or choice.error is not None:
            return {"content": text if self._called is None else None}
        return {"content": None, "tool_calls": [{**place, **tool_call(choice.text, self._called)}]}

    def last_chunk(self) -> dict[str, Any]:
        return self._chunk([], self.usage())

    def usage(self) -> dict[str, int]:
        written = sum(choice.tokens for choice in self.choices)
        total = self.prompt_tokens + written
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": written, "total_tokens": total}

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, int] | None) -> dict[str, Any]:
        kind = {"object": "chat.completion.chunk"} if self.chat else {}
        return {**self._head, **kind, "choices": choices, **({"usage": usage} if self.body.with_usage else {})}

    def _end(self, choice: Choice, start: int) -> dict[str, Any]:
        """The fields after the text; logprobs from entry `start` on."""
        logprobs = None if choice.writer is None else choice.writer.form(choice.entries[start:])
        called = self._called is not None and choice.finish_reason == "stop"
        return {"logprobs": logprobs, "finish_reason": "tool_calls" if called else choice.finish_reason}


def _echoed(tokenizer: Tokenizer, sequence: Sequence, whole: bool) -> str:
    """The prompt's text; half a character at its end only where nothing follows: `sequence` goes on with its rest."""
    decoder, text = tokenizer.stream_decoder(), ""
    for token_id in sequence.prompt_token_ids:
        if token_id not in sequence.hidden:
            with contextlib.suppress(TokenizerError):  # an id that a padded model has and the tokenizer lacks
                text += decoder.push(token_id)
    return text + decoder.finish() if whole else text


def error_object(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The body of every answer that is not 200, and of a stream's event that ends it early."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message[:1000], "type": kind, "param": param, "code": code}}
