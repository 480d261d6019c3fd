"""WordPiece files and training: tokenizer.json both ways, vocab.txt, bad files, what is learned."""

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinylm.tokenizer import Tokenizer, TokenizerError, wordpiece
from tinylm.tokenizer._trainers.wordpiece import learn, likelihood_gain, ratio
from tinylm.tokenizer.ladder import made_text

tokenizers = pytest.importorskip("tokenizers")


@pytest.fixture(scope="session")
def small() -> Tokenizer:
    return Tokenizer.train([made_text(30_000), "Größe 你好 don't!"], vocab_size=400, algorithm="wordpiece")


# ---- training ----


def test_the_gain_is_that_of_the_likelihood() -> None:
    """Joining a pair in a real corpus changes its log-likelihood by exactly what the function says."""

    def log_likelihood(pieces: list[str]) -> float:
        return sum(n * math.log(n / len(pieces)) for n in Counter(pieces).values())

    before, after = list("abcabcabdxbay"), ["ab", "c", "ab", "c", "ab", *"dxbay"]
    gain = likelihood_gain(*(np.array([float(n)]) for n in (3, 4, 4)), 13.0)
    assert gain[0] == pytest.approx(log_likelihood(after) - log_likelihood(before))


def naive(words: dict[tuple[str, ...], int], wanted: int, score: Any) -> list[str]:
    """The same from the definition: every count anew after every join."""
    pieces: list[str] = []
    seen: dict[tuple[str, str], None] = {}
    known = {piece for word in words for piece in word}
    current = [[list(word), freq] for word, freq in words.items()]
    while len(pieces) < wanted:
        count, pairs = Counter[str](), Counter[tuple[str, str]]()
        for word, freq in current:
            for piece in word:
                count[piece] += freq
            for pair in itertools.pairwise(word):
                pairs[pair] += freq
                seen.setdefault(pair)
        alive = [pair for pair in seen if pairs[pair]]
        if not alive:
            break
        columns = [
            [float(pairs[pair]) for pair in alive],
            *([float(count[pair[side]]) for pair in alive] for side in (0, 1)),
        ]
        scores = score(*map(np.array, columns), float(count.total()))
        if max(scores) <= 0:
            break
        left, right = best = alive[int(np.argmax(scores))]
        for entry in current:
            word, merged = entry[0], []
            for piece in word:
                if merged and (merged[-1], piece) == best:
                    merged[-1] = left + right.removeprefix("##")
                else:
                    merged.append(piece)
            entry[0] = merged
        name = left + right.removeprefix("##")
        if name not in known:
            known.add(name)
            pieces.append(name)
    return pieces


@pytest.mark.parametrize("score", [likelihood_gain, ratio])
@given(word_freq=st.dictionaries(st.text("abc", min_size=1, max_size=7), st.integers(1, 9), max_size=8))
def test_incremental_counts_are_those_of_counting_anew(score: Any, word_freq: dict[str, int]) -> None:
    words = {(word[0], *(f"##{c}" for c in word[1:])): freq for word, freq in word_freq.items()}
    got = learn(words, 12, lambda left, right: left + right.removeprefix("##"), score)
    assert got == naive(words, 12, score)


def test_a_trained_vocabulary_covers_its_corpus(small: Tokenizer) -> None:
    assert small.vocab_size == 400
    assert list(small.special_tokens) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    ids = small.encode(made_text(5000))
    assert small.special_tokens["[UNK]"] not in ids
    assert len(ids) < 0.5 * 5000
    assert small.decode(small.encode("grosse 你好 don't!")) == "grosse 你 好 don ' t!"
    assert (small.bos_id, small.eos_id) == (2, 3)


def test_training_does_not_depend_on_the_cut_into_texts() -> None:
    text = made_text(20_000)
    lines = text.splitlines(keepends=True)
    one = Tokenizer.train([text], vocab_size=300, algorithm="wordpiece")
    assert one.engine.files() == Tokenizer.train(lines, vocab_size=300, algorithm="wordpiece").engine.files()


def test_the_score_decides_what_is_learned() -> None:
    word_freq = {"aab": 90, "ab": 90, "xy": 2}
    by_ratio = wordpiece.train(word_freq, 30, [], score=ratio)
    assert list(by_ratio.tokens)[5] == "xy"  # the rarest first
    by_gain = wordpiece.train(word_freq, 30, [])
    assert list(by_gain.tokens)[5] != "xy"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 5}, "from 6 to"),
        ({"vocab_size": 8}, "at least"),
        ({"vocab_size": 300, "special_tokens": "[X]"}, "list of special tokens"),
        ({"vocab_size": 300, "special_tokens": ["x", "x"]}, "differ"),
        ({"vocab_size": 300, "pattern": "gpt2"}, "pattern="),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.train([made_text(1000)], algorithm="wordpiece", **options)


def test_a_small_corpus_gives_a_smaller_vocabulary_and_a_warning() -> None:
    with pytest.warns(UserWarning, match="no further piece"):
        assert Tokenizer.train(["ab ab ab"], vocab_size=100, algorithm="wordpiece").vocab_size == 8
    with pytest.raises(TokenizerError, match="empty"):
        Tokenizer.train([" \n "], vocab_size=100, algorithm="wordpiece")


