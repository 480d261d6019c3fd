"""Find special and added tokens in a text: one expression for all of them, leftmost first, longest first.

A tokenizer may have thousands of them (Gemma: 6,414), and trying one after the other at every character would be slow.
So the names become a trie, and the trie a nested expression: `<(?:unused(?:0|1)|/?s)>`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

Trie = dict[str, "Trie"]  # character → what may follow it; "" → a name ends here


def finder(names: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern that matches the longest of `names` at the leftmost place; None if there are no names."""
    root: Trie = {}
    for name in names:
        node = root
        for character in name:
            node = node.setdefault(character, {})
        node[""] = {}
    return re.compile(_expression(root)) if root else None


def _expression(node: Trie) -> str:
    """The expression for all that can follow; longer names come first, because "?" is greedy."""
    tail = ""  # a run of characters without a branch is walked in a loop: names may be longer than the recursion limit
    while len(node) == 1 and "" not in node:
        (character, node) = next(iter(node.items()))
        tail += re.escape(character)
    branches = [re.escape(character) + _expression(after) for character, after in sorted(node.items()) if character]
    if not branches:
        return tail
    return f"{tail}(?:{'|'.join(branches)}){'?' if '' in node else ''}"


def parts(find: re.Pattern[str] | None, text: str, ids: Mapping[str, int]) -> Iterator[tuple[int, int, int | None]]:
    """The parts of `text`: (start, end, id of the token that stands for itself, or None for ordinary text)."""
    start = 0
    for found in find.finditer(text) if find else ():
        if found.start() > start:
            yield start, found.start(), None
        yield found.start(), found.end(), ids[found.group()]
        start = found.end()
    if start == 0 or start < len(text):
        yield start, len(text), None
