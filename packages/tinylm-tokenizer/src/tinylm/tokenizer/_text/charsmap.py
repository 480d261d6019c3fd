"""SentencePiece's compiled normalisation rules (`precompiled_charsmap`): look rules up in one, and make one.

The bytes are: the length of a double-array trie (uint32), the trie (uint32 units, little endian; the layout of Yata's
darts-clone), then the replacements, each ended by a zero byte; a key's value is the place of its replacement. From the
base `n` of a node the byte `b` leads to the unit `n ^ b`, if that unit's label is `b`. A unit:

    bits 0-7   label        bit 8  a value follows: the unit at this node's base ^ 0
    bits 10-30 offset (shifted by 8 if bit 9 is set): place of the unit ^ offset = base of its node
    bit 31     the unit is a value: bits 0-30

The bytes come out of a file, so every reference is checked when they are read. How rules are applied: `normalizer.py`;
which rules there are: `nfkc_rules.py`. Sources: Aoe 1989 (double array); Kudo and Richardson 2018, section 3.2.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from tinylm.tokenizer._errors import TokenizerError


class Rules:
    """The rules of one `precompiled_charsmap`. Errors: TokenizerError for bytes that are damaged."""

    def __init__(self, blob: bytes) -> None:
        size = int.from_bytes(blob[:4], "little")
        if size < 1024 or size % 1024 or 4 + size >= len(blob) or blob[-1] != 0:
            raise _damaged(f"{len(blob)} bytes hold no trie of {size} bytes and its replacements")
        self._replacements = blob[4 + size :]
        try:
            self._replacements.decode()
        except UnicodeDecodeError:
            raise _damaged("the replacements are not UTF-8") from None
        self._check(np.frombuffer(blob, "<u4", size // 4, 4).astype(np.int64))
        self._units = struct.unpack_from(f"<{size // 4}I", blob, 4)
        self._start = _base(0, self._units[0])
        self._first: dict[str, tuple[int, str | None]] = {}

    def _check(self, units: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
        """A node's base must lie inside; it shares all but 8 bits with its children, and the size is k · 256 units."""
        is_value = units >> 31 == 1
        places = np.nonzero(~is_value)[0]
        nodes = units[places]
        bases = places ^ ((nodes >> 10) << ((nodes & 0x200) >> 6))
        if np.any(bases >= len(units)) or not np.all(is_value[bases[nodes & 0x100 != 0]]):
            raise _damaged("the trie refers to what is not there")
        if np.any(units[is_value] & 0x7FFFFFFF >= len(self._replacements)):
            raise _damaged("a value is no place of a replacement")

    def longest(self, text: str, start: int) -> tuple[int, str] | None:
        """The end of the longest rule that matches at `start`, and its replacement; None if no rule does."""
        character = text[start]
        if character not in self._first:
            self._first[character] = self._step(self._start, character)
        node, replacement = self._first[character]
        best = None if replacement is None else (start + 1, replacement)
        end = start + 1
        while node >= 0 and end < len(text):
            node, replacement = self._step(node, text[end])
            end += 1
            if replacement is not None:
                best = (end, replacement)
        return best

    def shortest(self, text: str) -> str | None:
        """The replacement of the shortest rule that `text` begins with, which may end inside a character's bytes."""
        node = self._start
        for byte in text.encode():
            place = node ^ byte
            unit = self._units[place]
            if byte == 0 or unit & 0x800000FF != byte:
                return None
            node = _base(place, unit)
            if unit & 0x100:
                return self._replacement(node)
        return None

    def _replacement(self, node: int) -> str:
        at = self._units[node] & 0x7FFFFFFF
        return self._replacements[at : self._replacements.index(0, at)].decode()

    def _step(self, node: int, character: str) -> tuple[int, str | None]:
        """The base of the node that `character` leads to (-1: none), and the replacement there, if it has one."""
        units = self._units
        unit = 0
        for byte in character.encode():
            place = node ^ byte
            unit = units[place]
            if byte == 0 or unit & 0x800000FF != byte:
                return -1, None
            node = _base(place, unit)
        return node, self._replacement(node) if unit & 0x100 else None


@lru_cache(maxsize=8)
def read(blob: bytes) -> Rules:
    """The rules of `blob`, read once."""
    return Rules(blob)


def _base(place: int, unit: int) -> int:
    return place ^ ((unit >> 10) << ((unit & 0x200) >> 6))


def _damaged(what: str) -> TokenizerError:
    return TokenizerError(f"the normalisation rules (precompiled_charsmap) are damaged: {what}")


# ---- making one ----


@dataclass
class Tree:
    """Rules as a tree of characters: what replaces the text that leads here (None: it is no rule), and how it goes on.
    One branch may hang in several places: so rules that differ in how a character is written need room once."""

    value: str | None = None
    children: dict[str, Tree] = field(default_factory=dict)

    def add(self, text: Iterable[str], value: str) -> None:
        node = self
        for character in text:
            node = node.children.setdefault(character, Tree())
        node.value = value


