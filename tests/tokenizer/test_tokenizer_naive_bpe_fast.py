"""The incremental naive rung: merges and ids identical to `naive_bpe` on any text, ties included."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tinylm.tokenizer import TokenizerError, naive_bpe, naive_bpe_fast
from tinylm.tokenizer.ladder import made_text

FEW = "aabbc  é</w>[UNK]'.,\n\t\r\u00a0\u2028\0"
words = st.text("ab", min_size=1, max_size=12).map(" ".join)  # few letters: ties and repeated pairs everywhere


def same(text: str, other: str, number_of_merges: int) -> None:
    word_freq = naive_bpe.char_spaced_word_freq(text)
    assert list(naive_bpe_fast.char_spaced_word_freq(text).items()) == list(word_freq.items())
    merges = naive_bpe.learn_merges(word_freq, number_of_merges)
    assert naive_bpe_fast.learn_merges(word_freq, number_of_merges) == merges
    vocab = naive_bpe.build_vocab(word_freq, merges)
    for sample in (text, other):
        assert naive_bpe_fast.encode(sample, merges, vocab) == naive_bpe.encode(sample, merges, vocab)


@given(st.text(FEW), st.text(FEW), st.integers(0, 40))
@example("aaaa aaa aa a", "aaaaaaa", 10)
def test_few_characters_many_ties(text: str, other: str, number_of_merges: int) -> None:
    same(text, other, number_of_merges)


@given(st.text("ab ", max_size=200), st.text("ab ", max_size=200), st.integers(0, 60))
def test_two_letters(text: str, other: str, number_of_merges: int) -> None:
    same(text, other, number_of_merges)


@given(st.text(), st.text(), st.integers(0, 20))
def test_all_of_unicode(text: str, other: str, number_of_merges: int) -> None:
    same(text, other, number_of_merges)


@given(st.dictionaries(words, st.integers(0, 5)), st.integers(0, 30))
def test_words_with_any_frequencies(word_freq: dict[str, int], number_of_merges: int) -> None:
    assert naive_bpe_fast.learn_merges(word_freq, number_of_merges) == naive_bpe.learn_merges(
        word_freq, number_of_merges
    )


@given(
    st.lists(st.tuples(st.text("ab", min_size=1, max_size=4), st.text("ab", min_size=1, max_size=4))), st.text("ab ")
)
@example([("a", "b"), ("ab", "a"), ("b", "a"), ("a", "ba"), ("ab", "a")], "aba abab")
def test_merges_that_no_training_would_learn(merges: list[tuple[str, str]], text: str) -> None:
    """A pair twice, a symbol made in two ways, a merge that comes too late: the replay decides, and it is the same."""
    vocab = naive_bpe.build_vocab(naive_bpe.char_spaced_word_freq(text), merges)
    assert naive_bpe_fast.encode(text, merges, vocab) == naive_bpe.encode(text, merges, vocab)


@pytest.mark.parametrize("number_of_merges", [0, 1, 400])
def test_text_that_looks_like_a_language(number_of_merges: int) -> None:
    same(made_text(6000), made_text(3000, seed=1), number_of_merges)


def test_one_long_word() -> None:
    same("ab" * 3000 + "a" * 3000, "b" * 500, 30)


def test_a_negative_number_of_merges_is_refused() -> None:
    with pytest.raises(TokenizerError, match="-1"):
        naive_bpe_fast.learn_merges({"a b": 1}, -1)
