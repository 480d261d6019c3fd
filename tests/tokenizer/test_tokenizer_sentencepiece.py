"""SentencePiece BPE: ids equal to sentencepiece's, all kinds of pieces, dropout, and the same trained pieces."""

import io
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylm.tokenizer import Tokenizer, TokenizerError, sentencepiece_bpe_training
from tinylm.tokenizer._engines.sentencepiece import SentencePieceEngine
from tinylm.tokenizer._engines.sentencepiece_data import Kind, SentencePieceModel
from tinylm.tokenizer._formats import sentencepiece_model as files
from tinylm.tokenizer._trainers.sentencepiece_corpus import Options, may_be_piece, script
from tinylm.tokenizer.kernels.sentencepiece_training import train_bpe, train_unigram
from tinylm.tokenizer.ladder import made_text

MODELS = ["botchan-bpe", "botchan-unigram", "kyoto-unigram", "mistral-v1", "mistral-v3"]
HARD = [
    "",
    " ",
    "  two  spaces  ",
    "▁▁ literal ▁",
    "\t\n\r\n",
    "a" * 3000,
    " " * 700,
    "ab" * 800 + "日本" * 400,
    "[INST] <s> </s> <unk> <0x0A> [/INST]",
    "e\u0301\u0323 ﬁ ½ ① ｶﾞ ㄱㅏ \uff21\u00a0\u200b\u200d\x00\x01\u2028",
    "👩‍👩‍👧 🎉 नमस्ते مرحبا 한국어",
]
pieces_of_text = st.sampled_from(
    [
        "  ",
        " ",
        "▁",
        "\n",
        "the",
        " and",
        "ing",
        "ab",
        "aa",
        "é",
        "日本",
        "ﬁ",
        "①",
        "e\u0301",
        "🎉",
        "<s>",
        "[INST]",
        "12",
    ]
)
tricky = st.lists(st.one_of(pieces_of_text, st.text(max_size=3)), max_size=25).map("".join)


def reference_of(data: bytes) -> Any:
    return pytest.importorskip("sentencepiece").SentencePieceProcessor(model_proto=data)


def trained(lines: list[str], model_type: str, **options: Any) -> bytes:
    """The *.model that sentencepiece's trainer makes of these lines."""
    spm = pytest.importorskip("sentencepiece")
    out = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=out,
        model_type=model_type,
        num_threads=1,
        max_sentence_length=10**9,
        minloglevel=2,
        **options,
    )
    return out.getvalue()


@pytest.mark.parametrize("name", MODELS)
def test_ids_and_text_equal_sentencepiece(
    name: str, vocabulary: Callable[[str], Path], fetched_text: Callable[[str], Path], mixed: str
) -> None:
    path = vocabulary(name)
    tokenizer, reference = Tokenizer.load(path), reference_of(path.read_bytes())
    lines = fetched_text("botchan").read_text(encoding="utf-8").split("\n")[:400]
    for text in [*HARD, *lines, mixed, "\n".join(lines)]:
        ids = reference.encode(text)
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.decode(ids) == reference.decode(ids)

    @given(tricky)
    @settings(deadline=None, max_examples=80)
    def equal(text: str) -> None:
        ids = reference.encode(text)
        assert tokenizer.encode(text) == ids
        decoder = tokenizer.stream_decoder()
        assert "".join(map(decoder.push, ids)) + decoder.finish() == tokenizer.decode(ids) == reference.decode(ids)

    equal()


CORPUS = [
    *made_text(20_000).split("\n"),
    "foo<x>bar <x> <y>  日本語 テキスト e\u0301 3.14 a1",
    "aaaa aaa aa",
    "  x  ",
] * 2


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.parametrize("byte_fallback", [False, True])
@pytest.mark.parametrize("spaces", [{}, {"add_dummy_prefix": False, "remove_extra_whitespaces": False}])
def test_models_with_pieces_of_every_kind(model_type: str, byte_fallback: bool, spaces: dict[str, bool]) -> None:
    """User-defined and control symbols by the trainer; unused pieces as a vocabulary restriction makes them."""
    data = trained(
        CORPUS,
        model_type,
        vocab_size=450,
        character_coverage=0.98,
        byte_fallback=byte_fallback,
        user_defined_symbols=["<x>", "<x><y>", "日本", "oo"],
        control_symbols=["<ctl>"],
        **spaces,
    )
    model = files.read(data, "made")
    unused = [
        Kind.UNUSED if kind == Kind.NORMAL and len(text) > 1 and id % 3 == 0 else kind
        for id, (text, kind) in enumerate(zip(model.pieces, model.kinds, strict=True))
    ]
    for written in (data, files.write(model), files.write(replace(model, kinds=tuple(unused)))):
        _same_ids_and_text(written)


