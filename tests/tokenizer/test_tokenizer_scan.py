"""Cutting text into pieces: the Python rung, the kernel's readable reference and its fast path give the same pieces."""

import itertools
from re import findall
from typing import Any

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylm.tokenizer import TokenizerError, kernels
from tinylm.tokenizer._text import pretokenize
from tinylm.tokenizer._text.pretokenize import split
from tinylm.tokenizer._text.unicode_runs import RUNS
from tinylm.tokenizer.patterns import PATTERNS, TRAINABLE

STAGES = {name: (name,) for name in TRAINABLE} | {"digits_gpt2": ("digits", "gpt2")}

# What pre-tokenisation has to think about. U+0558 and U+A7CE became letters after Unicode 16.0, U+0295 another kind.
TRICKY = [
    *(" ", "  ", "     ", "\n", "\r\n", "\n\n", "\t", "\u00a0", "\u3000", "\x85", "\x1c", "\v", "\x00"),
    *("'", "'s", "'LL", "'ſ", "'re", "don't", "'vex", "’s", "!", "?!", "/", "//", "_", "<|im_start|>", "...", "§"),
    *("x", "A", "Été", "ABc", "aB", "ǅ", "ʰ", "日本", "中A", "ⅷ", "½", "7", "42", "123", "12345", "٣٤", "\u0558"),
    *("e\u0301", "\u0301", "किं", "\u200d", "\ufe0f", "👩‍👧", "\u0e01\u0e33", "\ua7ce", "ʕ", "😀"),
]
tricky = st.lists(st.one_of(st.sampled_from(TRICKY), st.text(max_size=3)), max_size=80).map("".join)


def compiled() -> Any:
    module = kernels._compiled()
    return module or pytest.skip("the compiled kernel is not installed")


def pieces_everywhere(name: str, text: str) -> list[bytes]:
    """The pieces, after a look at whether all three ways of cutting give the same."""
    data = text.encode()
    pieces = [piece.encode() for piece in split(text, STAGES[name])]
    ends = list(itertools.accumulate(map(len, pieces)))
    assert b"".join(pieces) == data
    assert compiled().piece_ends(name, text, reference=True).tolist() == ends
    assert compiled().piece_ends(name, text).tolist() == ends
    return pieces


@pytest.mark.parametrize("name", STAGES)
def test_every_way_of_cutting_gives_the_same_pieces(name: str) -> None:
    @given(tricky)
    @settings(deadline=None, max_examples=400)
    def same(text: str) -> None:
        pieces_everywhere(name, text)

    same()


def in_contexts(characters: list[str]) -> str:
    return "".join(f"a{c} {c}1{c}.{c}A{c}  {c}\n{c}\n" for c in characters)


@pytest.mark.parametrize("name", STAGES)
def test_every_character_in_its_contexts(name: str) -> None:
    """The Python rung with the first and the last character of each run of one class: the classes are tested below."""
    starts = itertools.accumulate((int(length) for length in findall(r"\d+", RUNS)), initial=0)
    edges = [chr(code) for start in starts for code in (start - 1, start) if 0 <= code < 0x110000]
    pieces_everywhere(name, in_contexts([c for c in edges if not "\ud800" <= c < "\ue000"]))
    text = in_contexts([chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000])
    assert (compiled().piece_ends(name, text) == compiled().piece_ends(name, text, reference=True)).all()


def test_masks_of_every_byte_at_every_place() -> None:
    """A processor with AVX-512 compares 64 bytes at once, another one 16: each byte gets the same bits."""
    texts = (bytes((start + place) % 256 for place in range(64)) for start in range(256))
    assert {compiled().masks_agree(text) for text in texts} <= {True, None}


UNITS = ["a", "A", " ", "\n", " \n", "1", "'", "'s", "!", "\u0301", "中", "中A", "😀", " a", "aB", "\u3000"]


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("unit", UNITS)
def test_runs_of_every_length(name: str, unit: str) -> None:
    for length in [*range(60, 70), *range(125, 132), 1000]:
        for start, end in [("", ""), ("x", "y"), (" ", "\n"), ("!", "1"), ("é", "é")]:
            pieces_everywhere(name, start + unit * length + end)


def test_pieces_by_hand() -> None:
    assert pieces_everywhere("cl100k", "don't  stop\n\n  12345!\n") == [
        *(b"don", b"'t", b" ", b" stop", b"\n\n", b" ", b" ", b"123", b"45", b"!\n")
    ]
    assert pieces_everywhere("o200k", "C'ſ'Sm 中AB") == ["C'ſ".encode(), b"'Sm", " 中".encode(), b"AB"]
    assert pieces_everywhere("digits_gpt2", "a  12 b") == [b"a", b"  ", b"1", b"2", b" b"]


CLASSES = [r"\p{L}", r"\p{Lu}\p{Lt}", r"\p{Ll}", r"\p{Lm}\p{Lo}", r"\p{M}", r"\p{N}", r"\s"]


@pytest.mark.parametrize("unicode_class", CLASSES)
def test_classes_are_those_of_tiktoken(unicode_class: str) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    bytes_only = {bytes([byte]): byte for byte in range(256)}
    reference = tiktoken.Encoding("", pat_str=f"[{unicode_class}]", mergeable_ranks=bytes_only, special_tokens={})
    everything = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    ours = pretokenize._pinned(unicode_class) if unicode_class in pretokenize._LETTERS else f"[{unicode_class}]"
    found = "".join(regex.findall(ours, everything, regex.VERSION1))
    assert found.encode() == bytes(reference.encode_ordinary(everything))  # what does not match has no id


def test_unknown_names_are_refused() -> None:
    with pytest.raises(TokenizerError, match="unknown pattern 'magic'"):
        split("text", ("magic",))
    with pytest.raises(ValueError, match="unknown pattern"):
        compiled().piece_ends("magic", "text")


@pytest.mark.parametrize("name", PATTERNS)
def test_the_quick_pattern_cuts_like_the_pinned_one(name: str) -> None:
    """Where no character differs from Unicode 16.0 the classes of the installed `regex` are used as they are."""
    _, differing = pretokenize._differing_characters(name)
    pinned, installed = pretokenize.compiled(name), pretokenize.compiled(name, pinned=False)
    assert pretokenize._pattern_for(name, "déjà 日本 😀 ½") is pretokenize._pattern_for(name, "plain") is installed
    for character in sorted(differing)[:: len(differing) // 50 + 1]:
        assert pretokenize._pattern_for(name, f"é {character}a") is pinned

    @given(tricky)
    @settings(deadline=None)
    def same(text: str) -> None:
        assert pretokenize._pattern_for(name, text).findall(text) == pinned.findall(text)

    same()
