"""Corners of SentencePiece's normalisation: spaces as suffixes, NUL beside our own compiled rules, tokenizers' Nmt."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tinylm.tokenizer import Tokenizer
from tinylm.tokenizer._engines.sentencepiece import SentencePieceEngine
from tinylm.tokenizer._engines.sentencepiece_data import Form, Replace, SentencePieceModel
from tinylm.tokenizer._formats.sentencepiece_model import read, write
from tinylm.tokenizer._trainers.sentencepiece_corpus import Options
from tinylm.tokenizer.kernels.sentencepiece_training import train_bpe
from tinylm.tokenizer.ladder import made_text
from tinylm.tokenizer.normalizer import normalize

spm: Any = pytest.importorskip("sentencepiece")
TEXT = made_text(20_000)


@pytest.fixture(params=["kernels", "python"])
def engine_of(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[SentencePieceEngine]:
    if request.param == "python":
        monkeypatch.setattr("tinylm.tokenizer._engines.sentencepiece.make_encoder", lambda model: None)
    return SentencePieceEngine


@pytest.mark.parametrize("rules", ["identity", "nmt_nfkc"])
@pytest.mark.parametrize("remove", [True, False])
def test_spaces_as_suffixes(rules: str, remove: bool, engine_of: Callable[..., Any]) -> None:
    out = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.split("\n")),
        model_writer=out,
        vocab_size=200,
        model_type="bpe",
        treat_whitespace_as_suffix=True,
        normalization_rule_name=rules,
        remove_extra_whitespaces=remove,
        minloglevel=2,
    )
    reference = spm.SentencePieceProcessor(model_proto=out.getvalue())
    engine = engine_of(read(out.getvalue(), "trained"))
    for text in ["▁", " ▁", "▁ ", "▁▁", " ", "", "a▁", "▁a", "a ▁ b", "\u3000▁", "ka to  mi ", "\x1f"]:
        assert engine.encode(text) == reference.encode(text), text


@pytest.mark.parametrize("rules", ["identity", "nmt_nfkc"])
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_spaces_inside_of_symbols(kind: str, rules: str, engine_of: Callable[..., Any]) -> None:
    """Repeated spaces go, but not those of a user-defined symbol."""
    out = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.split("\n")),
        model_writer=out,
        vocab_size=60,
        hard_vocab_limit=False,
        model_type=kind,
        normalization_rule_name=rules,
        user_defined_symbols=["a  b", "  ", "x  ", "\uff22"],
        minloglevel=3,
    )
    reference = spm.SentencePieceProcessor(model_proto=out.getvalue())
    engine = engine_of(read(out.getvalue(), "trained"))
    made = ["c\t c", "\uff41  b", "a \u3000b", "\ufb01\uff22  \uff22", "\uff21a  b\uff21"]  # the rules make a symbol
    for text in [
        *made,
        "a  b",
        "c  c",
        " a  b",
        "c  a  b  c",
        "c   c",
        "  c",
        "c  ",
        "x   c",
        "c x  y",
        "x    y",
        "  ",
        " ",
    ]:
        assert engine.normalize(text) == reference.normalize(text), text
        assert engine.encode(text) == reference.encode(text), text


@pytest.mark.parametrize("rules", ["nmt_nfkc", "nfkc_cf"])
def test_nul_beside_rules_of_our_own(rules: str, engine_of: Callable[..., Any]) -> None:
    """A free unit of a trie must not be taken for a NUL that leads somewhere, here or in sentencepiece."""
    options = Options(200, rules, dummy_prefix=True, remove_extra_spaces=True, byte_fallback=False)
    data = write(train_bpe([TEXT], options))
    reference = spm.SentencePieceProcessor(model_proto=data)
    engine = engine_of(read(data, "written"))
    starts = [chr(code) for code in range(0xA0, 0x3100, 11)]
    for text in ["\0", "a\0b", " \0 ", "ﬁ\0", "\0ﬁ", "e\0\u0301", "ｶ\0ﾞ", *(f"x{start}\0y" for start in starts)]:
        assert engine.encode(text) == reference.encode(text), text


def test_nmt_is_that_of_tokenizers(tmp_path: Path) -> None:
    lib: Any = pytest.importorskip("tokenizers")
    step = lib.normalizers.Nmt()
    every = "".join(f"a{chr(code)}" for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    assert normalize(every, (Form("nmt"),)) == step.normalize_str(every)
    trained: SentencePieceModel = train_bpe([TEXT], Options(400))
    model = replace(trained, steps=(Form("nmt"), Replace(" ", "▁")))
    Tokenizer(SentencePieceEngine(model)).save(tmp_path)
    again = Tokenizer.load(tmp_path)
    text = "ka\u200bto\tmi\x01 per\x85\u200d."
    other = lib.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert again.encode(text) == other.encode(text, add_special_tokens=False).ids
