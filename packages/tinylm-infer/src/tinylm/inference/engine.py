"""tinylm.inference: the engine: requests in, tokens out, any number of requests at a time.

`step()` is the whole loop: the scheduler says what is read, the runner computes it, the sampler draws. Threads that
call it take turns, and each step goes on with everybody's texts; `abort` waits for none. It reads no files and no text
(`llm.py`), and knows no network. Next: `scheduler.py`, then `runner.py`.
"""

import contextlib
import itertools
import threading
from collections import deque
from collections.abc import Callable, Collection
from collections.abc import Sequence as Items

from torch import Tensor

from tinylm.inference import sampler
from tinylm.inference._errors import InferenceError
from tinylm.inference.block_manager import BlockManager
from tinylm.inference.engine_config import EngineConfig
from tinylm.inference.outputs import TokenOutput
from tinylm.inference.paged_cache import PagedCache
from tinylm.inference.runner import Runner
from tinylm.inference.sampling_params import SamplingParams
from tinylm.inference.scheduler import Chunk, Scheduler
from tinylm.inference.sequence import Sequence
from tinylm.inference.structured import Grammars
from tinylm.inference.tiles import use_tiles
from tinylm.model import Transformer
from tinylm.observability.boundary import uninterrupted
from tinylm.tokenizer import Tokenizer


