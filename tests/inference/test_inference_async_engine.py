"""The engine in its thread: outputs reach their own request, a reader that leaves ends it, closing ends all."""

import asyncio

import pytest

torch = pytest.importorskip("torch")

from tinylm.inference import InferenceError, SamplingParams  # noqa: E402  # after importorskip
from tinylm.inference.async_engine import AsyncEngine  # noqa: E402
from tinylm.inference.engine import Engine  # noqa: E402
from tinylm.model import Transformer, TransformerConfig  # noqa: E402


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(0)
    return Transformer(TransformerConfig.preset("qwen3", 61, 1, width=32, head_dim=16, context=512)).eval()


def plain(model: Transformer, prompt: list[int], params: SamplingParams) -> list[int]:
    engine = Engine(model)
    text = engine.add_request("a", prompt, params)[0]
    while engine.busy:
        engine.step()
    return text.output


def test_every_request_gets_its_own_tokens(model: Transformer) -> None:
    running = AsyncEngine(Engine(model))
    params = [SamplingParams(seed=i, max_tokens=3 + i) for i in range(8)]

    async def read(i: int) -> list[int]:
        return [event.token_id async for event in running.generate(str(i), [i, 2, 3], params[i])]

    async def all_of_them() -> list[list[int]]:
        return await asyncio.gather(*(read(i) for i in range(8)))

    try:
        assert asyncio.run(all_of_them()) == [plain(model, [i, 2, 3], params[i]) for i in range(8)]
    finally:
        running.close()


def test_a_reader_that_leaves_ends_its_request(model: Transformer) -> None:
    engine = Engine(model)
    running = AsyncEngine(engine)

    async def leave() -> None:
        stream = running.generate("a", [1, 2], SamplingParams(max_tokens=500, ignore_eos=True))
        await anext(stream)
        await stream.aclose()
        # The id is free again only once the first text has ended: asked again until it is.
        while True:
            try:
                assert [e.index async for e in running.generate("a", [1], SamplingParams(max_tokens=1))] == [0]
                return
            except InferenceError:
                continue

    asyncio.run(leave())
    running.close()
    assert engine.blocks.free == engine.blocks.count


def test_what_is_refused_reaches_the_one_who_asked(model: Transformer) -> None:
    running = AsyncEngine(Engine(model))

    async def ask(prompt: list[int]) -> list[int]:
        return [event.token_id async for event in running.generate("a", prompt, SamplingParams(max_tokens=2))]

    with pytest.raises(InferenceError, match="wanted a prompt of 1 to 511"):
        asyncio.run(ask([]))
    assert len(asyncio.run(ask([1]))) == 2
    running.close()
    with pytest.raises(InferenceError, match="closed"):
        asyncio.run(ask([1]))


def test_an_engine_that_fails_tells_everybody(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(model)
    running = AsyncEngine(engine)

    def broken(*_: object) -> None:
        raise MemoryError("no more")

    monkeypatch.setattr(engine._runner, "run", broken)

    async def ask() -> list[object]:
        return [event async for event in running.generate("a", [1], SamplingParams(n=2))]

    events = asyncio.run(ask())
    assert [event.finish_reason for event in events] == ["error", "error"]
    assert "MemoryError: no more" in str(events[0].error)
    running.close()
    assert engine.blocks.free == engine.blocks.count


def test_closing_ends_what_is_being_written(model: Transformer) -> None:
    running = AsyncEngine(Engine(model))

    async def ask() -> str | None:
        reason = None
        async for event in running.generate("a", [1], SamplingParams(max_tokens=500, ignore_eos=True)):
            reason = event.finish_reason
            if event.token_id is not None and reason is None:
                await asyncio.to_thread(running.close)
        return reason

    assert asyncio.run(ask()) == "abort"
