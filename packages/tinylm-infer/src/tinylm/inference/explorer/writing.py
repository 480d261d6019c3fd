"""tinylm.inference: panel 4 of the explorer: a text as the engine writes it, its cache's blocks, and what they save.

The engine is the one that `LLM` uses, with its own block manager and paged cache, here of small blocks. Beside each
step the whole text is computed again, and both results are compared. Next: `history.py`.
"""

import time
from dataclasses import dataclass, replace

import torch

from tinylm.inference.checkpoint import Checkpoint
from tinylm.inference.engine import Engine
from tinylm.inference.engine_config import EngineConfig
from tinylm.inference.explorer.reading import token_text
from tinylm.inference.sampling_params import SamplingParams
from tinylm.model import Transformer

BLOCK, BLOCKS = 8, 24
COMPARED = 5  # log-probabilities of a step
MOST = 64  # tokens written


@dataclass(frozen=True)
class Frame:
    """One token written. `table`: the text's blocks in order, of which the first `cached` tokens are filled.

    `cached_operations`: multiplications and additions of this step with the cache; `again_operations`: of computing the
    whole text. `difference`: the furthest that the likeliest tokens' log-probabilities of the two are apart.
    """

    id: int
    text: str
    table: list[int]
    cached: int
    cached_operations: int
    again_operations: int
    cached_seconds: float
    again_seconds: float
    difference: float


@dataclass(frozen=True)
class Written:
    """What has been written so far; `done` when no more follows."""

    frames: list[Frame]
    done: bool
    block_size: int
    blocks: int


class Writing:
    """A text that is being written, a token at a time."""

    def __init__(self, checkpoint: Checkpoint, ids: list[int], params: SamplingParams) -> None:
        """Raises what `Engine.add_request` raises."""
        model = checkpoint.model
        weight = model.embed.weight
        c = model.config
        block = 2 * c.depth * c.kv_heads * c.head_dim * BLOCK * weight.element_size()
        config = EngineConfig(block_size=BLOCK, kv_cache_memory_bytes=block * BLOCKS, enable_prefix_caching=False)
        self._checkpoint = checkpoint
        self._engine = Engine(model, checkpoint.tokenizer, (), config)
        # One more than is shown: at a text's end the engine takes the blocks back, and they are to be seen.
        self._count = min(params.max_tokens or MOST, c.context - len(ids) - 1)
        longer = replace(params, max_tokens=self._count + 1)
        (self._sequence,) = self._engine.add_request("explorer", ids, longer)
        self._read = 0  # tokens that have been through the model
        self.frames: list[Frame] = []

    def go_on(self, seconds: float) -> Written:
        """Writes for about so long, one token at least, or to the end."""
        end = time.perf_counter() + seconds
        while len(self.frames) < self._count:
            self.frames.append(self._step())
            if time.perf_counter() > end:
                break
        return Written(self.frames, len(self.frames) == self._count, BLOCK, BLOCKS)

    def _step(self) -> Frame:
        start = time.perf_counter()
        before = len(self._sequence.tokens)
        events = self._engine.step()
        while not events:
            events = self._engine.step()
        middle = time.perf_counter()
        (event,) = events
        if event.error is not None:
            raise event.error
        assert event.token_id is not None
        assert event.logprobs is not None
        model = self._checkpoint.model
        with torch.inference_mode():
            logits = model(torch.tensor([self._sequence.tokens[:before]]), logits_at=[-1])[0, 0]
        again = logits.float().log_softmax(dim=0)
        difference = max(abs(float(again[i]) - told.logprob) for i, told in event.logprobs.items())
        frame = Frame(
            event.token_id,
            token_text(self._checkpoint, event.token_id),
            list(self._sequence.table),
            before,
            operations(model, before - self._read, before),
            operations(model, before, before),
            middle - start,
            time.perf_counter() - middle,
            difference,
        )
        self._read = before
        return frame


def operations(model: Transformer, new: int, keys: int) -> int:
    """Multiplications and additions of reading `new` tokens, the last of `keys`, up to the logits of the last one.

    Two for each number of a matrix and token; two for each number of a query with each key it sees, and two with each
    value. Norms and softmax are left out, and of experts those a token does not meet are counted as well.
    """
    c = model.config
    matrices = sum(parameter.numel() for parameter in model.blocks.parameters() if parameter.ndim > 1)
    pairs = sum(range(keys - new + 1, keys + 1))
    attention = 4 * c.depth * c.heads * c.head_dim * pairs
    return 2 * new * matrices + attention + 2 * c.vocab_size * c.width