class Engine:
    """Writes texts with `model`, all that were added at once, as far as its cache reaches.

    Every request ends exactly once, with an event that has a finish_reason: "stop", "length", "abort", or "error" (its
    logits were not numbers; the others go on).
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer | None = None,
        eos_token_ids: Collection[int] = (),
        config: EngineConfig | None = None,
        propose: Callable[[Sequence], list[int]] | None = None,
    ) -> None:
        """`propose` guesses tokens that follow a text, to be checked together: the texts are the same without it."""
        config = config or EngineConfig()
        kind = (model.embed.weight.device, model.embed.weight.dtype)
        count = config.block_count(model.config, kind[1].itemsize)
        self.model, self.config, self.context = model, config, config.context(model.config)
        self.blocks = BlockManager(count, config.block_size, config.enable_prefix_caching)
        self.scheduler = Scheduler(self.blocks, config.max_num_seqs, config.max_num_batched_tokens)
        many = config.max_num_seqs > 1
        cache = PagedCache(model.config, count, config.block_size, *kind, config.batch_invariant, large_pages=many)
        if config.batch_invariant:
            use_tiles(model)
        self._runner = Runner(model, cache)
        self._tokenizer, self._eos_token_ids, self._propose = tokenizer, eos_token_ids, propose
        self._grammars: Grammars | None = None
        self._live: dict[str, list[Sequence]] = {}
        self._to_abort: deque[str | Sequence] = deque()
        self._turn = threading.RLock()  # of whoever changes which texts there are, or goes on with them

    @property
    def busy(self) -> bool:
        """Whether there is anything for `step` to do."""
        return bool(self._live or self._to_abort)

    @property
    def cache_use(self) -> float:
        """Part of the cache's blocks that requests hold, 0 to 1."""
        return 1 - self.blocks.free / self.blocks.count

    def has(self, request_id: str) -> bool:
        """Whether a text of this request goes on."""
        return request_id in self._live

    def add_request(
        self,
        request_id: str,
        prompt_token_ids: Items[int],
        params: SamplingParams,
        eos_token_ids: Collection[int] | None = None,
    ) -> list[Sequence]:
        """Starts the `params.n` texts of a request. Events come out of `step`, and lie in each text's `events`.

        InferenceError, and nothing is started, where the id is in use, the prompt is empty or leaves no room for a
        token in the context, or the text could not fit the whole cache.
        """
        if request_id in self._live:
            raise InferenceError(f"request id {request_id!r} is in use; choose another, or wait until it has ended")
        ends = self._eos_token_ids if eos_token_ids is None else eos_token_ids
        sequences = [self.make_sequence(request_id, prompt_token_ids, params, ends, index) for index in range(params.n)]
        for sequence in sequences:
            self.add(sequence)
        return sequences

    def make_sequence(
        self,
        request_id: str,
        prompt_token_ids: Items[int],
        params: SamplingParams,
        eos_token_ids: Collection[int] | None = None,
        index: int = 0,
    ) -> Sequence:
        """A text that is checked and not yet added."""
        context, vocabulary = self.context, self.model.config.vocab_size
        if not 1 <= len(prompt_token_ids) < context:
            raise InferenceError(
                f"wanted a prompt of 1 to {context - 1} tokens (the context is {context}), got {len(prompt_token_ids)}"
            )
        if (highest := max(params.logit_bias or {}, default=0)) >= vocabulary:
            raise InferenceError(f"logit_bias: token id {highest} is outside the model's vocabulary of {vocabulary}")
        if (highest := max(params.stop_token_ids or (), default=0)) >= vocabulary:
            raise InferenceError(
                f"stop_token_ids: token id {highest} is outside the model's vocabulary of {vocabulary}"
            )
        if self._tokenizer is None and params.stop_strings:
            raise InferenceError("stop strings need a tokenizer (skip_tokenizer_init=True): use stop_token_ids")
        ends = self._eos_token_ids if eos_token_ids is None else eos_token_ids
        if params.structured_outputs is None:
            matcher = None
        elif self._tokenizer is None:
            raise InferenceError("structured_outputs need a tokenizer (skip_tokenizer_init=True): there is no text")
        else:
            self._grammars = self._grammars or Grammars(self._tokenizer)
            matcher = self._grammars.matcher(params.structured_outputs, ends)
        sequence = Sequence(request_id, prompt_token_ids, params, context, self._tokenizer, ends, index, matcher)
        room = self.blocks.count * self.blocks.block_size
        if len(prompt_token_ids) + sequence.limit > room:
            raise InferenceError(
                f"prompt and answer may reach {len(prompt_token_ids) + sequence.limit} tokens, the whole cache holds"
                f" {room}: lower max_tokens, or raise kv_cache_memory_bytes"
            )
        return sequence

    def add(self, sequence: Sequence) -> None:
        """Puts a text of `make_sequence` in line; nothing happens where it was there before."""
        with self._turn:
            if not sequence.added:
                sequence.added = True
                if sequence.request_id in self._live:
                    self._live[sequence.request_id].append(sequence)
                else:  # never an empty list, not even at Ctrl-C
                    self._live[sequence.request_id] = [sequence]
                self.scheduler.waiting.append(sequence)

    def abort(self, request: str | Sequence) -> None:
        """Ends a request, or one text, at the next step; nothing happens where it has ended. From any thread."""
        self._to_abort.append(request)

    def fail(self, error: InferenceError) -> list[TokenOutput]:
        """Ends every text with `error`: for whoever calls `step` and gets an exception that he cannot go on after."""
        texts = [sequence for texts in self._live.values() for sequence in texts]
        for sequence in texts:
            self._remove(sequence)
        return [sequence.end("error", error) for sequence in texts]

    def step(self) -> list[TokenOutput]:
        """Reads one step's tokens and draws what can be drawn. Returns what happened, which may be nothing.

        An exception of the model's leaves every text as it was before the step, and so does Ctrl-C, or it waits for the
        step's end: what happened then lies in the texts' `events`. A request alone is broken off by it.
        """
        with self._turn:
            with self._in_one_go():
                events, chunks = self._sweep(), self.scheduler.schedule(self._propose)
            if not chunks:
                return events
            logits, each = self._runner.run(chunks)
            with self._in_one_go():
                return events + self._go_on(chunks, logits, each)

    def _go_on(self, chunks: Items[Chunk], logits: Tensor, each: Items[range]) -> list[TokenOutput]:
        """What the logits of a step's chunks, `each`'s rows of them, do to the texts."""
        drawing = list[tuple[Sequence, range]]()
        for chunk, rows in zip(chunks, each, strict=True):
            sequence = chunk.sequence
            if sequence.prompt_logprobs is not None:
                self._describe_prompt(chunk, logits[rows.start : rows.stop])
            if chunk.draws:
                drawing.append((sequence, rows[len(rows) - 1 - len(sequence.draft) :]))
            else:
                sequence.cached += chunk.count
                self.blocks.remember(sequence)
        return self._draw(logits, drawing)

    def _draw(self, logits: Tensor, drawing: list[tuple[Sequence, range]]) -> list[TokenOutput]:
        """A token after each text, from its first row of `logits`, and another one after each guess that was right."""
        events: list[TokenOutput] = []
        for place in itertools.count():
            if not drawing:
                return events
            at = [rows[place] for _, rows in drawing]
            some = logits if at == list(range(len(logits))) else logits[at]  # mostly all, and they are megabytes
            chosen = sampler.choose(some, [sequence for sequence, _ in drawing])
            guessed_right = []
            for (sequence, rows), row, choice in zip(drawing, some, chosen, strict=True):
                events.append(self._write(sequence, row, choice))
                sequence.cached = len(sequence.tokens) - 1  # not before: an exception would leave nothing to read
                if sequence.finish_reason is None and sequence.draft[place : place + 1] == [choice]:
                    guessed_right.append((sequence, rows))
                    continue
                sequence.draft = []
                self.blocks.remember(sequence)
                if sequence.finish_reason is not None:
                    self._remove(sequence)
            drawing = guessed_right
        raise AssertionError  # itertools.count has no end

    def _write(self, sequence: Sequence, logits: Tensor, choice: int | InferenceError) -> TokenOutput:
        if isinstance(choice, InferenceError):
            return sequence.end("error", choice)
        wanted = sequence.params.logprobs
        described = None if wanted is None else sampler.describe(logits, choice, wanted, sequence)
        return sequence.accept(choice, described)

    def _describe_prompt(self, chunk: Chunk, logits: Tensor) -> None:
        """Each prompt token's log-probability after those before it; the logits are of the chunk's positions."""
        sequence, wanted = chunk.sequence, chunk.sequence.params.prompt_logprobs
        told = sequence.prompt_logprobs
        assert told is not None
        assert wanted is not None
        end = min(sequence.cached + chunk.count + 1, len(sequence.prompt_token_ids))
        for position in range(len(told), end):  # after a preemption some are told already
            row = logits[position - 1 - sequence.cached]
            told.append(sampler.describe(row, sequence.prompt_token_ids[position], wanted, sequence))

    def _sweep(self) -> list[TokenOutput]:
        """Ends what is to be aborted, and takes out what Ctrl-C kept from going when it had ended."""
        events = []
        while self._to_abort:
            request = self._to_abort.popleft()
            doomed = [request] if isinstance(request, Sequence) else list(self._live.get(request, ()))
            for sequence in doomed:
                if sequence in self._live.get(sequence.request_id, ()):
                    if sequence.finish_reason is None:
                        events.append(sequence.end("abort"))
                    self._remove(sequence)
        return events

    def _remove(self, sequence: Sequence) -> None:
        self.scheduler.remove(sequence)
        texts = self._live[sequence.request_id]
        texts.remove(sequence)
        if not texts:
            del self._live[sequence.request_id]

    def _in_one_go(self) -> contextlib.AbstractContextManager[None]:
        """Ctrl-C, which comes to the main thread alone, waits for the end of the block, where it could leave another
        reader's text half changed. A request alone is broken off by it anyway, and spared the 10 µs."""
        others = len(self._live) > 1 or threading.active_count() > 1
        held = others and threading.current_thread() is threading.main_thread()
        return uninterrupted() if held else contextlib.nullcontext()
