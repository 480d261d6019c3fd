"""tinylm.inference: chunks in, logits out: the model and the paged cache meet here.

It lays the step's tokens in one row and asks for logits only where a token is to be drawn or described. Which chunks:
`scheduler.py`; what is drawn from the logits: `sampler.py`.
"""

from collections.abc import Sequence as Items
from itertools import accumulate

import torch
from torch import Tensor

from tinylm.inference.decoder import CompiledTransformer
from tinylm.inference.paged_cache import PagedCache
from tinylm.inference.scheduler import Chunk
from tinylm.model import Transformer


class Runner:
    """Runs `model` over chunks, with `cache`."""

    def __init__(self, model: Transformer, cache: PagedCache) -> None:
        self.model, self.cache = model, cache

    @torch.inference_mode()
    def run(self, chunks: Items[Chunk]) -> tuple[Tensor, list[range]]:
        """Logits (R, V), float32 on the CPU, where all choosing happens, and for each chunk its rows of them.

        Rows: every position of the chunk where prompt logprobs are wanted; else, where a token is drawn, the last one
        and those before its guesses; else none.
        """
        ids, positions, starts, wanted = list[int](), list[int](), [0], list[range]()
        for chunk in chunks:
            sequence, first = chunk.sequence, chunk.sequence.cached
            tokens = sequence.tokens[first:] + sequence.draft if first else sequence.tokens + sequence.draft
            ids += tokens[: chunk.count]
            positions += range(first, first + chunk.count)
            starts.append(len(ids))
            wanted.append(range(len(ids) - _rows(chunk), len(ids)))
        self.cache.begin(chunks)
        device = self.cache.keys.device
        logits = self._forward(
            torch.tensor(ids, device=device),
            torch.tensor(positions, device=device),
            torch.tensor(starts),
            torch.tensor([row for rows in wanted for row in rows], dtype=torch.long, device=device),
        )
        ends = list(accumulate(map(len, wanted)))
        return logits.float().cpu(), [range(end - len(rows), end) for end, rows in zip(ends, wanted, strict=True)]

    def _forward(self, ids: Tensor, positions: Tensor, starts: Tensor, rows: Tensor) -> Tensor:
        """(N,), (N,), (sequences + 1,), (R,) -> (R, V)."""
        if isinstance(self.model, CompiledTransformer):
            compiled = self.model.rows_of_logits(ids, positions, starts, self.cache.layout(), rows)
            if compiled is not None:
                return compiled
        logits: Tensor = self.model(ids[None], positions[None], cache=self.cache, logits_at=rows)[0]
        return logits


def _rows(chunk: Chunk) -> int:
    sequence = chunk.sequence
    if sequence.prompt_logprobs is not None and sequence.cached < len(sequence.prompt_token_ids):
        return chunk.count
    return 1 + len(sequence.draft) if chunk.draws else 0
