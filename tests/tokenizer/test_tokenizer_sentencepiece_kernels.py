"""SentencePiece-BPE and Unigram in C++: the ids of the readable rung and of sentencepiece itself, on real models."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylm.tokenizer import kernels
from tinylm.tokenizer._engines.sentencepiece import SentencePieceEngine
from tinylm.tokenizer._engines.sentencepiece_data import SPACE, Kind, Replace, SentencePieceModel, Spaces
from tinylm.tokenizer._formats.sentencepiece_model import read
from tinylm.tokenizer.kernels import sentencepiece as fast

sentencepiece = pytest.importorskip("sentencepiece")
pytestmark = pytest.mark.skipif(not kernels.available(), reason="the compiled kernel is not installed")

MODELS = ["botchan-bpe", "botchan-unigram", "kyoto-unigram", "mistral-v1", "mistral-v3"]
ALPHABET = [
    *"abcdeT   \n\t.,!?'\"-Éß日本語の。、ー▁🎉\u0301\u00a0\u3000\u200bﬁ½①ｶﾞ가\x00\x85",
    "<s>",
    "[INST]",
    " the ",
    "ing",
]


def made(seed: int, pieces: int) -> str:
    return "".join(Random(seed).choices(ALPHABET, k=pieces))


@pytest.fixture(scope="module", params=MODELS)
def both(request: pytest.FixtureRequest, vocabulary: Callable[[str], Path]) -> tuple[SentencePieceModel, object]:
    path = vocabulary(request.param)
    return read(path.read_bytes(), str(path)), sentencepiece.SentencePieceProcessor(model_file=str(path))


def readable(model: SentencePieceModel) -> SentencePieceEngine:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tinylm.tokenizer._engines.sentencepiece.make_encoder", lambda model: None)
        return SentencePieceEngine(model)


def test_the_ids_are_those_of_sentencepiece(both, mixed: str, fetched_text: Callable[[str], Path]) -> None:
    model, reference = both
    encoder = fast.make_encoder(model)
    book = fetched_text("botchan").read_text(encoding="utf-8")
    long = [book[:100_000], "a" * 3000, " " * 300 + "x", "日本語" * 1000, "\n" * 200, "🎉" * 50]
    for text in [*book.splitlines()[:1500], mixed, *long, *(made(seed, seed % 40) for seed in range(3000))]:
        assert encoder.encode(text) == reference.encode(text), text[:200]


def test_the_ids_are_those_of_the_readable_rung(both, mixed: str) -> None:
    model, _ = both
    slow, quick = readable(model), SentencePieceEngine(model)
    assert (slow.backend, quick.backend) == ("python", "kernels")
    for text in ["", " ", mixed, *(made(seed, seed % 60) for seed in range(300))]:
        for first in (True, False):
            assert quick.encode(text, first) == slow.encode(text, first), (text, first)
            assert quick.encode_array(text, first).tolist() == slow.encode(text, first)


def test_sums_far_into_a_text(both) -> None:
    """Unigram's sums are rounded more and more, and set back at 10^5: that decides between near-ties."""
    model, reference = both
    words = [piece.replace(SPACE, " ") for piece, kind in zip(model.pieces, model.kinds, strict=True) if kind == 1]
    text = "".join(Random(5).choices(words, k=60_000))
    assert fast.make_encoder(model).encode(text) == reference.encode(text)


@pytest.fixture(scope="module")
def pairs(vocabulary: Callable[[str], Path]) -> list[tuple[object, object]]:
    paths = [vocabulary("mistral-v3"), vocabulary("botchan-unigram")]
    return [
        (fast.make_encoder(read(path.read_bytes(), "")), sentencepiece.SentencePieceProcessor(model_file=str(path)))
        for path in paths
    ]


@settings(deadline=None)
@given(text=st.text())
def test_any_text(pairs: list[tuple[object, object]], text: str) -> None:
    for encoder, reference in pairs:
        assert encoder.encode(text) == reference.encode(text)


def test_a_lone_surrogate_is_no_text(both) -> None:
    with pytest.raises(UnicodeEncodeError):
        fast.make_encoder(both[0]).encode("a\ud800")


def small(algorithm: str, **changes: object) -> SentencePieceModel:
    pieces = ["<unk>", "<s>", "▁", "a", "b", "c", "▁a", "ab", "▁ab", "bc", "▁▁", "c▁", "[x]", "ca▁b", "日本", "abc"]
    kinds = [Kind.UNKNOWN, Kind.CONTROL, *[Kind.NORMAL] * 10, Kind.USER_DEFINED, *[Kind.NORMAL] * 3]
    scores = [0.0, 0.0, *(-float(place % 7) - 0.5 for place in range(14))]
    return replace(SentencePieceModel(algorithm, tuple(pieces), tuple(scores), tuple(kinds)), **changes)


OPTIONS = [
    {},
    {"steps": (Spaces(dummy_prefix=False, remove_extra=False),)},
    {"steps": (Spaces(suffix=True),)},
    {"steps": (Spaces(escape=False),)},
    {"steps": (Replace(" ", SPACE),)},
    {"steps": (Replace("b", "ab"), Replace(" ", SPACE))},
    {"steps": ()},
    {"fuse_unknown": False},
    {"unk_id": None},
    {"words": True, "double": True},
    {"double": True},
]


@pytest.mark.parametrize("algorithm", ["sentencepiece-bpe", "unigram"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options_of_a_model(algorithm: str, options: dict[str, object]) -> None:
    """Pieces that cross spaces, unknown characters, user-defined symbols, and every way to treat spaces."""
    model = small(algorithm, **options)
    slow, quick = readable(model), SentencePieceEngine(model)
    assert quick.backend == "kernels"
    chance = Random(3)
    parts = [*"aabbcc  ▁xyé日本", "[x]", "ca b", "é\n"]
    for _ in range(1500):
        text = "".join(chance.choices(parts, k=chance.randint(0, 30)))
        for first in (True, False):
            assert quick.encode(text, first) == slow.encode(text, first), (text, first)


def test_merges_of_a_tokenizer_json_go_by_rank() -> None:
    merges = ((4, 5, 9), (3, 4, 7), (7, 5, 15), (2, 7, 8), (2, 3, 6))
    model = small("sentencepiece-bpe", merges=merges, words=True)
    slow, quick = readable(model), SentencePieceEngine(model)
    chance = Random(4)
    for _ in range(1000):
        text = "".join(chance.choices("abc  ", k=chance.randint(0, 60)))
        assert quick.encode(text) == slow.encode(text)


def test_unused_pieces_are_left_to_the_readable_rung() -> None:
    model = small("sentencepiece-bpe")
    kinds = tuple(Kind.UNUSED if piece == "ab" else kind for piece, kind in zip(model.pieces, model.kinds, strict=True))
    assert fast.make_encoder(replace(model, kinds=kinds)) is None


def test_threads_share_one_tokenizer(both) -> None:
    encoder = fast.make_encoder(both[0])
    texts = [made(seed, 2000) for seed in range(12)]
    expected = [encoder.encode(text) for text in texts]
    results: list[list[int]] = [[] for _ in texts]

    def work(start: int) -> None:
        for place in range(start, len(texts), 4):
            results[place] = encoder.encode(texts[place])

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == expected
    assert all(encoder.encode_array(text).dtype == np.uint32 for text in texts)
