"""A batch of texts on threads, for engines whose encoder takes one text at a time and works without Python's lock.

Byte-level BPE has a batch of its own in C++ (`kernels/byte_bpe.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


def on_threads(encode: Callable[[str], list[int]], texts: Sequence[str], threads: int) -> list[list[int]]:
    """`encode` of each text. An encoder in Python holds the lock: give 1, more would only wait for each other."""
    if threads == 1:
        return [encode(text) for text in texts]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(encode, texts))
