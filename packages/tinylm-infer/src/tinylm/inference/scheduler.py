"""tinylm.inference: which tokens the model reads in the next step. Continuous batching with chunked prefill.

A step is any number of tokens of any sequences, up to a budget: a text being written needs one, a prompt as many as it
is long, in pieces if need be, and both go through the model together (Yu et al. 2022, Orca; Agrawal et al. 2024,
Sarathi-Serve). It holds no tensors: `runner.py` carries out what is decided here, `block_manager.py` counts the blocks.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from tinylm.inference.block_manager import BlockManager
from tinylm.inference.sequence import Sequence


@dataclass(frozen=True)
class Chunk:
    """The next `count` tokens of a sequence. Where they are its last ones (`draws`), a token is drawn after them."""

    sequence: Sequence
    count: int

    @property
    def draws(self) -> bool:
        return self.count == self.sequence.pending


class Scheduler:
    """Sequences that wait and sequences that run, first come, first served.

    A running one that finds no free block takes those of the youngest, which waits again, at the front, and reads its
    text anew when its turn comes (recomputation, Kwon et al. 2023, section 4.5). `preemptions` counts these.
    """

    def __init__(self, blocks: BlockManager, max_sequences: int, max_tokens: int) -> None:
        self.blocks, self.max_sequences, self.max_tokens = blocks, max_sequences, max_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preemptions = 0

    def schedule(self, propose: Callable[[Sequence], list[int]] | None = None) -> list[Chunk]:
        """The chunks of the next step, with blocks reserved for them; empty only where nobody waits or runs.

        `propose` guesses tokens that follow a text whose own are all but the last cached.
        """
        budget, chunks = self.max_tokens, list[Chunk]()
        for sequence in list(self.running):  # oldest first
            if not budget:
                break
            if sequence not in self.running:  # an older one took its blocks
                continue
            if propose is not None and sequence.pending - len(sequence.draft) == 1:  # a step that failed left some
                sequence.draft = propose(sequence)[: min(budget - 1, sequence.limit - sequence.drawn - 1)]
            count = min(sequence.pending, budget)
            while not self.blocks.reserve(sequence, count):
                self._preempt(self.running[-1])
                if sequence not in self.running:
                    break
            else:
                chunks.append(Chunk(sequence, count))
                budget -= count
        while self.waiting and budget and len(self.running) < self.max_sequences:
            sequence = self.waiting[0]
            self.blocks.find_prefix(sequence)
            count = min(sequence.pending, budget)
            if not self.blocks.reserve(sequence, count):
                self.blocks.release(sequence)
                break
            self.running.append(self.waiting.popleft())
            chunks.append(Chunk(sequence, count))
            budget -= count
        return chunks

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it is, and its blocks back."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self.blocks.release(sequence)

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.blocks.release(sequence)
        sequence.draft = []
        self.waiting.appendleft(sequence)
        self.preemptions += 1