def _same_ids_and_text(data: bytes) -> None:
    tokenizer, reference = Tokenizer(SentencePieceEngine(files.read(data, "made"))), reference_of(data)

    @given(st.lists(st.sampled_from(["<x>", "<y>", "日本", "o", " ", "the", "and", "foo", "é", "<ctl>", "a"])))
    @settings(deadline=None, max_examples=40)
    def equal(parts: list[str]) -> None:
        text = "".join(parts)
        ids = reference.encode(text)
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids) == reference.decode(ids)

    equal()
    for text in [*HARD, *CORPUS]:
        assert tokenizer.encode(text) == reference.encode(text), text


@pytest.mark.parametrize(
    "options",
    [
        Options(500),
        Options(900, dummy_prefix=True),
        Options(600, normalization="nmt_nfkc", dummy_prefix=True, remove_extra_spaces=True, byte_fallback=False),
        Options(700, character_coverage=0.99, user_defined=("the", "<x>"), control=("<s>", "</s>", "<ctl>")),
        Options(800, longest=4, character_coverage=1.0),
    ],
)
def test_trained_pieces_equal_sentencepiece(options: Options, mixed: str, fetched_text: Callable[[str], Path]) -> None:
    """Ties included; pieces, scores and their order."""
    botchan = fetched_text("botchan").read_text(encoding="utf-8")[:25_000]
    lines = [*CORPUS, *mixed.split("\n"), "<s> text of a special token</s>", *botchan.split("\n")]
    data = trained(
        lines,
        "bpe",
        vocab_size=options.vocab_size,
        normalization_rule_name=options.normalization,
        add_dummy_prefix=options.dummy_prefix,
        remove_extra_whitespaces=options.remove_extra_spaces,
        byte_fallback=options.byte_fallback,
        character_coverage=options.character_coverage,
        max_sentencepiece_length=options.longest,
        user_defined_symbols=list(options.user_defined),
        control_symbols=list(options.control[2:]),
    )
    reference = files.read(data, "reference")
    model = sentencepiece_bpe_training.train(["\n".join(lines)], options)
    assert model.pieces == reference.pieces
    assert model.scores == reference.scores
    assert model.kinds == reference.kinds
    tokenizer, processor = Tokenizer(SentencePieceEngine(model)), reference_of(files.write(model))
    for text in [*HARD, *lines]:
        assert tokenizer.encode(text) == processor.encode(text)


@pytest.mark.parametrize("between", [0, 10, 50, 100, 200])
@pytest.mark.parametrize("learn", [sentencepiece_bpe_training.train, train_bpe])
def test_texts_that_stand_apart_count_as_covered(learn: Callable[..., SentencePieceModel], between: int) -> None:
    lines = ["ab" * 50 + "<x>" * between + "cdef\0" + "\0" * (between % 3)]
    wanted = {"vocab_size": 20, "character_coverage": 0.98, "user_defined_symbols": ["<x>"], "hard_vocab_limit": False}
    plain = {"normalization_rule_name": "identity", "add_dummy_prefix": False, "remove_extra_whitespaces": False}
    reference = files.read(trained(lines, "bpe", **wanted, **plain), "reference")
    model = learn(lines, Options(20, byte_fallback=False, character_coverage=0.98, user_defined=("<x>",)))
    assert {*model.pieces} & {*"abcdef"} == {*reference.pieces} & {*"abcdef"}


def test_symbols_of_spaces_in_a_trained_unigram() -> None:
    model = train_unigram(["ab a b a  b"] * 9, Options(320, dummy_prefix=True, user_defined=("▁▁", "a▁b")))
    tokenizer, reference = Tokenizer(SentencePieceEngine(model)), reference_of(files.write(model))
    for text in ("▁b", "a  b", "  ", "a b", "a▁b", "a   b"):
        assert tokenizer.encode(text) == reference.encode(text), text


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return Tokenizer.train(CORPUS, vocab_size=600, algorithm="sentencepiece-bpe")


