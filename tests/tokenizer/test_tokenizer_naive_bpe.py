"""The naive rung: the five points the project began with, each promise of its docstrings, round trips on made text."""

import ast
import inspect
import string
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tinylm.tokenizer import TokenizerError, naive_bpe

CORPUS = (
    "The lower tower is lower than the other tower, and the newest tower is the lowest one.\n"
    "Don't the lowest towers (U.S.A.) show the widest view? They do; they don't show less, she's told!\n"
)
PAPER = {"l o w </w>": 5, "l o w e r </w>": 2, "n e w e s t </w>": 6, "w i d e s t </w>": 3}
ALPHABET = "aabbc  é</w>[UNK]'.,\n\t\r\u00a0\u2028\0"


def train(text: str, number_of_merges: int) -> tuple[list[tuple[str, str]], dict[str, int]]:
    word_freq = naive_bpe.char_spaced_word_freq(text)
    merges = naive_bpe.learn_merges(word_freq, number_of_merges)
    return merges, naive_bpe.build_vocab(word_freq, merges)


def round_trip(text: str, merges: list[tuple[str, str]], vocab: dict[str, int]) -> str:
    return naive_bpe.decode(naive_bpe.encode(text, merges, vocab), vocab)


def single_spaced(text: str) -> str:
    return " ".join(filter(None, text.split(" ")))


# --- The five "Verified" points of the project's beginning ---


def test_full_round_trip_reconstructs_the_text_exactly() -> None:
    merges, vocab = train(CORPUS, 60)
    assert round_trip(CORPUS, merges, vocab) == CORPUS


def test_unknown_characters_map_to_unk() -> None:
    merges, vocab = train("a caf cot", 5)
    ids = naive_bpe.encode("a café", merges, vocab)
    assert ids.count(vocab["[UNK]"]) == 1
    assert naive_bpe.decode(ids, vocab) == "a caf[UNK]"
    assert naive_bpe.decode(naive_bpe.encode("☃ a", merges, vocab), vocab) == "[UNK] a"


def test_replay_is_consistent_with_training() -> None:
    word_freq = naive_bpe.char_spaced_word_freq(CORPUS)
    merges, vocab = train(CORPUS, 40)
    for pair in merges:
        word_freq = naive_bpe.merge(pair, word_freq)
    tokens = list(vocab)
    replayed = [tokens[i] for i in naive_bpe.encode(CORPUS, merges, vocab)]
    trained: dict[str, int] = {}
    for word, freq in word_freq.items():
        for symbol in word.split(" "):
            trained[symbol] = trained.get(symbol, 0) + freq
    assert {token: replayed.count(token) for token in replayed} == trained


def test_punctuation_stands_alone_in_the_vocabulary() -> None:
    _, vocab = train(CORPUS, 500)
    marks = [t.removesuffix("</w>") for t in vocab if t not in naive_bpe.SPECIAL_TOKENS]
    marks = [t for t in marks if any(c in string.punctuation for c in t)]
    assert set(marks) == set(CORPUS) & set(string.punctuation)


def test_no_ghost_tokens_from_consecutive_spaces() -> None:
    merges, vocab = train(CORPUS, 30)
    spaced = "   the    tower  "
    assert naive_bpe.encode(spaced, merges, vocab) == naive_bpe.encode("the tower", merges, vocab)
    assert naive_bpe.char_spaced_word_freq(spaced) == naive_bpe.char_spaced_word_freq("the tower")
    assert "" not in naive_bpe.char_spaced_word_freq(spaced)
    assert naive_bpe.encode("   ", merges, vocab) == naive_bpe.encode("", merges, vocab) == []


# --- Words and markers ---


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("low low", {"l o w </w>": 2}),
        ("Low low", {"L o w </w>": 1, "l o w </w>": 1}),
        ("don't", {"d o n": 1, "'": 1, "t </w>": 1}),
        ("don ' t", {"d o n </w>": 1, "' </w>": 1, "t </w>": 1}),
        ("a, b", {"a": 1, ", </w>": 1, "b </w>": 1}),
        ("U.S.", {"U": 1, ".": 1, "S": 1, ". </w>": 1}),
        ("a\nb", {"a": 1, "\n": 1, "b </w>": 1}),
        ("a\n b", {"a": 1, "\n": 1, "</w>": 1, "b </w>": 1}),
        ("</w>", {"<": 1, "/": 1, "w": 1, "> </w>": 1}),
        ("", {}),
        ("  ", {}),
    ],
)
def test_words_are_their_characters_and_a_marker_where_a_space_or_the_end_was(text: str, words: dict[str, int]) -> None:
    assert naive_bpe.char_spaced_word_freq(text) == words


@given(st.text(ALPHABET))
def test_as_many_markers_as_the_text_has_words_between_spaces(text: str) -> None:
    words = naive_bpe.char_spaced_word_freq(text)
    markers = sum(freq for word, freq in words.items() if word.split(" ")[-1] == "</w>")
    assert markers == len([word for word in text.split(" ") if word])


@pytest.mark.parametrize("text", ["don't", "don ' t", "a , b", "a, b", "</w>", "< / w >", "[UNK] x", "U.S.A.", "a\n b"])
def test_comes_back_as_it_was(text: str) -> None:
    for number_of_merges in (0, 1, 100):
        assert round_trip(text, *train(text, number_of_merges)) == text


@given(st.text(), st.integers(0, 20))
def test_whitespace_enters_no_merge(text: str, number_of_merges: int) -> None:
    merges, _ = train(text, number_of_merges)
    assert not any(c.isspace() for pair in merges for symbol in pair for c in symbol)


