"""The tokenizer's ladders as plain data, for `tinylm-obs ladder` and the benchmarks. Holds no algorithm.

Each rung is a dictionary: component, ladder, rung, module, change (what changed and why), equals (the rung whose result
it must give), make(size) → work, run(work) → result, compare(result, reference) → error (0.0: identical), amount(work)
in `unit`, and a default size.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

from tinylm.tokenizer import (
    byte_bpe,
    byte_bpe_fast,
    kernels,
    naive_bpe,
    naive_bpe_fast,
    sentencepiece_bpe,
    sentencepiece_bpe_training,
    unigram,
    unigram_training,
    wordpiece,
    wordpiece_training,
)
from tinylm.tokenizer._engines.sentencepiece_data import SentencePieceModel
from tinylm.tokenizer._engines.vocabulary import Vocabulary, from_training
from tinylm.tokenizer._text.pretokenize import count_pieces
from tinylm.tokenizer._text.sentencepiece_words import byte_ids, fill_in, words
from tinylm.tokenizer._text.wordpiece_text import Rules, Splitter
from tinylm.tokenizer._trainers.sentencepiece_corpus import Options
from tinylm.tokenizer.normalizer import normalize

_PATTERN = "cl100k"
_MERGES = 256
_PIECES = 1000


def made_text(characters: int, seed: int = 0) -> str:
    """Words of made-up letters whose frequencies fall like those of a language (Zipf), with punctuation and lines."""
    chance = random.Random(seed)
    syllables = ["ka", "to", "mi", "ren", "sol", "ba", "chi", "u", "per", "and", "ing", "the", "o", "est", "wa", "né"]
    words = ["".join(chance.choices(syllables, k=chance.randint(1, 4))) for _ in range(5000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    ends = chance.choices([" ", ", ", ". ", ".\n", " 42 "], weights=[80, 8, 6, 4, 2], k=characters // 4 + 1)
    drawn = chance.choices(words, weights=weights, k=len(ends))
    return "".join(word + end for word, end in zip(drawn, ends, strict=True))[:characters]


@lru_cache(maxsize=1)
def _vocabulary() -> Vocabulary:
    pieces = count_pieces([made_text(200_000, seed=1)], (_PATTERN,))
    return from_training(byte_bpe_fast.train_merges(pieces, 1000), [], _PATTERN)


@lru_cache(maxsize=1)
def _wordpieces() -> wordpiece.WordPieces:
    return wordpiece_training.train(Counter(Splitter(Rules()).words(made_text(200_000, seed=1))), 2000)


def _encode_wordpiece(text: str) -> list[int]:
    from tinylm.tokenizer.kernels.wordpiece import make_encoder

    return make_encoder(_wordpieces()).encode(text)


def _train_wordpiece(text: str) -> list[str]:
    return list(wordpiece_training.train(Counter(Splitter(Rules()).words(text)), _PIECES, []).tokens)


def _train_wordpiece_kernel(text: str) -> list[str]:
    from tinylm.tokenizer._trainers.corpus import Chunk
    from tinylm.tokenizer.kernels.wordpiece_training import WordCounter

    counter = WordCounter(Rules())
    counter.count([Chunk(text.encode(), len(text.encode()))])
    return list(counter.learn(_PIECES, [], lambda done, wanted: None).tokens)


@lru_cache(maxsize=2)
def _learned(algorithm: str) -> SentencePieceModel:
    quickest = "kernels" if kernels.available() else "readable"
    return _sentencepiece_trainer(quickest, algorithm)([made_text(200_000, seed=1)], Options(2000))


def _sentencepiece_trainer(rung: str, algorithm: str) -> Callable[..., SentencePieceModel]:
    if rung != "kernels":
        return sentencepiece_bpe_training.train if algorithm == "sentencepiece_bpe" else unigram_training.train
    from tinylm.tokenizer.kernels import sentencepiece_training

    bpe, by_likelihood = sentencepiece_training.train_bpe, sentencepiece_training.train_unigram
    return bpe if algorithm == "sentencepiece_bpe" else by_likelihood


def _encode_sentencepiece(algorithm: str, text: str) -> list[int]:
    """The readable rung, with nothing remembered from before."""
    model = _learned(algorithm)
    encoder = (sentencepiece_bpe if algorithm == "sentencepiece_bpe" else unigram).Encoder(model)
    normal = normalize(text, model.steps)
    parts, bytes_ = words(normal) if model.words else [normal], byte_ids(model)
    return [id for part in parts for _, ids in fill_in(encoder.encode(part), model, bytes_) for id in ids]


def _encode_sentencepiece_kernel(algorithm: str, text: str) -> list[int]:
    from tinylm.tokenizer.kernels.sentencepiece import Encoder

    return Encoder(_learned(algorithm)).encode(text)


def _sentencepiece_rungs() -> list[dict[str, Any]]:
    """Encoding and training, for both algorithms."""
    named = {"sentencepiece_bpe": "SentencePiece BPE", "unigram": "Unigram"}
    reads = {
        "sentencepiece_bpe": "the best-scored neighbours join first, from a heap; each word is encoded once",
        "unigram": "Viterbi over every piece at every place",
    }
    learns = {
        "sentencepiece_bpe": "the most frequent neighbours join; only words that held them are counted again",
        "unigram": "seeds from all repeated parts, expectation-maximisation, pruning",
    }
    rungs = []
    for name, title in named.items():
        encoding, training, trainer = f"{title} encoding", f"{title} training", f"{name}_training"
        rungs += [
            _rung(encoding, name, reads[name], None, partial(_encode_sentencepiece, name)),
            _rung(
                encoding,
                "kernels",
                "the loop over pieces took the time: cut where no piece crosses, remembered, in C++",
                name,
                partial(_encode_sentencepiece_kernel, name),
            )
            | {"module": "tinylm.tokenizer.kernels.sentencepiece"},
            _rung(training, trainer, learns[name], None, partial(_train_sentencepiece, trainer, name)),
            _rung(
                training,
                "kernels",
                "the interpreter took the time: the same steps over arrays of places, in C++",
                trainer,
                partial(_train_sentencepiece, "kernels", name),
            )
            | {"module": "tinylm.tokenizer.kernels.sentencepiece_training"},
        ]
    return rungs


def _train_sentencepiece(rung: str, algorithm: str, text: str) -> list[str]:
    """The pieces in order of their texts: sums are rounded in another order in C++, which orders near-equals."""
    return sorted(_sentencepiece_trainer(rung, algorithm)([text], Options(_PIECES)).pieces)


def _encode_plain(text: str) -> list[int]:
    return byte_bpe.encode(text, [(left, right) for left, right, _ in _vocabulary().merges], _PATTERN)


def _train_naive(text: str) -> list[tuple[str, str]]:
    return naive_bpe.learn_merges(naive_bpe.char_spaced_word_freq(text), _MERGES // 8)


def _train_naive_fast(text: str) -> list[tuple[str, str]]:
    return naive_bpe_fast.learn_merges(naive_bpe_fast.char_spaced_word_freq(text), _MERGES // 8)


@lru_cache(maxsize=1)
def _naive_merges() -> tuple[list[tuple[str, str]], dict[str, int]]:
    word_freq = naive_bpe.char_spaced_word_freq(made_text(200_000, seed=1))
    merges = naive_bpe_fast.learn_merges(word_freq, 1000)
    return merges, naive_bpe.build_vocab(word_freq, merges)


def _differing(result: Any, reference: Any) -> float:
    """The share of places where two lists differ."""
    result, reference = list(result), list(reference)
    longest = max(len(result), len(reference), 1)
    same = sum(1 for a, b in zip(result, reference, strict=False) if a == b)
    return 1 - same / longest


def _megabytes(text: str) -> float:
    return len(text.encode()) / 1e6


def _rung(ladder: str, rung: str, change: str, equals: str | None, run: Callable[[str], Any]) -> dict[str, Any]:
    return {
        "component": "tokenizer",
        "ladder": ladder,
        "rung": rung,
        "module": f"tinylm.tokenizer.{rung}",
        "change": change,
        "equals": equals,
        "make": made_text,
        "run": run,
        "compare": _differing,
        "amount": _megabytes,
        "unit": "MB",
        "cost": lambda text: (0.0, float(len(text.encode())), ""),  # the least: the text is read once
        "size": 20_000 if ladder.startswith("naive") else 100_000,
    }


def rungs() -> list[dict[str, Any]]:
    """Every rung, the lowest of each ladder first; those in C++ where they were compiled."""
    naive, naive_encoding = "naive BPE training", "naive BPE encoding"
    training, encoding = "byte-level BPE training", "byte-level BPE encoding"

    def on(train: Callable[..., Any]) -> Callable[[str], Any]:
        return lambda text: train(count_pieces([text], (_PATTERN,)), _MERGES)

    def with_new(make_encoder: Callable[[Vocabulary], Any]) -> Callable[[str], Any]:  # nothing remembered from before
        return lambda text: make_encoder(_vocabulary()).encode(text)

    every = [
        _rung(naive, "naive_bpe", "the algorithm of Sennrich et al. 2015 as written", None, _train_naive),
        _rung(
            naive,
            "naive_bpe_fast",
            "bigram_pair_freq took the time: only words that held the merged pair are counted again; a heap",
            "naive_bpe",
            _train_naive_fast,
        ),
        _rung(
            naive_encoding,
            "naive_bpe",
            "replays every merge on every distinct word",
            None,
            lambda text: naive_bpe.encode(text, *_naive_merges()),
        ),
        _rung(
            naive_encoding,
            "naive_bpe_fast",
            "_merge_symbols took the time: a word meets only the merges whose pairs it holds",
            "naive_bpe",
            lambda text: naive_bpe_fast.encode(text, *_naive_merges()),
        ),
        _rung(training, "byte_bpe", "counts every pair again after every merge", None, on(byte_bpe.train_merges)),
        _rung(
            training,
            "byte_bpe_fast",
            "count_pairs took the time: only words that held the merged pair are counted again, a heap gives the next",
            "byte_bpe",
            on(byte_bpe_fast.train_merges),
        ),
        _rung(
            training,
            "kernels",
            "the interpreter took the time: the same steps in C++",
            "byte_bpe_fast",
            on(kernels.train_merges),
        ),
        _rung(encoding, "byte_bpe", "replaces the lowest pair everywhere, in every piece", None, _encode_plain),
        _rung(
            encoding,
            "byte_bpe_fast",
            "the same pieces came again and again: each is encoded once and remembered; a heap for long ones",
            "byte_bpe",
            with_new(byte_bpe_fast.Encoder),
        ),
        _rung(
            encoding,
            "kernels",
            "the loop over pieces took the time: cut by bit arithmetic, looked up and merged in C++",
            "byte_bpe_fast",
            with_new(kernels.make_encoder),
        ),
        _rung(
            "WordPiece encoding",
            "wordpiece",
            "the longest piece first, from left to right; a word is taken apart once",
            None,
            lambda text: wordpiece.encode(text, _wordpieces()),
        ),
        _kernel(
            "WordPiece encoding",
            "str.translate and the loop over words took the time: words found 16 bytes at a time, in C++",
            "wordpiece",
            _encode_wordpiece,
        ),
        _rung(
            "WordPiece training",
            "wordpiece_training",
            "the pair that makes the corpus likeliest is joined; every pair is scored again after every join, by numpy",
            None,
            _train_wordpiece,
        ),
        _kernel(
            "WordPiece training",
            "likelihood_gain took the time: pairs of one count share a heap, few are scored again, in C++",
            "wordpiece_training",
            _train_wordpiece_kernel,
        ),
        *_sentencepiece_rungs(),
    ]
    return [rung for rung in every if rung["rung"] != "kernels" or kernels.available()]


def _kernel(ladder: str, change: str, equals: str, run: Callable[[str], Any]) -> dict[str, Any]:
    """The top rung of a ladder whose module is called as the rung that it equals."""
    return {**_rung(ladder, "kernels", change, equals, run), "module": f"tinylm.tokenizer.kernels.{equals}"}
