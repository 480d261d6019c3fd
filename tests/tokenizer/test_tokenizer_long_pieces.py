"""One piece of any length: merged a window at a time by the kernel, through a heap in Python, and by the rung to read.

The vocabularies are small and made at random, so that merges cross every end of a window, tokens lie within tokens, and
some tokens cannot be reached by merging. Every text is one piece: letters only.
"""

import itertools
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylm.tokenizer import Tokenizer, byte_bpe_fast, kernels
from tinylm.tokenizer._engines.vocabulary import Merge3, RankedMerges, Vocabulary
from tinylm.tokenizer.patterns import PATTERNS

BYTES = {byte: bytes([byte]) for byte in range(256)}
words = st.text("abc", min_size=2, max_size=9).map(str.encode)


def ranked(tokens: list[bytes]) -> Vocabulary:
    """Any two neighbours merge whose bytes together are a token, the lowest id first; what is a token stays one."""
    known = BYTES | dict(enumerate(dict.fromkeys(tokens), 256))
    return Vocabulary(known, RankedMerges(known), stages=("gpt2",), whole_piece_first=True)


def listed(choices: list[tuple[int, int]]) -> Vocabulary:
    """A list of merges; each joins two of "a", "b", "c" and of what earlier ones made."""
    made, tokens, merges = [97, 98, 99], dict(BYTES), list[Merge3]()
    for left, right in choices:
        a, b = made[left % len(made)], made[right % len(made)]
        if tokens[a] + tokens[b] in tokens.values():
            continue
        tokens[256 + len(merges)] = tokens[a] + tokens[b]
        made.append(256 + len(merges))
        merges.append((a, b, made[-1]))
    return Vocabulary(tokens, merges, stages=("gpt2",))


def by_definition(vocabulary: Vocabulary, text: str) -> list[int]:
    """Again and again, merge the leftmost pair of the lowest rank (the id it makes, or its place in the list)."""
    whole = [id for id, token in vocabulary.tokens.items() if vocabulary.whole_piece_first and token == text.encode()]
    if whole:
        return whole
    found: dict[tuple[int, int], tuple[int, int]] = {}
    for place, (left, right, result) in enumerate(vocabulary.merges):
        found.setdefault((left, right), (result if vocabulary.ranked else place, result))
    ids = [vocabulary.byte_ids()[byte] for byte in text.encode()]
    while pairs := [(*found[pair], at) for at, pair in enumerate(itertools.pairwise(ids)) if pair in found]:
        _, result, at = min(pairs, key=lambda pair: pair[0])
        ids[at : at + 2] = [result]
    return ids


@pytest.mark.parametrize("kind", ["ranked", "listed"])
def test_random_vocabularies_on_every_rung(kind: str) -> None:
    @given(
        st.lists(words, min_size=1, max_size=30).map(ranked)
        if kind == "ranked"
        else st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=30).map(listed),
        st.lists(st.tuples(st.text("abc", min_size=1, max_size=20), st.integers(1, 40)), min_size=1, max_size=4),
    )
    @settings(deadline=None, max_examples=80)
    def same(vocabulary: Vocabulary, parts: list[tuple[str, int]]) -> None:
        text = "".join(part * times for part, times in parts)[:500]
        ids = by_definition(vocabulary, text)
        assert byte_bpe_fast.Encoder(vocabulary).encode(text) == ids
        assert kernels.make_encoder(vocabulary).encode(text) == ids
        if len(text) > 20:  # long enough for many windows; the Python rung is the reference
            long = text * (5000 // len(text))
            assert kernels.make_encoder(vocabulary).encode(long) == byte_bpe_fast.Encoder(vocabulary).encode(long)

    same()


def chain(length: int, as_list: bool) -> Vocabulary:
    """Neighbours of a row of characters merge, the last pair first: what a text gives depends on its far end."""
    characters = [chr(0x4E00 + number).encode() for number in range(length)]
    starts = sorted({character[:2] for character in characters})
    tokens = [*BYTES.values(), *starts, *characters, *(a + b for a, b in reversed([*itertools.pairwise(characters)]))]
    known = dict(enumerate(tokens))
    ids = {token: id for id, token in known.items()}
    if not as_list:
        return Vocabulary(known, RankedMerges(known), stages=("gpt2",), whole_piece_first=True)
    cuts = [(1 if len(token) == 2 else 2 if len(token) == 3 else 3, token) for token in tokens[256:]]
    merges = [(ids[token[:cut]], ids[token[cut:]], ids[token]) for cut, token in cuts]
    return Vocabulary(known, merges, stages=("gpt2",))


@pytest.mark.parametrize("as_list", [False, True])
def test_merges_that_reach_far_beyond_a_window(as_list: bool) -> None:
    row = "".join(chr(0x4E00 + number) for number in range(900))
    vocabulary = chain(len(row), as_list)
    kernel, python = kernels.make_encoder(vocabulary), byte_bpe_fast.Encoder(vocabulary)
    for text in (row, row[:-1], row[1:], row[100:401] * 3, row + row[:450] + row[:77] * 9, row[::-1], row[5:] * 20):
        assert kernel.encode(text) == python.encode(text)
        assert kernel.encode(text[:100]) == by_definition(vocabulary, text[:100])


@pytest.mark.parametrize("name", ["cl100k", "o200k"])
def test_real_vocabularies(name: str, vocabulary: Callable[[str], Path]) -> None:
    """What makes a careless merge loop quadratic."""
    tokenizer = Tokenizer.load(vocabulary(name))
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {token: id for id, token in tokenizer.engine.vocabulary.tokens.items()}
    reference = tiktoken.Encoding(name, pat_str=PATTERNS[name], mergeable_ranks=ranks, special_tokens={})
    chance = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    for alphabet in ("a", " ", "=", "-", "ab", letters, "😀🎉👍🏽🤖", "日本語中文", "\u0301", "ꙮ", " \t", "=-_*#"):
        for size in (60, 200, 241, 250, 300, 5000, 20_000):
            text = "".join(chance.choices(alphabet, k=size))
            assert tokenizer.encode(text) == reference.encode_ordinary(text)
            ids = tokenizer.encode(text + letters)
            assert ids == reference.encode_ordinary(text + letters)
            assert tokenizer.encode_array(text + letters).tolist() == ids
    bpe_openai = pytest.importorskip("bpe_openai").get_encoding(f"{name}_base")
    for alphabet in ("a", " ", letters, "\u0301", "😀🎉👍🏽🤖"):
        text = "".join(chance.choices(alphabet, k=60_000))
        assert tokenizer.encode(text) == bpe_openai.encode(text)