@given(st.text(ALPHABET), st.text(ALPHABET), st.integers(0, 30))
@example("</w> </w>", "<</w>></w >", 30)
@example("[UNK] [UNK]", "[ UNK ]", 30)
def test_round_trip_over_a_known_alphabet(corpus: str, text: str, number_of_merges: int) -> None:
    merges, vocab = train(corpus + ALPHABET, number_of_merges)
    ids = naive_bpe.encode(text, merges, vocab)
    assert naive_bpe.decode(ids, vocab) == single_spaced(text)
    assert not set(ids) & set(range(len(naive_bpe.SPECIAL_TOKENS)))  # a literal "[UNK]" is text, never the token


@given(st.text(), st.integers(0, 10))
def test_round_trip_over_all_of_unicode(text: str, number_of_merges: int) -> None:
    assert round_trip(text, *train(text, number_of_merges)) == single_spaced(text)


# --- Algorithm 1 ---


def test_the_papers_own_example() -> None:
    """The listing's dictionary; its first pairs tie (e-s, s-t, t-</w>, all 9), and the first met wins."""
    merges = naive_bpe.learn_merges(PAPER, 10)
    assert [left + right for left, right in merges] == [
        *("es", "est", "est</w>", "lo", "low", "ne", "new", "newest</w>", "low</w>", "wi")
    ]


def test_pairs_are_weighted_by_word_frequency() -> None:
    pairs = naive_bpe.bigram_pair_freq(PAPER)
    assert pairs["e", "s"] == PAPER["n e w e s t </w>"] + PAPER["w i d e s t </w>"]
    assert pairs["w", "</w>"] == PAPER["l o w </w>"]
    assert ("</w>", "l") not in pairs  # never across words
    assert naive_bpe.bigram_pair_freq({"a a a": 2}) == {("a", "a"): 4}


@pytest.mark.parametrize(
    ("pair", "word", "merged"),
    [
        (("a", "b"), "aa b", "aa b"),
        (("a", "b"), "a bb", "a bb"),
        (("a", "b"), "a b a b", "ab ab"),
        (("a", "b"), "b a b a", "b ab a"),
        (("a", "a"), "a a a", "aa a"),
        (("a", "</w>"), "a a </w>", "a a</w>"),
        ((".", "*"), "a b . *", "a b .*"),
        (("a", "b"), "c", "c"),
    ],
)
def test_merge_joins_whole_symbols_only(pair: tuple[str, str], word: str, merged: str) -> None:
    assert naive_bpe.merge(pair, {word: 3}) == {merged: 3}


def test_merge_keeps_the_count_of_words_that_become_the_same() -> None:
    assert naive_bpe.merge(("a", "b"), {"a b": 1, "ab": 2}) == {"ab": 3}


@given(st.text("ab ", min_size=1))
def test_merge_removes_its_pair_and_leaves_its_argument_alone(text: str) -> None:
    word_freq = naive_bpe.char_spaced_word_freq(text)
    before = dict(word_freq)
    merged = naive_bpe.merge(("a", "b"), word_freq)
    assert word_freq == before
    assert ("a", "b") not in naive_bpe.bigram_pair_freq(merged)
    assert sum(merged.values()) == sum(before.values())


def test_learning_stops_when_nothing_is_left_to_merge() -> None:
    merges = naive_bpe.learn_merges(naive_bpe.char_spaced_word_freq("abc abc"), 100)
    assert "".join(merges[-1]) == "abc</w>"
    assert len(merges) == 3
    with pytest.raises(TokenizerError, match="-1"):
        naive_bpe.learn_merges(PAPER, -1)


# --- Vocabulary, ids ---


def test_vocabulary_is_specials_then_characters_then_merges() -> None:
    merges = naive_bpe.learn_merges(PAPER, 5)
    tokens = list(naive_bpe.build_vocab(PAPER, merges).items())
    assert tokens[:4] == [("[UNK]", 0), ("[PAD]", 1), ("[BOS]", 2), ("[EOS]", 3)]
    assert [i for _, i in tokens] == list(range(len(tokens)))
    assert [t for t, _ in tokens[4:]] == [*"deilnorstw", "</w>", *(a + b for a, b in merges)]


def test_vocabulary_is_the_same_from_merged_words() -> None:
    merges = naive_bpe.learn_merges(PAPER, 5)
    merged = PAPER
    for pair in merges:
        merged = naive_bpe.merge(pair, merged)
    assert naive_bpe.build_vocab(merged, merges) == naive_bpe.build_vocab(PAPER, merges)


def test_two_merges_of_one_token_share_its_id() -> None:
    merges = [("a", "b"), ("ab", "c"), ("b", "c"), ("a", "bc")]
    vocab = naive_bpe.build_vocab({"a b c </w>": 1}, merges)
    assert list(vocab).count("abc") == 1
    assert sorted(vocab.values()) == list(range(len(vocab)))


def test_decode_refuses_an_id_that_is_not_there() -> None:
    _, vocab = train("a", 1)
    for stranger in (len(vocab), -1):
        with pytest.raises(TokenizerError, match=str(stranger)):
            naive_bpe.decode([4, stranger], vocab)


# --- What the rung does without ---


def test_no_regular_expressions_and_no_libraries() -> None:
    tree = ast.parse(inspect.getsource(naive_bpe))
    imported = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not [name for name in imported if not name.startswith("tinylm.") and name not in sys.stdlib_module_names]
    assert "re" not in imported


def test_importing_it_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'numpy', 'regex', 'typer', 'rich'}"
    code = f"import sys; from tinylm.tokenizer import naive_bpe; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