# ---- files ----


def test_saved_files_open_in_the_reference_and_here(small: Tokenizer, tmp_path: Path, mixed: str) -> None:
    small.save(tmp_path)
    reference = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    again = Tokenizer.load(tmp_path)
    for text in (mixed, made_text(2000), "[CLS] a [MASK]"):
        ids = small.encode(text, allowed_special="all", add_special_tokens=True)
        assert reference.encode(text).ids == ids == again.encode(text, allowed_special="all", add_special_tokens=True)
    assert reference.encode("a", "b").type_ids == [0, 0, 0, 1, 1]
    assert again.engine.files() == small.engine.files()


def test_transformers_opens_what_is_saved(small: Tokenizer, tmp_path: Path, mixed: str) -> None:
    transformers = pytest.importorskip("transformers")
    small.save(tmp_path)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert theirs.encode(mixed, add_special_tokens=False) == small.encode(mixed)


def test_vocab_txt_there_and_back(small: Tokenizer, tmp_path: Path, mixed: str) -> None:
    wordpiece.save_vocab(small.engine.pieces, tmp_path / "vocab.txt")
    assert (tmp_path / "vocab.txt").read_text(encoding="utf-8").split("\n")[:2] == ["[PAD]", "[UNK]"]
    for path in (tmp_path, tmp_path / "vocab.txt"):
        again = Tokenizer.load(path)
        assert again.encode(mixed, add_special_tokens=True) == small.encode(mixed, add_special_tokens=True)


def test_a_cased_vocab_txt_keeps_case(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\nParis\nparis\n")
    assert Tokenizer.load(tmp_path).encode("Paris paris PARIS") == [3, 4, 0]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a\nb\n", "has no"),
        (b"[UNK]\n[CLS]\n[SEP]\na\na\n", "twice"),
        (b"[UNK]\n\n[CLS]\n", "empty"),
        (b"\xff", "UTF-8"),
    ],
)
def test_what_is_no_vocab_txt(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes(data)
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.load(tmp_path)


def test_the_older_post_processor(small: Tokenizer, write_json: Callable[[bytes], Path]) -> None:
    content = json.loads(small.engine.files()["tokenizer.json"])
    content["post_processor"] = {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}
    again = Tokenizer.load(write_json(json.dumps(content).encode()))
    assert again.encode("a", add_special_tokens=True) == small.encode("a", add_special_tokens=True)


CHANGES: list[tuple[list[Any], Any, str]] = [
    (["normalizer", "type"], "NFC", "normalizer"),
    (["normalizer", "lowercase"], 1, "true or false"),
    (["pre_tokenizer"], None, "pre-tokenizer"),
    (["pre_tokenizer", "type"], "Whitespace", "pre-tokenizer"),
    (["decoder"], None, "decoder"),
    (["decoder", "prefix"], "@@", "decoder"),
    (["model", "continuing_subword_prefix"], "@@", "continuing_subword_prefix"),
    (["model", "max_input_chars_per_word"], 10**9, "max_input_chars_per_word"),
    (["model", "max_input_chars_per_word"], True, "max_input_chars_per_word"),
    (["model", "unk_token"], "[NONE]", "unknown token"),
    (["model", "vocab", "new"], 7, "twice"),
    (["model", "vocab", "new"], -1, "id"),
    (["model", "vocab", ""], 5000, "empty"),
    (["model", "vocab"], [], "tokenizer.json"),
    (["model", "vocab", "\ud800"], 5000, "tokenizer.json"),
    (["added_tokens", 0, "normalized"], True, "normalized"),
    (["added_tokens", 0, "lstrip"], True, "lstrip"),
    (["truncation"], {"max_length": 5}, "truncation"),
    (["post_processor", "type"], "RobertaProcessing", "post-processor"),
    (["post_processor"], {"type": "BertProcessing", "sep": ["[SEP]", 9], "cls": ["[CLS]", 2]}, "post-processor"),
]


@pytest.mark.parametrize(("path", "value", "message"), CHANGES)
def test_what_is_not_understood_is_refused(
    path: list[Any], value: Any, message: str, small: Tokenizer, write_json: Callable[[bytes], Path]
) -> None:
    content = part = json.loads(small.engine.files()["tokenizer.json"])
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.load(write_json(json.dumps(content).encode()))


@given(data=st.binary(max_size=200))
def test_any_bytes_as_vocab_txt(data: bytes) -> None:
    try:
        pieces = wordpiece.read_vocab(data, "vocab.txt")
    except TokenizerError:
        return
    assert wordpiece.encode("a b", pieces)


def test_a_vocabulary_with_gaps_is_no_vocab_txt(tmp_path: Path) -> None:
    pieces = wordpiece.WordPieces({"a": 7}, {"[UNK]": 0})
    with pytest.raises(TokenizerError, match="gaps"):
        wordpiece.save_vocab(pieces, tmp_path / "vocab.txt")
    with pytest.raises(TokenizerError, match="9"):
        wordpiece.decode([9], pieces)
    assert wordpiece.decode(wordpiece.encode("A b", pieces), pieces) == "a [UNK]"
    assert [match.piece for match in wordpiece.explain("a b", pieces)] == ["a", "[UNK]"]
