"""Training byte-level BPE: check the options, count the corpus's pieces, learn the merges on the best rung at hand.

Memory: of the corpus only about a megabyte a thread is held at a time; what grows are the distinct pieces with their
counts (64 bits). They do not depend on the order of the texts, on how these are cut into chunks, or on the number of
threads, and neither do the merges.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Protocol, Self

from tinylm.tokenizer import byte_bpe_fast, kernels
from tinylm.tokenizer._engines.protocol import Progress
from tinylm.tokenizer._engines.vocabulary import Vocabulary, from_training
from tinylm.tokenizer._errors import TokenizerError
from tinylm.tokenizer._text.pretokenize import split
from tinylm.tokenizer._trainers.corpus import Chunk, Corpus, batches, size_of
from tinylm.tokenizer.byte_bpe import Pair
from tinylm.tokenizer.patterns import TRAINABLE

_SHARE = 0.8  # of the memory; more would end in swapping, or in the process being killed


def train(
    corpus: Corpus,
    vocab_size: int,
    pattern: str,
    special_tokens: Sequence[str],
    progress: Progress,
    threads: int | None = None,
) -> Vocabulary:
    """See `Tokenizer.train`. Every option is checked before the corpus is read."""
    _check(vocab_size, pattern, special_tokens, threads)
    wanted = vocab_size - 256 - len(special_tokens)
    threads = threads or os.cpu_count() or 1
    try:
        counter = _count(corpus, pattern, threads, progress)
    except UnicodeEncodeError as error:
        surrogate = ord(error.object[error.start])
        raise TokenizerError(f"wanted text, got the lone surrogate U+{surrogate:04X} in the corpus") from None
    if counter.distinct == 0:
        raise TokenizerError("wanted a corpus with text, got an empty one")
    merges = counter.learn(wanted, lambda done: progress("merges", done, wanted), threads)
    if len(merges) < wanted:
        got = 256 + len(merges) + len(special_tokens)
        warnings.warn(
            f"the corpus has no pair left to merge: the vocabulary has {got} tokens instead of {vocab_size}; "
            "give more text or a smaller vocab_size",
            stacklevel=4,
        )
    return from_training(merges, special_tokens, pattern)


class _Counter(Protocol):
    """What `kernels.PieceCounter` and `_PythonCounter` both are."""

    def count(self, chunks: Sequence[Chunk]) -> None: ...
    def absorb(self, other: Self) -> None: ...
    @property
    def distinct(self) -> int: ...
    @property
    def memory(self) -> int: ...
    def learn(self, wanted: int, progress: Callable[[int], None], threads: int = 1) -> list[Pair]: ...


class _PythonCounter:
    """The same as `kernels.PieceCounter` on the Python rung."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._counts: Counter[str] = Counter()

    def count(self, chunks: Sequence[Chunk]) -> None:
        for chunk in chunks:
            pieces = split(chunk.text(), (self._pattern,))
            self._counts.update(pieces[:-1] if chunk.stop < len(chunk.data) else pieces)  # the last: only looked at

    def absorb(self, other: _PythonCounter) -> None:
        self._counts += other._counts

    @property
    def distinct(self) -> int:
        return len(self._counts)

    @property
    def memory(self) -> int:
        return 2000 * self.distinct

    def learn(self, wanted: int, progress: Callable[[int], None], threads: int = 1) -> list[Pair]:
        return byte_bpe_fast.train_merges(self._counts, wanted, progress)


def _count(corpus: Corpus, pattern: str, threads: int, progress: Progress) -> _Counter:
    """All pieces of the corpus. Each thread counts on its own; the sum does not depend on who counted what."""
    size, limit = size_of(corpus), _memory_limit()
    work = batches(corpus, lambda read: progress("bytes", read, size))
    make: Callable[[str], _Counter] = kernels.PieceCounter
    if not kernels.available():
        kernels._warn_once()
        make, threads = _PythonCounter, 1  # Python threads would wait for each other
    first, *others = counters = [make(pattern) for _ in range(threads)]
    free = deque(counters)

    def count(batch: list[Chunk]) -> None:
        counter = free.popleft()
        counter.count(batch)
        _check_memory(counter, limit)
        free.append(counter)

    if threads == 1:
        for batch in work:
            count(batch)
    else:
        with ThreadPoolExecutor(threads) as pool:
            running: deque[Future[None]] = deque()
            for batch in work:
                running.append(pool.submit(count, batch))
                if len(running) > threads:  # one batch waits, so that nobody has to
                    running.popleft().result()
            for future in running:
                future.result()
    for other in others:
        first.absorb(other)
    _check_memory(first, limit)
    return first


def _check_memory(counter: _Counter, limit: int) -> None:
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


def _check(vocab_size: int, pattern: str, special_tokens: Sequence[str], threads: int | None) -> None:
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise TokenizerError(f"wanted 1 or more threads, got {threads!r}")
    if pattern not in TRAINABLE:
        raise TokenizerError(f"unknown pattern {pattern!r}: choose one of {', '.join(TRAINABLE)}")
    if isinstance(special_tokens, str):
        raise TokenizerError(f"wanted a list of special tokens, got the string {special_tokens!r}; put it into a list")
    if len(set(special_tokens)) != len(special_tokens) or not all(special_tokens):
        raise TokenizerError(f"wanted special tokens that differ and are not empty, got {list(special_tokens)}")
    least = 256 + len(special_tokens)
    if not isinstance(vocab_size, int) or vocab_size < least:
        raise TokenizerError(
            f"wanted a vocab_size of at least {least} (256 bytes and {len(special_tokens)} special tokens), "
            f"got {vocab_size!r}"
        )
    if vocab_size >= 2**24:
        raise TokenizerError(f"wanted a vocab_size below 2**24 (16,777,216), got {vocab_size}")
