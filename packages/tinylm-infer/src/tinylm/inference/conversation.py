"""tinylm.inference: what `tinylm-infer chat` remembers between two lines, and how it becomes a prompt that fits.

No terminal here (that is `cli.py`) and no drawing of tokens (`generation.py`).
"""

from tinylm.inference.generation import Generation
from tinylm.inference.llm import LLM, Message
from tinylm.inference.sampling_params import SamplingParams


class Conversation:
    """Messages so far. A tuned model sees them through its chat template; a base model sees plain text to continue.

    When they grow longer than the context, the oldest are left out; `left_out` counts them.
    """

    def __init__(self, llm: LLM, params: SamplingParams, system: str | None = None) -> None:
        self._llm, self._params = llm, params
        self._system: list[Message] = [{"role": "system", "content": system}] if system else []
        self._messages: list[Message] = []
        self._gone = 0  # of the messages, how many no later prompt can have room for
        self.left_out = 0

    def ask(self, text: str) -> Generation:
        """Starts the answer to `text`. Call `answered` when it is over, whether it was finished or stopped; `take_back`
        where it ended in an error."""
        self._messages.append({"role": "user", "content": text})
        self.left_out = 0
        try:
            return self._started()
        except BaseException:  # Ctrl-C as well
            self.take_back()
            raise

    def answered(self, text: str) -> None:
        self._messages.append({"role": "assistant", "content": text})
        self._gone = self.left_out

    def take_back(self) -> None:
        """What was asked last is not answered, so it was not said."""
        self._messages.pop()

    def clear(self) -> None:
        self._messages.clear()
        self._gone = 0

    def _started(self) -> Generation:
        llm = self._llm
        context = llm.engine.context
        room = max(1, context - min(self._params.max_tokens or context, context // 2))
        if not llm.tuned_for_chat:
            return llm.stream({"prompt_token_ids": self._plain_text(room)}, self._params)
        kept = self._messages[self._gone :]
        while len(kept) > 1 and len(llm.chat_prompt([*self._system, *kept])) > room:
            kept = kept[2:]  # a question and its answer
        self.left_out = len(self._messages) - len(kept)
        return llm.stream_chat([*self._system, *kept], self._params)

    def _plain_text(self, room: int) -> list[int]:
        """Everything said, one turn a line: a base model continues the last one. Of more than `room` tokens the last,
        after the beginning-of-text that Llama's kind has before every text."""
        tokenizer = self._llm.tokenizer
        assert tokenizer is not None
        text = ""
        for message in [*self._system, *self._messages]:
            text += ("\n" if text and message["role"] == "user" else "") + message["content"]
        ids = tokenizer.encode(text, add_special_tokens=True)
        start = ids[:1] if ids[:1] == [tokenizer.bos_id] else []
        return ids if len(ids) <= room else [*start, *ids[len(ids) - room + len(start) :]]
