"""tinylm.inference: the engine in a thread of its own, for a server: requests from any event loop, outputs to each.

One thread computes, and sleeps where there is nothing to do; `generate` is an asynchronous iterator for each request.
An iterator that is closed, or whose task is cancelled, ends its request. It knows nothing of HTTP and computes nothing
itself (`engine.py`).
"""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Collection
from collections.abc import Sequence as Items
from functools import partial

from tinylm.inference._errors import InferenceError
from tinylm.inference.engine import Engine
from tinylm.inference.outputs import TokenOutput
from tinylm.inference.sampling_params import SamplingParams

Tell = Callable[[TokenOutput], object]


class AsyncEngine:
    """`engine` must be used through this alone. `close` ends all requests with "abort", and the thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._wake = threading.Condition()
        self._tasks: list[Callable[[], None]] = []  # what other threads want done between two steps
        self._readers: dict[str, tuple[Tell, int]] = {}  # by request: whom to tell, and how many texts go on
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="tinylm-engine", daemon=True)
        self._thread.start()

    async def generate(
        self,
        request_id: str,
        prompt_token_ids: Items[int],
        params: SamplingParams,
        eos_token_ids: Collection[int] | None = None,
    ) -> AsyncIterator[TokenOutput]:
        """Every token of all `params.n` texts as it is drawn. InferenceError as `Engine.add_request`."""
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[TokenOutput | Exception]()

        def tell(event: TokenOutput | Exception) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(queue.put_nowait, event)

        self._do(partial(self._add, request_id, prompt_token_ids, params, eos_token_ids, tell))
        going_on = params.n
        try:
            while going_on:
                event = await queue.get()
                if isinstance(event, Exception):
                    going_on = 0
                    raise event
                going_on -= event.finish_reason is not None
                yield event
        finally:
            if going_on:
                with contextlib.suppress(InferenceError):  # closed: it has ended anyway
                    self._do(partial(self._engine.abort, request_id))

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

    def _add(
        self,
        request_id: str,
        prompt_token_ids: Items[int],
        params: SamplingParams,
        eos_token_ids: Collection[int] | None,
        tell: Callable[[TokenOutput | Exception], None],
    ) -> None:
        try:
            self._engine.add_request(request_id, prompt_token_ids, params, eos_token_ids)
        except InferenceError as error:
            tell(error)
        else:
            self._readers[request_id] = (tell, params.n)

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._tasks or self._engine.busy or self._closing)
                tasks, self._tasks, closing = self._tasks, [], self._closing
            for task in tasks:
                task()
            if closing:
                for request_id in self._readers:
                    self._engine.abort(request_id)
            try:
                events = self._engine.step()
            except Exception as error:  # out of memory, say: those who wait must not wait for ever
                events = self._engine.fail(InferenceError(f"the engine failed: {type(error).__name__}: {error}"))
            for event in events:
                self._tell(event)
            if closing:
                return

    def _tell(self, event: TokenOutput) -> None:
        tell, going_on = self._readers[event.request_id]
        tell(event)
        going_on -= event.finish_reason is not None
        if going_on:
            self._readers[event.request_id] = (tell, going_on)
        else:
            del self._readers[event.request_id]
