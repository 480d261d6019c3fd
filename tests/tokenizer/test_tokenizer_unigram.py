"""Unigram: n-best, sampling, training at least as good as sentencepiece's. Ids: test_tokenizer_sentencepiece.py."""

import io
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from tinylm.tokenizer import Tokenizer, TokenizerError, unigram, unigram_training
from tinylm.tokenizer._engines.sentencepiece import SentencePieceEngine
from tinylm.tokenizer._engines.sentencepiece_data import SentencePieceModel
from tinylm.tokenizer._formats import sentencepiece_model as files
from tinylm.tokenizer._trainers.sentencepiece_corpus import Options, count
from tinylm.tokenizer.ladder import made_text
from tinylm.tokenizer.normalizer import normalize


@pytest.fixture(scope="module")
def botchan(fetched_text: Callable[[str], Path]) -> str:
    return fetched_text("botchan").read_text(encoding="utf-8")[:60_000]


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return Tokenizer.train([made_text(20_000)], vocab_size=500, algorithm="unigram")


def test_nbest_equals_sentencepiece(vocabulary: Callable[[str], Path]) -> None:
    spm = pytest.importorskip("sentencepiece")
    path = vocabulary("botchan-unigram")
    reference = spm.SentencePieceProcessor(model_file=str(path))
    model = files.read(path.read_bytes(), "botchan")
    encoder = unigram.Encoder(model)
    for text in ("hello world", "I am a student", "unbelievable", "a"):
        wanted = reference.nbest_encode(text, nbest_size=20)
        got = encoder.nbest(normalize(text, model.steps), 20)
        assert [id for _, id in got[0][0]] == wanted[0]
        assert [score for _, score in got] == sorted((score for _, score in got), reverse=True)
        wanted_scores = [sum(model.scores[id] for id in ids) for ids in wanted]  # some ways are equally likely
        assert [score for _, score in got] == pytest.approx(wanted_scores, abs=1e-4)


def test_nbest_is_complete() -> None:
    """Every way to cut a short word, with the probabilities of the paper: products of the pieces'."""
    scores = {"a": -1.0, "b": -1.5, "c": -2.0, "ab": -2.2, "bc": -3.0, "abc": -4.0}
    model = SentencePieceModel("unigram", ("<unk>", *scores), (0.0, *scores.values()), (2, 1, 1, 1, 1, 1, 1))
    found = unigram.Encoder(model).nbest("abc", 10)
    got = {tuple(text for text, _ in pieces): round(score, 6) for pieces, score in found}
    assert got == {("abc",): -4.0, ("ab", "c"): -4.2, ("a", "bc"): -4.0, ("a", "b", "c"): -4.5}


def test_samples_lose_nothing(trained: Tokenizer) -> None:
    text = "the text <0x41> and <0x0A>, 日本"
    assert all(trained.decode(trained.sample(text, 0.0, seed)) == text for seed in range(40))


def test_samples_follow_their_probabilities() -> None:
    scores = {"a": math.log(0.4), "b": math.log(0.3), "ab": math.log(0.3)}
    model = SentencePieceModel("unigram", ("<unk>", *scores), (0.0, *scores.values()), (2, 1, 1, 1))
    encoder, chance = unigram.Encoder(model), Random(1)
    for alpha in (0.0, 0.5, 1.0):
        drawn = Counter(len(encoder.sample("ab", alpha, chance)) for _ in range(4000))
        whole = 0.3**alpha / (0.3**alpha + 0.12**alpha)
        assert abs(drawn[1] / 4000 - whole) < 0.04


def test_samples_are_seeded_and_lose_nothing(trained: Tokenizer) -> None:
    engine = trained.engine
    assert isinstance(engine, SentencePieceEngine)
    text = made_text(20_000)[100:140] + " — 日本"
    drawn = {tuple(engine.sample(text, 0.2, Random(seed))) for seed in range(20)}
    assert len(drawn) > 5
    assert all(trained.decode(ids) == text for ids in drawn)
    assert engine.sample(text, 0.2, Random(3)) == engine.sample(text, 0.2, Random(3))


def likelihood(model: SentencePieceModel, words: dict[str, int]) -> float:
    """Log probability of the corpus, over all ways to cut each word, by character."""
    encoder = unigram.Encoder(replace(model, double=True))
    total = 0.0
    for word, number in words.items():
        forward = [0.0]
        for ending in encoder._ending(word)[1:]:
            forward.append(unigram.log_sum(forward[start] + score for start, _, score, _ in ending))
        total += number * forward[-1]
    return total / sum(len(word) * number for word, number in words.items())


@pytest.mark.parametrize("size", [1000])
def test_training_is_as_good_as_sentencepiece(size: int, botchan: str) -> None:
    spm = pytest.importorskip("sentencepiece")
    options = Options(size, dummy_prefix=True, byte_fallback=False)
    out = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(botchan.split("\n")),
        model_writer=out,
        model_type="unigram",
        vocab_size=size,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        max_sentence_length=10**9,
        num_threads=1,
        minloglevel=2,
    )
    model = unigram_training.train([botchan], options)
    words = count([botchan], options).words
    reference = files.read(out.getvalue(), "reference")
    assert len(model.pieces) == len(reference.pieces) == size
    assert likelihood(model, words) >= likelihood(reference, words)


def test_training_depends_on_nothing_but_the_corpus(trained: Tokenizer) -> None:
    lines = made_text(20_000).split("\n")
    Random(0).shuffle(lines)
    again = Tokenizer.train(["\n".join(lines)], vocab_size=500, algorithm="unigram")
    assert again.engine.files() == trained.engine.files()


def test_what_is_trained_loses_nothing_and_is_saved(trained: Tokenizer, mixed: str, tmp_path: Path) -> None:
    assert (trained.algorithm, trained.vocab_size) == ("unigram", 500)
    long = made_text(80_000) + mixed
    for text in (mixed, "<0x0A> <s>", "  two  "):
        assert trained.decode(trained.encode(text)) == text
    assert list(trained.encode_stream(long[at : at + 9000] for at in range(0, len(long), 9000))) == trained.encode(long)
    trained.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.encode(mixed) == trained.encode(mixed)
    tokenizers = pytest.importorskip("tokenizers")
    reference = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in (mixed, long[:3000], "<0x0A> <0xE6>", "a" * 500, " " * 90):
        assert reference.encode(text, add_special_tokens=False).ids == again.encode(text) == trained.encode(text)


def test_explain_shows_the_candidates(trained: Tokenizer) -> None:
    steps = trained.explain("the persol")
    chosen = [step for step in steps if step.chosen]
    assert [step.id for step in chosen] == trained.encode("the persol")
    assert b"".join(step.piece for step in chosen) == b"the persol"
    assert len(steps) > len(chosen)


def test_digamma() -> None:
    """Against the derivative of log Γ."""
    for x in (0.5, 1.0, 3.3, 7.0, 100.0):
        slope = (math.lgamma(x + 1e-5) - math.lgamma(x - 1e-5)) / 2e-5
        assert unigram_training.digamma(x) == pytest.approx(slope, abs=1e-6)


def test_hard_corpora() -> None:
    with pytest.raises(TokenizerError, match="empty"):
        Tokenizer.train(["\n"], vocab_size=300, algorithm="unigram")
    for corpus in ("a", "ab", "abcabc " * 3, "日本語"):
        with pytest.warns(UserWarning, match="instead of 400"):
            small = Tokenizer.train([corpus], vocab_size=400, algorithm="unigram")
        assert small.decode(small.encode(corpus + "é")) == corpus + "é"
