"""Training WordPiece: what is learned, the same on both rungs, for any cut of the corpus and any number of threads."""

import itertools
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylm.tokenizer import Tokenizer, TokenizerError, kernels, wordpiece_training
from tinylm.tokenizer._text.wordpiece_text import Rules, Splitter
from tinylm.tokenizer._trainers.corpus import Chunk
from tinylm.tokenizer.kernels.wordpiece_training import WordCounter
from tinylm.tokenizer.ladder import made_text
from tinylm.tokenizer.wordpiece_training import learn, likelihood_gain, ratio

needs_kernel = pytest.mark.skipif(not kernels.available(), reason="no compiled kernel here")


@pytest.fixture(scope="session")
def small() -> Tokenizer:
    return Tokenizer.train([made_text(30_000), "Größe 你好 don't!"], vocab_size=400, algorithm="wordpiece")


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
    got = learn(words, 12, wordpiece_training.joined, score)
    assert got == naive(words, 12, score)


def test_a_trained_vocabulary_covers_its_corpus(small: Tokenizer) -> None:
    assert small.vocab_size == 400
    assert list(small.special_tokens) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    ids = small.encode(made_text(5000))
    assert small.special_tokens["[UNK]"] not in ids
    assert len(ids) < 0.5 * 5000
    assert small.decode(small.encode("grosse 你好 don't!")) == "grosse 你 好 don ' t!"
    assert (small.bos_id, small.eos_id) == (2, 3)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_order_and_cut_make_no_difference(
    threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = made_text(20_000)
    lines = text.splitlines(keepends=True)
    one = Tokenizer.train([text], vocab_size=300, algorithm="wordpiece").engine.files()
    monkeypatch.setattr("tinylm.tokenizer._trainers.corpus.CHUNK", 1000)
    for corpus in (lines, lines[::-1]):
        assert Tokenizer.train(corpus, vocab_size=300, algorithm="wordpiece", threads=threads).engine.files() == one
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    again = Tokenizer.train([tmp_path / "a.txt"], vocab_size=300, algorithm="wordpiece", threads=threads)
    assert again.engine.files() == one


def both(texts: list[str], vocab_size: int, rules: Rules | None = None) -> tuple[list[str], list[str]]:
    """The pieces of the kernel and those of the readable rung."""
    rules = rules or Rules()
    counter = WordCounter(rules)
    counter.count([Chunk(text.encode(), len(text.encode())) for text in texts])
    words = Counter(word for text in texts for word in Splitter(rules).words(text))
    assert counter.distinct == len(words)
    kernel = counter.learn(vocab_size, [], lambda done, wanted: None)
    assert counter.distinct == 0
    return list(kernel.tokens), list(wordpiece_training.train(words, vocab_size, [], rules).tokens)


@needs_kernel
@settings(max_examples=60)
@given(st.lists(st.text("abcé你 .-", max_size=30), min_size=1, max_size=6))
def test_both_rungs_learn_the_same_of_any_text(texts: list[str]) -> None:
    kernel, rung = both(texts, 80)
    assert kernel == rung


@needs_kernel
def test_both_rungs_learn_the_same(mixed: str, fetched_text: Any) -> None:
    shakespeare = fetched_text("shakespeare").read_bytes().decode()[:150_000]
    cases = [(made_text(60_000, 3), 800, Rules()), (mixed * 2, 1500, Rules()), (shakespeare, 1500, Rules())]
    for text, size, rules in [*cases, (mixed, 1500, Rules(accents=False, lower=False))]:
        kernel, rung = both([text], size, rules)
        assert kernel == rung


@needs_kernel
def test_only_the_commonest_characters_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for where in ("wordpiece_training", "kernels.wordpiece_training"):
        monkeypatch.setattr(f"tinylm.tokenizer.{where}.ALPHABET", 3)
    kernel, rung = both(["ab ab abc abd aabb b"], 30)
    assert kernel == rung
    assert not any("d" in piece for piece in kernel)


def test_without_the_kernel_the_pieces_are_the_same(without_kernel: None, small: Tokenizer) -> None:
    again = Tokenizer.train([made_text(30_000), "Größe 你好 don't!"], vocab_size=400, algorithm="wordpiece", threads=2)
    assert again.engine.files() == small.engine.files()


def test_progress_may_end_it_and_text_is_checked(tmp_path: Path) -> None:
    def stop(what: str, done: int, wanted: int) -> None:
        if what == "pieces":
            assert 0 < done < wanted
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Tokenizer.train([made_text(20_000)], vocab_size=300, algorithm="wordpiece", progress=stop)
    (tmp_path / "bad.txt").write_bytes(b"abc \xff def")
    with pytest.raises(TokenizerError, match="0xff at offset 4"):
        Tokenizer.train([tmp_path / "bad.txt"], vocab_size=300, algorithm="wordpiece")
    with pytest.raises(TokenizerError, match=r"U\+D800"):
        Tokenizer.train(["a\ud800"], vocab_size=300, algorithm="wordpiece")


def test_a_corpus_that_needs_too_much_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinylm.tokenizer._trainers.counting._memory_limit", lambda: 1000)
    with pytest.raises(TokenizerError, match="different pieces"):
        Tokenizer.train([made_text(20_000)], vocab_size=300, algorithm="wordpiece")


def test_the_score_decides_what_is_learned() -> None:
    word_freq = {"aab": 90, "ab": 90, "xy": 2}
    by_ratio = wordpiece_training.train(word_freq, 30, [], score=ratio)
    assert list(by_ratio.tokens)[5] == "xy"  # the rarest first
    by_gain = wordpiece_training.train(word_freq, 30, [])
    assert list(by_gain.tokens)[5] != "xy"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 5}, "from 6 to"),
        ({"vocab_size": 8}, "at least"),
        ({"vocab_size": 300, "special_tokens": "[X]"}, "list of special tokens"),
        ({"vocab_size": 300, "special_tokens": ["[X]", "[X]"]}, "differ"),
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
