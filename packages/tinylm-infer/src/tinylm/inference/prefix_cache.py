"""tinylm.inference: which block already holds the keys and values of a text's beginning (hash-chained blocks).

A block's keys and values depend on its own tokens and on all before them, so its name is a hash of both: the name of
the block before and its tokens (vLLM's automatic prefix caching; Kwon et al. 2023, section 4.4). Equal names mean equal
texts: SHA-256, so that no request can be served another's text by a collision. It does not decide which blocks are kept
(`block_manager.py`) and holds no keys and values (`paged_cache.py`).
"""

import hashlib
from array import array
from collections.abc import Sequence as Items


def extend_names(names: list[bytes], tokens: Items[int], count: int, block_size: int) -> None:
    """Appends the names of the full blocks of the first `count` tokens that `names` does not have yet."""
    for start in range(len(names) * block_size, count - block_size + 1, block_size):
        before = names[-1] if names else b""
        names.append(hashlib.sha256(before + array("q", tokens[start : start + block_size]).tobytes()).digest())


class PrefixCache:
    """Names of blocks whose content is complete, both ways. `hit_tokens` of `asked_tokens` were found so far."""

    def __init__(self) -> None:
        self._block_of: dict[bytes, int] = {}
        self._name_of: dict[int, bytes] = {}
        self.asked_tokens = 0
        self.hit_tokens = 0

    def __contains__(self, block: int) -> bool:
        return block in self._name_of

    def find(self, names: Items[bytes]) -> list[int]:
        """The blocks of the longest beginning of `names` that is here."""
        found = []
        for name in names:
            block = self._block_of.get(name)
            if block is None:
                break
            found.append(block)
        return found

    def remember(self, name: bytes, block: int) -> None:
        """`block` is complete. Where another block has this name already, that one keeps it."""
        if name not in self._block_of and block not in self._name_of:
            self._block_of[name] = block
            self._name_of[block] = name

    def forget(self, block: int) -> None:
        """`block` is to be filled anew."""
        name = self._name_of.pop(block, None)
        if name is not None:
            del self._block_of[name]
