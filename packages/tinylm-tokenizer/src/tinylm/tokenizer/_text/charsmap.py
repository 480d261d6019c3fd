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
from collections.abc import Mapping
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

Node = tuple[int, tuple[tuple[int, int], ...]]  # its value (-1: none), and which byte leads to which node


def build(rules: Mapping[str, str]) -> bytes:
    """The bytes of a `precompiled_charsmap` with these rules; the same rules always give the same bytes."""
    places: dict[str, int] = {}
    replacements = b""
    for text in sorted(set(rules.values())):
        places[text] = len(replacements)
        replacements += text.encode() + b"\0"
    trie = _double_array(_minimal_trie({key.encode(): places[value] for key, value in rules.items()}))
    return struct.pack(f"<{1 + len(trie)}I", 4 * len(trie), *trie) + replacements


def _minimal_trie(values: dict[bytes, int]) -> list[Node]:
    """A trie in which equal subtrees are one node; children stand before their parents, the root at the end."""
    nodes: list[Node] = []
    number: dict[Node, int] = {}
    keys = sorted(values)

    def make(start: int, end: int, depth: int) -> int:
        value = -1
        if len(keys[start]) == depth:
            value = values[keys[start]]
            start += 1
        children = []
        while start < end:
            byte = keys[start][depth]
            stop = start + 1
            while stop < end and keys[stop][depth] == byte:
                stop += 1
            children.append((byte, make(start, stop, depth + 1)))
            start = stop
        node = (value, tuple(children))
        if node not in number:
            number[node] = len(nodes)
            nodes.append(node)
        return number[node]

    make(0, len(keys), 0)
    return nodes


def _double_array(nodes: list[Node]) -> list[int]:
    """Give every node a base such that no two of them want the same unit: first fit, the largest nodes first."""
    units: list[int] = []
    free: set[int] = set()
    bases: dict[int, int] = {}
    taken = {0}  # bases; SentencePiece refuses a root whose base is 0
    looked: dict[tuple[int, ...], int] = {}  # below this unit there is no place for these bytes, and never will be

    def place(wanted: tuple[int, ...]) -> int:
        for unit in range(looked.get(wanted, 1), len(units)):
            base = unit ^ wanted[0]
            if unit in free and base not in taken and all(base ^ byte in free for byte in wanted):
                looked[wanted] = unit + 1
                return base
        looked[wanted] = max(len(units), 1)  # unit 0 is the root's
        free.update(range(looked[wanted], len(units) + 256))
        units.extend([0] * 256)
        return place(wanted)

    for number in sorted(range(len(nodes)), key=lambda number: (-len(nodes[number][1]), number)):
        value, children = nodes[number]
        wanted = (*([0] if value >= 0 else []), *(byte for byte, _ in children))
        base = bases[number] = place(wanted)
        taken.add(base)
        for byte in wanted:
            free.remove(base ^ byte)
    for number, (value, children) in enumerate(nodes):
        if value >= 0:
            units[bases[number]] = 1 << 31 | value
        for byte, child in children:
            unit = bases[number] ^ byte
            units[unit] = (unit ^ bases[child]) << 10 | (nodes[child][0] >= 0) << 8 | byte
    units[0] = bases[len(nodes) - 1] << 10
    for unit in free:  # nobody's: a label that leads here from no node
        units[unit] = next(byte for byte in range(256) if unit ^ byte not in taken)
    return units
