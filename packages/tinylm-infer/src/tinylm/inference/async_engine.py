"""tinylm.inference: the engine in a thread of its own, for a server: requests from any event loop, outputs to each.

One thread computes, and sleeps where there is nothing to do; `run` is an asynchronous iterator for each request. An
iterator that is closed, or whose task is cancelled, ends its request. It knows nothing of HTTP (`server.py`) and
computes nothing itself (`engine.py`).
"""

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Collection
from collections.abc import Sequence as Items
from functools import partial

from tinylm.inference._errors import InferenceError
from tinylm.inference.engine import Engine
from tinylm.inference.outputs import TokenOutput
from tinylm.inference.sampling_params import SamplingParams
from tinylm.inference.sequence import Sequence

_Told = TokenOutput | Exception


class _Reader:
    """One who waits for events: a queue, and the event loop it belongs to."""

    def __init__(self) -> None:
        self.loop, self.queue = asyncio.get_running_loop(), asyncio.Queue[_Told]()


def _tell(told: Items[tuple[_Reader, _Told]]) -> None:
    """To each reader what is his, from any thread. One call for each event loop: to wake one takes a system call."""
    for loop in {reader.loop for reader, _ in told}:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(_put, [(reader.queue, event) for reader, event in told if reader.loop is loop])


def _put(told: Items[tuple[asyncio.Queue[_Told], _Told]]) -> None:
    for queue, event in told:
        queue.put_nowait(event)


class AsyncEngine:
    """`engine` must be used through this alone. `close` ends all requests with "abort", and the thread."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._wake = threading.Condition()
        self._tasks: list[Callable[[], None]] = []  # what other threads want done between two steps
        self._readers: dict[str, _Reader] = {}  # by request
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="tinylm-engine", daemon=True)
        self._thread.start()

    async def generate(
        self,
        request_id: str,
        prompt_token_ids: Items[int],
        params: SamplingParams,
        eos_token_ids: Collection[int] | None = None,
    ) -> AsyncGenerator[TokenOutput, None]:
        """Every token of all `params.n` texts as it is drawn. InferenceError as `Engine.add_request`."""
        make = partial(self.engine.make_sequence, request_id, prompt_token_ids, params, eos_token_ids)
        async with contextlib.aclosing(self.run([make(index) for index in range(params.n)])) as events:
            async for event in events:
                yield event

    async def run(self, sequences: Items[Sequence], deadline: float | None = None) -> AsyncGenerator[TokenOutput, None]:
        """Every token of these texts (of `Engine.make_sequence`, of one request or several) as it is drawn.

        InferenceError, and none is started, where one of their request ids is in use. TimeoutError, and they end, where
        they go on at `deadline` (by the event loop's clock).
        """
        reader, names = _Reader(), {sequence.request_id for sequence in sequences}
        going_on = len(sequences)
        self._do(partial(self._add, sequences, names, reader))
        late = None if deadline is None else reader.loop.call_at(deadline, reader.queue.put_nowait, TimeoutError())
        try:
            while going_on:
                event = await reader.queue.get()
                if isinstance(event, Exception):
                    raise event
                going_on -= event.finish_reason is not None
                yield event
        finally:
            if late is not None:
                late.cancel()
            if going_on:
                with contextlib.suppress(InferenceError):  # closed: they have ended anyway
                    self._do(partial(self._abort, names, reader))

    def close(self) -> None:
        """Ends every request and waits for the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _do(self, task: Callable[[], None]) -> None:
        with self._wake:
            if self._closing:
                raise InferenceError("the engine is closed")
            self._tasks.append(task)
            self._wake.notify()

    def _add(self, sequences: Items[Sequence], names: Collection[str], reader: _Reader) -> None:
        for name in names:
            if name in self._readers:
                error = f"request id {name!r} is in use; choose another, or wait until it has ended"
                return _tell([(reader, InferenceError(error))])
        for sequence in sequences:
            self._readers[sequence.request_id] = reader
            self.engine.add(sequence)

    def _abort(self, names: Collection[str], reader: _Reader) -> None:
        for name in names:
            if self._readers.get(name) is reader:  # not one that took the name of a refused one
                self.engine.abort(name)

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._tasks or self.engine.busy or self._closing)
                tasks, self._tasks, closing = self._tasks, [], self._closing
            for task in tasks:
                task()
            if closing:
                for request_id in self._readers:
                    self.engine.abort(request_id)
            try:
                events = self.engine.step()
            except Exception as error:  # out of memory, say: those who wait must not wait for ever
                events = self.engine.fail(InferenceError(f"the engine failed: {type(error).__name__}: {error}"))
            _tell([(self._readers[event.request_id], event) for event in events])
            for event in events:
                if not self.engine.has(event.request_id):
                    self._readers.pop(event.request_id, None)
            if closing:
                return