def build(rules: Mapping[str, str] | Tree) -> bytes:
    """The bytes of a `precompiled_charsmap` with these rules; the same rules always give the same bytes."""
    if not isinstance(rules, Tree):
        tree = Tree()
        for text, value in sorted(rules.items()):
            tree.add(text, value)
        rules = tree
    nodes, places, root = _Nodes(), dict[str, int](), 0
    branches = list(_branches(rules))
    replacements = b""
    for text in sorted({branch.value for branch in branches if branch.value is not None}):
        places[text] = len(replacements)
        replacements += text.encode() + b"\0"
    number: dict[int, int] = {}
    for branch in branches:
        below = [(character.encode(), number[id(child)]) for character, child in branch.children.items()]
        place = -1 if branch.value is None else places[branch.value]
        root = number[id(branch)] = nodes.add(place, sorted(below))
    trie = _double_array(nodes.all, root)
    return struct.pack(f"<{1 + len(trie)}I", 4 * len(trie), *trie) + replacements


def _branches(tree: Tree) -> Iterator[Tree]:
    """Every branch once, before those from which it grows."""
    seen: set[int] = set()
    todo = [(tree, False)]
    while todo:
        branch, is_done = todo.pop()
        if is_done:
            yield branch
        elif id(branch) not in seen:
            seen.add(id(branch))
            todo.append((branch, True))
            todo += ((child, False) for child in branch.children.values())


Node = tuple[int, tuple[tuple[int, int], ...]]  # its value (-1: none), and which byte leads to which node


class _Nodes:
    """A trie in which equal subtrees are one node; children stand before their parents."""

    def __init__(self) -> None:
        self.all: list[Node] = []
        self._number: dict[Node, int] = {}

    def add(self, value: int, below: list[tuple[bytes, int]]) -> int:
        """The node from which these bytes lead to those nodes; `below` is sorted."""
        children: list[tuple[int, int]] = []
        at = 0
        while at < len(below):
            data, node = below[at]
            first = at
            while at < len(below) and below[at][0][0] == data[0]:
                at += 1
            inner = node if len(data) == 1 else self.add(-1, [(data[1:], child) for data, child in below[first:at]])
            children.append((data[0], inner))
        node_ = (value, tuple(children))
        if node_ not in self._number:
            self._number[node_] = len(self.all)
            self.all.append(node_)
        return self._number[node_]


def _double_array(nodes: list[Node], root: int) -> list[int]:
    """Give every node a base such that no two of them want the same unit: first fit, the largest nodes first."""
    blocks = _Blocks()
    bases: dict[int, int] = {}
    for number in sorted(range(len(nodes)), key=lambda number: (-len(nodes[number][1]), number)):
        value, children = nodes[number]
        bases[number] = blocks.place((*([0] if value >= 0 else []), *(byte for byte, _ in children)))
    units = [0] * (256 * len(blocks.free))
    for number, (value, children) in enumerate(nodes):
        if value >= 0:
            units[bases[number]] = 1 << 31 | value
        for byte, child in children:
            unit = bases[number] ^ byte
            units[unit] = (unit ^ bases[child]) << 10 | (nodes[child][0] >= 0) << 8 | byte
    units[0] = bases[root] << 10
    for block, free in enumerate(blocks.free):  # a free unit's label is one with which no node leads there
        for low in range(256):
            if free >> low & 1:
                taken = blocks.taken[block]
                units[256 * block + low] = next(byte for byte in range(256) if not taken >> (low ^ byte) & 1)
    return units


class _Blocks:
    """The units of a double array, 256 to a block: `base ^ byte` never leaves the block. Bit i of `free` and of `taken`
    says that unit i is nobody's, or is a base: a number of 256 bits answers at once where in a block a node fits."""

    def __init__(self) -> None:
        self.free: list[int] = []
        self.taken: list[int] = []
        self._looked: dict[tuple[int, ...], int] = {}  # in blocks before this one there is no place for these bytes

    def place(self, wanted: tuple[int, ...]) -> int:
        """A base that no other node has, all of whose units of these bytes are free; they are not free then."""
        block = self._looked.get(wanted, 0)
        while True:
            if block == len(self.free):
                is_first = not self.free  # unit 0 is the root's, and SentencePiece refuses a root whose base is 0
                self.free.append(_ALL ^ is_first)
                self.taken.append(int(is_first))
            fits = _ALL ^ self.taken[block] if self.free[block].bit_count() >= len(wanted) else 0
            for byte in wanted:
                if not fits:
                    break
                fits &= _exchanged(self.free[block], byte) if byte else self.free[block]
            if fits:
                break
            block += 1
        self._looked[wanted] = block
        low = (fits & -fits).bit_length() - 1
        self.taken[block] |= 1 << low
        for byte in wanted:
            self.free[block] ^= 1 << (low ^ byte)
        return 256 * block + low


_ALL = (1 << 256) - 1
_SWAPS = [(1 << bit, sum(1 << place for place in range(256) if not place >> bit & 1)) for bit in range(8)]


def _exchanged(bits: int, byte: int) -> int:
    """`bits` with bit i at place i ^ byte."""
    for size, low in _SWAPS:
        if byte & size:
            bits = (bits & low) << size | (bits >> size) & low
    return bits
