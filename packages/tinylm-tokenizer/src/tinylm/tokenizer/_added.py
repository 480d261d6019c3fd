"""Find special and added tokens in a text: one expression for all of them, leftmost first, longest first.

A tokenizer may have thousands of them (Gemma: 6,414), and trying one after the other at every character would be slow.
So the names become a trie, and the trie a nested expression: `<(?:unused(?:0|1)|/?s)>`. The flags that a tokenizer.json
gives to some (`lstrip` of RoBERTa's <mask>, `rstrip` of Phi-3's <|user|>) are honoured as tokenizers does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import regex

Trie = dict[str, "Trie"]  # character → what may follow it; "" → a name ends here
Part = tuple[int, int, int | None]  # start, end, id of the token that stands for itself, or None for ordinary text

# Unicode's White_Space: str.isspace would also take U+001C to U+001F.
_WHITE = frozenset("\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B))))


@dataclass(frozen=True)
class Flags:
    """How a token is found.

    single_word: only where no letter or digit stands beside it. lstrip, rstrip: the white space before or after it
    belongs to it. normalized: it is looked for after the others, in what is left between them (a text that is
    normalised would be so first: such files are refused where a token has this).
    """

    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False


PLAIN = Flags()


class Certain(NamedTuple):
    """The parts of a text before `start` stay as they are whatever follows it, and from there to `end` it is ordinary
    text that may be cut behind `start`, but not in the stretches `closed` nor at their ends. `fence`: the last end
    of a token, at or before `start`, where it may be cut too."""

    fence: int
    start: int
    end: int
    closed: list[tuple[int, int]]


class Finder:
    """Finds the tokens in `ids` (text → id). flags: of those that are not found just as they are written."""

    def __init__(self, ids: Mapping[str, int], flags: Mapping[str, Flags]) -> None:
        self._ids, self._flags = ids, {name: flags[name] for name in ids if name in flags}
        later = {name for name, flag in self._flags.items() if flag.normalized}
        self._passes = [compiled(names) for names in (ids.keys() - later, later) if names]
        self._longest = max(map(len, ids))
        self._strips = any(flag.lstrip for flag in self._flags.values())
        self._words = any(flag.single_word for flag in self._flags.values())

    def parts(self, text: str) -> Iterator[Part]:
        """The parts of `text`, in order; at least one, if empty. As in tokenizers, a token may begin inside the white
        space that `rstrip` gave to the one before it: such parts overlap."""
        if not text:
            return iter([(0, 0, None)])
        found: Iterator[Part] = iter([(0, len(text), None)])
        for pattern in self._passes:
            found = self._cut(found, pattern, text)
        return found

    def _cut(self, parts: Iterable[Part], pattern: re.Pattern[str], text: str) -> Iterator[Part]:
        for start, end, id in parts:
            if id is not None:
                yield start, end, id
                continue
            done = start
            for found in pattern.finditer(text, start, end):
                name, (left, right) = found.group(), found.span()
                if flags := self._flags.get(name):
                    if flags.single_word and not self._stands_alone(text, left, right, start, end):
                        continue
                    while flags.lstrip and left > done and text[left - 1] in _WHITE:
                        left -= 1
                    while flags.rstrip and right < end and text[right] in _WHITE:
                        right += 1
                    if flags.lstrip and done > left:  # the token before it took white space that it begins with
                        left = done
                        if left >= right:
                            continue
                if left > done:
                    yield done, left, None
                yield left, right, self._ids[name]
                done = right
            if done < end:
                yield done, end, None

    @staticmethod
    def _stands_alone(text: str, left: int, right: int, start: int, end: int) -> bool:
        word = _word()
        return not ((left > start and word.match(text[left - 1])) or (right < end and word.match(text[right])))

    def certain(self, text: str) -> Certain:
        """What is sure about a text that goes on."""
        end = max(len(text) - self._longest + 1, 0)  # no token that is not complete begins before
        end = self._without_white(text, 0, end)
        start = fence = 0
        for left, right, id in self.parts(text):
            if id is None or left >= end:
                continue
            if right > end or right == len(text):  # more white space, a letter or an earlier token may yet come
                end = left
                break
            start = right
            if not self._words or not _word().match(text[right - 1]):  # else a cut would hide it from the next token
                fence = right
        closed: list[tuple[int, int]] = []
        if self._words:  # what stands beside a token decides, and a cut would hide it
            end = max(start, end - 1)
            spans = (found.span() for pattern in self._passes for found in pattern.finditer(text, start))
            closed = [span for span in spans if span[0] <= end]
        return Certain(fence, start, max(start, self._without_white(text, start, end)), sorted(closed))

    def may_cut(self, text: str, place: int) -> bool:
        """Whether text[:place] and text[place:] have the parts that `text` has, ordinary text joined."""
        behind = ((place + start, place + end, id) for start, end, id in self.parts(text[place:]))
        return _joined([*self.parts(text[:place]), *behind]) == _joined(self.parts(text))

    def _without_white(self, text: str, start: int, end: int) -> int:
        """The end of text[start:end] without the white space that a token which may follow it would take."""
        while self._strips and end > start and text[end - 1] in _WHITE:
            end -= 1
        return end


def _joined(parts: Iterable[Part]) -> list[Part]:
    """The parts, with neighbours of ordinary text as one."""
    joined: list[Part] = []
    for start, end, id in parts:
        if id is None and joined and joined[-1][2] is None:
            start = joined.pop()[0]
        joined.append((start, end, id))
    return joined


def compiled(names: Iterable[str]) -> re.Pattern[str]:
    """A pattern that matches the longest of `names` at the leftmost place."""
    names = sorted(names, key=len, reverse=True)
    root: Trie = {}
    for name in names:
        node = root
        for character in name:
            node = node.setdefault(character, {})
        node[""] = {}
    try:
        return re.compile(_expression(root))
    except RecursionError:  # hundreds of names, each the beginning of the next one
        return re.compile("|".join(map(re.escape, names)))


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


def whole(find: Finder | None, text: str) -> Iterator[Part]:
    """The parts of `text`; all of it is ordinary text if there is nothing to find."""
    return find.parts(text) if find else iter([(0, len(text), None)])


@cache
def _word() -> regex.Pattern[str]:
    r"""A character of a word: \w of Unicode 16.0, as in tokenizers 0.23."""
    import regex

    from tinylm.tokenizer._text.pretokenize import _pinned

    letters, marks, numbers = (_pinned(rf"\p{{{name}}}") for name in "LMN")
    circled = "\u24b6-\u24e9\U0001f130-\U0001f149\U0001f150-\U0001f169\U0001f170-\U0001f189"
    others = rf"[{numbers}&&[\p{{Nd}}\p{{Nl}}]]|[\p{{Pc}}\u200c\u200d{circled}]"
    return regex.compile(f"{letters}|{marks}|{others}", regex.VERSION1)
