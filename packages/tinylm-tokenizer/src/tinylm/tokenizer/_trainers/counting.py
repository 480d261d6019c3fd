"""Counting a corpus on several threads, in bounded memory: what training byte-level BPE and WordPiece begin with.

Of the corpus only about a megabyte a thread is held at a time; what grows are the distinct pieces (or words) with their
counts (64 bits). They do not depend on the order of the texts, on how these are cut into chunks, or on the number of
threads. Knows neither pieces nor words: `byte_level.py` and `wordpiece.py` bring the counters.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Protocol, Self, TypeVar

from tinylm.tokenizer._engines.protocol import Progress
from tinylm.tokenizer._errors import TokenizerError
from tinylm.tokenizer._trainers.corpus import Chunk, Corpus, batches, size_of

_SHARE = 0.8  # of the memory; more would end in swapping, or in the process being killed


class Held(Protocol):
    """Something counted. memory: the bytes that learning from it will need, about."""

    @property
    def distinct(self) -> int: ...
    @property
    def memory(self) -> int: ...


class Counter(Held, Protocol):
    """Counts on one thread."""

    def count(self, chunks: Sequence[Chunk]) -> None: ...
    def absorb(self, other: Self) -> None: ...


C = TypeVar("C", bound=Counter)


class PythonCounter:
    """A `Counter` of the Python rung: a subclass says which pieces a chunk holds, and how to learn from `counts`."""

    each: int  # bytes that learning needs for a piece, about

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def pieces(self, chunk: Chunk) -> list[str]:
        raise NotImplementedError

    def count(self, chunks: Sequence[Chunk]) -> None:
        for chunk in chunks:
            for piece in self.pieces(chunk):
                self.counts[piece] = self.counts.get(piece, 0) + 1

    def absorb(self, other: Self) -> None:
        for piece, number in other.counts.items():
            self.counts[piece] = self.counts.get(piece, 0) + number

    @property
    def distinct(self) -> int:
        return len(self.counts)

    @property
    def memory(self) -> int:
        return self.each * self.distinct


def count(corpus: Corpus, make: Callable[[], C], threads: int, progress: Progress) -> C:
    """All that `make()` counts in the corpus. Each thread counts on its own; the sum does not depend on who counted
    what. Errors: TokenizerError for what is no text, for an empty corpus, and for one whose
    counts would need more than the machine has."""
    size, limit = size_of(corpus), _memory_limit()
    work = batches(corpus, lambda read: progress("bytes", read, size))
    counters = [make() for _ in range(threads)]
    free = deque(range(threads))
    held = [0] * threads  # memory of each counter when it was last at rest

    def one(batch: list[Chunk]) -> None:
        number = free.popleft()
        counters[number].count(batch)
        held[number] = counters[number].memory
        free.append(number)

    def gather() -> None:
        """All in one counter; nobody may be counting. Threads hold the same pieces: together they need less."""
        first = counters[0]
        for number in range(1, threads):
            first.absorb(counters[number])
            counters[number] = make()
        _check_memory(first, limit)
        held[:] = [first.memory, *[0] * (threads - 1)]

    try:
        if threads == 1:
            for batch in work:
                one(batch)
                _check_memory(counters[0], limit)
        else:
            with ThreadPoolExecutor(threads) as pool:
                running: deque[Future[None]] = deque()
                for batch in work:
                    running.append(pool.submit(one, batch))
                    if len(running) > threads:  # one batch waits, so that nobody has to
                        running.popleft().result()
                    if sum(held) > limit:
                        while running:
                            running.popleft().result()
                        gather()
                for future in running:
                    future.result()
    except UnicodeEncodeError as error:
        surrogate = ord(error.object[error.start])
        raise TokenizerError(f"wanted text, got the lone surrogate U+{surrogate:04X} in the corpus") from None
    gather()
    if counters[0].distinct == 0:
        raise TokenizerError("wanted a corpus with text, got an empty one")
    return counters[0]


def _check_memory(counter: Held, limit: int) -> None:
    """TokenizerError if learning from what was counted needs more bytes than `limit`."""
    if counter.memory > limit:
        raise TokenizerError(
            f"the corpus has more than {counter.distinct:,} different pieces, and learning from them needs about "
            f"{counter.memory / 1e9:.2f} GB, which is more than {_SHARE:.0%} of this machine's memory; train on a part "
            "of the corpus (tinylm-tokenizer train --head 0.5), or where there is more memory"
        )


def _memory_limit() -> int:
    """The bytes that training may use: a share of the machine's memory, or of what its container has."""
    try:
        limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not every system tells
        return sys.maxsize
    with suppress(OSError, ValueError):  # no container, or "max"
        limit = min(limit, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return int(_SHARE * limit)
