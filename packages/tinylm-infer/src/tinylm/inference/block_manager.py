"""tinylm.inference: who owns which block of the paged cache. Numbers of blocks only, no tensors.

A sequence's keys and values lie in blocks of `block_size` tokens, in any order (PagedAttention, Kwon et al. 2023): so
memory is taken as a text grows, nothing is reserved for what it may become, and texts that begin alike share blocks. It
does not decide who waits (`scheduler.py`) and does not name blocks (`prefix_cache.py`).
"""

from collections import OrderedDict

from tinylm.inference.prefix_cache import PrefixCache, extend_names
from tinylm.inference.sequence import Sequence


class BlockManager:
    """Gives blocks to sequences and takes them back. A shared block counts its users and is free at none.

    Free blocks that hold a known beginning are given away last, the least recently used first, and until then they can
    still be found by the next request that begins so.
    """

    def __init__(self, count: int, block_size: int, prefix_caching: bool = True) -> None:
        self.count, self.block_size = count, block_size
        self.prefix = PrefixCache() if prefix_caching else None
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(count))  # the first is given away next
        self._users = [0] * count

    @property
    def free(self) -> int:
        return len(self._free)

    def find_prefix(self, sequence: Sequence) -> None:
        """Lets a sequence that has no blocks share those of its beginning, all but its last token at most."""
        if self.prefix is None or sequence.table or sequence.params.prompt_logprobs is not None:
            return  # prompt logprobs need every position computed
        extend_names(sequence.block_names, sequence.tokens, len(sequence.tokens), self.block_size)
        found = self.prefix.find(sequence.block_names[: (len(sequence.tokens) - 1) // self.block_size])
        self.prefix.asked_tokens += len(sequence.tokens)
        self.prefix.hit_tokens += len(found) * self.block_size
        for block in found:
            self._free.pop(block, None)
            self._users[block] += 1
        sequence.table, sequence.cached = found, len(found) * self.block_size

    def reserve(self, sequence: Sequence, count: int) -> bool:
        """Room for `count` tokens after those cached; False, and nothing taken, where too few blocks are free."""
        missing = -(-(sequence.cached + count) // self.block_size) - len(sequence.table)
        if missing > len(self._free):
            return False
        for _ in range(missing):
            block, _ = self._free.popitem(last=False)
            if self.prefix is not None:
                self.prefix.forget(block)
            self._users[block] = 1
            sequence.table.append(block)
        return True

    def remember(self, sequence: Sequence) -> None:
        """Makes the sequence's complete blocks known to later ones."""
        if self.prefix is None:
            return
        extend_names(sequence.block_names, sequence.tokens, sequence.cached, self.block_size)
        complete = sequence.cached // self.block_size
        for i in range(sequence.remembered, complete):
            self.prefix.remember(sequence.block_names[i], sequence.table[i])
        sequence.remembered = max(sequence.remembered, complete)

    def release(self, sequence: Sequence) -> None:
        """Takes all of the sequence's blocks back."""
        while sequence.table:
            block = sequence.table.pop()  # the last first: a beginning is worth more than what follows it
            self._users[block] -= 1
            if self._users[block] == 0:
                self._free[block] = None
                if self.prefix is None or block not in self.prefix:
                    self._free.move_to_end(block, last=False)
        sequence.cached = sequence.remembered = 0
