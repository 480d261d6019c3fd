"""Training SentencePiece-BPE and Unigram in C++: what the readable rungs learn, and beside sentencepiece's trainer."""

import io
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from tinylm.tokenizer import kernels, sentencepiece_bpe_training, unigram_training
from tinylm.tokenizer._engines.sentencepiece_data import Kind, SentencePieceModel
from tinylm.tokenizer._formats.sentencepiece_model import read
from tinylm.tokenizer._trainers import sentencepiece_corpus
from tinylm.tokenizer._trainers.sentencepiece_corpus import Options
from tinylm.tokenizer.kernels import sentencepiece_training

sentencepiece = pytest.importorskip("sentencepiece")

TRAININGS = [
    Options(600),
    Options(500, normalization="nmt_nfkc", dummy_prefix=True, remove_extra_spaces=True, byte_fallback=False),
    Options(480, control=("the", "<s>"), user_defined=("Thou",), longest=5, character_coverage=0.99),
]


@pytest.mark.parametrize("options", TRAININGS, ids=str)
def test_training_bpe_gives_the_readable_rungs_model(options: Options, corpus: list[str]) -> None:
    assert sentencepiece_training.train_bpe(corpus, options) == sentencepiece_bpe_training.train(corpus, options)


@pytest.mark.parametrize("options", TRAININGS, ids=str)
def test_training_unigram_gives_the_readable_rungs_pieces(options: Options, corpus: list[str]) -> None:
    slow = unigram_training.train(corpus, options)
    quick = sentencepiece_training.train_unigram(corpus, options, threads=1)
    assert quick.pieces == slow.pieces
    assert quick.scores == pytest.approx(slow.scores, abs=1e-5)


def test_the_result_does_not_depend_on_the_number_of_threads(corpus: list[str]) -> None:
    models = [
        sentencepiece_training.train_unigram(corpus, TRAININGS[0], threads=threads) for threads in (1, 2, 5, None)
    ]
    assert all(model == models[0] for model in models)


def test_long_words_do_not_underflow(corpus: list[str]) -> None:
    """Text without spaces is one word: products of thousands of probabilities."""
    texts = [text.replace(" ", "").replace("\n", "") for text in corpus]
    options = Options(450)
    slow = unigram_training.train(texts, options)
    quick = sentencepiece_training.train_unigram(texts, options)
    assert quick.pieces == slow.pieces
    assert quick.scores == pytest.approx(slow.scores, abs=1e-5)


def test_without_the_kernel_the_readable_rungs_train(corpus: list[str], without_kernel: None) -> None:
    kernels._warn_once.cache_clear()  # it warns once a process, and other tests may have made it do so
    with pytest.warns(RuntimeWarning, match="without its compiled kernel"):
        model = sentencepiece_training.train_bpe(corpus, TRAININGS[1])
    assert model == sentencepiece_bpe_training.train(corpus, TRAININGS[1])
    assert sentencepiece_training.train_unigram(corpus, TRAININGS[1]) == unigram_training.train(corpus, TRAININGS[1])


LIKE_SENTENCEPIECE = Options(
    1500, normalization="nmt_nfkc", dummy_prefix=True, remove_extra_spaces=True, byte_fallback=False
)


@pytest.fixture(scope="module")
def book(fetched_text: Callable[[str], Path]) -> str:
    return fetched_text("botchan").read_text(encoding="utf-8")


def reference(book: str, algorithm: str) -> bytes:
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(book.split("\n")),
        model_writer=out,
        vocab_size=LIKE_SENTENCEPIECE.vocab_size,
        model_type=algorithm,
        max_sentence_length=1_000_000,
        num_threads=1,
        minloglevel=2,
    )
    return out.getvalue()


def test_bpe_pieces_are_those_of_sentencepieces_trainer(book: str) -> None:
    theirs = read(reference(book, "bpe"), "sentencepiece")
    assert sentencepiece_training.train_bpe([book], LIKE_SENTENCEPIECE).pieces == theirs.pieces


def test_unigram_is_as_likely_as_that_of_sentencepieces_trainer(book: str) -> None:
    theirs = read(reference(book, "unigram"), "sentencepiece")
    ours = sentencepiece_training.train_unigram([book], LIKE_SENTENCEPIECE)
    words = sentencepiece_corpus.count([book], LIKE_SENTENCEPIECE).words
    assert len(ours.pieces) == len(theirs.pieces)

    def likelihood(model: SentencePieceModel) -> float:
        """Of the corpus, under the likeliest pieces, with probabilities that sum to 1."""
        learned = zip(model.pieces, model.scores, model.kinds, strict=True)
        scores = {text: score for text, score, kind in learned if kind == Kind.NORMAL}
        total = math.log(math.fsum(map(math.exp, scores.values())))
        pieces = unigram_training._Pieces({text: score - total for text, score in scores.items()})
        return math.fsum(number * pieces.best(pieces.lattice(word))[1] for word, number in words.items())

    assert likelihood(ours) >= likelihood(theirs)
