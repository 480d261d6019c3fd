"""The rungs of byte-level BPE against each other, and against Hugging Face's trainer."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylm.tokenizer import Tokenizer, TokenizerError, byte_bpe, byte_bpe_fast, kernels, ladder
from tinylm.tokenizer._engines.vocabulary import from_training
from tinylm.tokenizer._formats.json_byte_level import to_printable
from tinylm.tokenizer._text.pretokenize import count_pieces, split
from tinylm.tokenizer.patterns import PATTERNS, TRAINABLE

few_letters = st.text("ab c", max_size=60)


@given(st.dictionaries(st.one_of(few_letters, st.text(max_size=8)), st.integers(1, 5), max_size=8), st.integers(0, 40))
def test_every_rung_learns_the_same_merges(pieces: dict[str, int], wanted: int) -> None:
    plain = byte_bpe.train_merges(pieces, wanted)
    assert byte_bpe_fast.train_merges(pieces, wanted) == plain
    assert kernels.train_merges(pieces, wanted) == plain


@given(st.lists(few_letters, max_size=5), st.one_of(few_letters, st.text(max_size=300), st.text("ab", min_size=200)))
@settings(deadline=None)
def test_every_rung_gives_the_same_ids(corpus: list[str], text: str) -> None:
    merges = byte_bpe.train([*corpus, "abab aab abc aaa"], 256 + 20, "gpt2")
    vocabulary = from_training(merges, [], "gpt2")
    plain = byte_bpe.encode(text, merges, "gpt2")
    assert byte_bpe_fast.Encoder(vocabulary).encode(text) == plain
    assert kernels.make_encoder(vocabulary).encode(text) == plain
    assert byte_bpe.decode(plain, merges) == text


@given(st.text("ab", min_size=60, max_size=700))
@settings(deadline=None)
def test_short_and_long_pieces_are_merged_alike(piece: str) -> None:
    merges = byte_bpe.train_merges({"abbabaab" * 3: 1, "aaaabab": 2}, 12)
    plain = byte_bpe.encode_piece(piece.encode(), {pair: rank for rank, pair in enumerate(merges)})
    vocabulary = from_training(merges, [], "gpt2")
    assert byte_bpe_fast.Encoder(vocabulary).encode(piece) == plain
    assert kernels.make_encoder(vocabulary).encode(piece) == plain


def test_the_algorithm_by_hand() -> None:
    assert byte_bpe.merge([1, 1, 1], (1, 1), 9) == [9, 1]
    a, b = byte_bpe.ID_OF_BYTE[ord("a")], byte_bpe.ID_OF_BYTE[ord("b")]
    # "abab" twice: (a, b) stands 4 times, then the pair of the new id 256 with itself twice.
    assert byte_bpe.train_merges({"abab": 2}, 5) == [(a, b), (256, 256)]


def test_ties_go_to_the_smallest_pair() -> None:
    ids = [byte_bpe.ID_OF_BYTE[ord(letter)] for letter in "abcd"]
    assert byte_bpe.train_merges({"cd": 1, "ab": 1}, 1) == [(ids[0], ids[1])]
    assert kernels.train_merges({"cd": 1, "ab": 1}, 1) == [(ids[0], ids[1])]


@pytest.mark.parametrize("pattern", ["gpt2", "llama3"])
def test_merges_equal_hugging_face(pattern: str, corpus: list[str]) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    reference = tokenizers.Tokenizer(tokenizers.models.BPE())
    pieces = count_pieces(corpus, (pattern,))
    split_regex = tokenizers.Regex(PATTERNS[pattern])
    reference.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(split_regex, "isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    reference.train_from_iterator(corpus, trainer)
    mine = from_training(kernels.train_merges(pieces, 600 - 256), [], pattern)

    assert {to_printable(token): id for id, token in mine.tokens.items()} == reference.get_vocab()


@pytest.mark.parametrize("pattern", TRAINABLE)
@given(text=st.text())
@settings(deadline=None)  # the first one compiles the patterns
def test_patterns_lose_nothing(pattern: str, text: str) -> None:
    assert "".join(split(text, (pattern,))) == text
    assert "".join(split(text, ("digits", "gpt2"))) == text


def test_a_million_equal_letters(tok: Tokenizer, python_tok: Tokenizer) -> None:
    text = "a" * 1_000_000
    ids = tok.encode(text)
    assert tok.decode(ids) == text
    assert python_tok.encode(text[:100_000]) == tok.encode(text[:100_000])


def test_corpus_without_enough_pairs_stops_and_says_so() -> None:
    with pytest.warns(UserWarning, match="259 tokens instead of 1000"):
        tokenizer = Tokenizer.train(["abc"], vocab_size=1000)
    assert tokenizer.vocab_size == 256 + 2 + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 256}, "at least 257"),
        ({"vocab_size": "many"}, "at least 257"),
        ({"vocab_size": 300, "algorithm": "magic"}, "unknown algorithm"),
        ({"vocab_size": 300, "pattern": "digits"}, "unknown pattern"),
        ({"vocab_size": 300, "special_tokens": "<eos>"}, "a list of special tokens"),
        ({"vocab_size": 300, "special_tokens": ["<a>", "<a>"]}, "differ"),
        ({"vocab_size": 300, "special_tokens": [""]}, "not empty"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.train(["text"], **options)  # type: ignore[arg-type]  # wrong on purpose


def test_wrong_corpora_are_refused() -> None:
    with pytest.raises(TokenizerError, match="empty"):
        Tokenizer.train([], vocab_size=300)
    with pytest.raises(TokenizerError, match="lone surrogate U\\+D800"):
        Tokenizer.train(["a\ud800"], vocab_size=300)
    with pytest.raises(TokenizerError, match="got int"):
        Tokenizer.train([3], vocab_size=300)  # type: ignore[list-item]  # wrong on purpose


def test_training_does_not_depend_on_how_the_corpus_is_split(corpus: list[str]) -> None:
    lines = [line for text in corpus for line in text.splitlines(keepends=True)]
    together = kernels.train_merges(count_pieces(lines, ("gpt2",)), 100)
    counts: Counter[str] = Counter()
    for line in reversed(lines):
        counts += count_pieces([line], ("gpt2",))
    assert kernels.train_merges(counts, 100) == together


def test_python_training_tells_its_backend(without_kernel: None) -> None:
    kernels._warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="without its compiled kernel"):
        tokenizer = Tokenizer.train(["hello hello hello"], vocab_size=260)
    assert tokenizer.backend == "python"


def test_ladder_rungs_give_equal_results() -> None:
    results: dict[tuple[str, str], object] = {}
    for rung in ladder.rungs():
        results[rung["ladder"], rung["rung"]] = result = rung["run"](rung["make"](5000))
        assert rung["amount"](rung["make"](5000)) > 0
        if rung["equals"]:
            assert rung["compare"](result, results[rung["ladder"], rung["equals"]]) == 0.0
            assert rung["compare"](result, []) == 1.0