def test_training_loses_nothing_and_streams(bpe: Tokenizer, mixed: str, tmp_path: Path) -> None:
    assert (bpe.algorithm, bpe.vocab_size) == ("sentencepiece-bpe", 600)
    assert bpe.special_tokens == {"<s>": 1, "</s>": 2}
    for text in [mixed, *CORPUS]:
        assert bpe.decode(bpe.encode(text)) == text
    long = "\n".join(CORPUS) * 4
    assert list(bpe.encode_stream(long[at : at + 5000] for at in range(0, len(long), 5000))) == bpe.encode(long)
    spans = bpe.offsets(mixed, "byte")
    assert spans[0][0] == 0
    assert spans[-1][1] == len(mixed.encode())
    assert all(left[1] == right[0] for left, right in pairwise(spans))
    bpe.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.encode(mixed) == bpe.encode(mixed)
    assert again.special_tokens == bpe.special_tokens | {"<unk>": 0}


def test_a_tokenizer_json_becomes_a_model_again(bpe: Tokenizer, mixed: str, tmp_path: Path) -> None:
    bpe.save(tmp_path)
    again = Tokenizer.load(tmp_path).engine
    assert isinstance(again, SentencePieceEngine)
    assert reference_of(files.write(again.model)).encode(mixed) == bpe.encode(mixed)


def test_explain_gives_every_join(bpe: Tokenizer) -> None:
    steps = bpe.explain("the the")
    assert steps
    assert all(step.result == step.left + step.right for step in steps)
    assert all(b"the the"[step.position :].startswith(step.result) for step in steps)
    symbols = len("the the") - len(steps)
    assert symbols == len(bpe.encode("the the"))


def test_dropout_is_seeded_and_loses_nothing(bpe: Tokenizer) -> None:
    engine = bpe.engine
    assert isinstance(engine, SentencePieceEngine)
    text = "the quick brown fox and the lazy dog"
    assert engine.sample(text, 0.0, Random(1)) == bpe.encode(text)
    characters = engine.sample(text, 1.0, Random(1))
    assert len(characters) == len(text)
    drawn = {tuple(engine.sample(text, 0.3, Random(seed))) for seed in range(20)}
    assert len(drawn) > 5
    assert all(bpe.decode(ids) == text for ids in drawn)
    assert engine.sample(text, 0.3, Random(7)) == engine.sample(text, 0.3, Random(7))


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (Options(100), "vocab_size of at least"),
        (Options(1000, normalization="nfq"), "unknown normalization"),
        (Options(1000, character_coverage=0.5), "character_coverage"),
        (Options(1000, control=("<s>", "<s>")), "differ"),
        (Options(262, byte_fallback=True), "leaves"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: Options, wanted: str) -> None:
    with pytest.raises(TokenizerError, match=wanted):
        sentencepiece_bpe_training.train(["some text with characters"], options)


def test_hard_corpora() -> None:
    for corpus in ([], [""], ["\n\n"]):
        with pytest.raises(TokenizerError, match="empty"):
            Tokenizer.train(corpus, vocab_size=300, algorithm="sentencepiece-bpe")
    with pytest.raises(TokenizerError, match="lone surrogate"):
        Tokenizer.train(["a\ud800"], vocab_size=300, algorithm="sentencepiece-bpe")
    with pytest.warns(UserWarning, match="instead of 400"):
        Tokenizer.train(["abc"], vocab_size=400, algorithm="sentencepiece-bpe")


def test_what_may_be_a_piece() -> None:
    assert may_be_piece("▁word", 16)
    assert may_be_piece("日本のテ", 16)
    assert may_be_piece("e\u0301x", 16)
    for text in ("a1", "a.", "wo▁rd", "aя", "▁" * 2, "a" * 17, "a\0"):
        assert not may_be_piece(text, 16), text
    assert [script(character) for character in "aя中の1ー\u0301"] == [
        "Latin",
        "Cyrillic",
        "Han",
        "Han",
        "Common",
        "Han",
        "Inherited",
    ]


def test_lone_surrogates_and_types_are_refused(bpe: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="D800"):
        bpe.encode("a\ud800")
    with pytest.raises(TokenizerError, match="wanted an id"):
        bpe.decode([10**6])
