"""convert: from format to format with the same ids, and words for what a format has no place for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tinylm.tokenizer import Tokenizer, TokenizerError
from tinylm.tokenizer._engines.byte_level import ByteLevelEngine
from tinylm.tokenizer._engines.vocabulary import Vocabulary
from tinylm.tokenizer._formats.convert import convert
from tinylm.tokenizer.ladder import made_text


@pytest.fixture(scope="session")
def bert_like(mixed: str) -> Tokenizer:
    return Tokenizer.train([made_text(20_000), mixed], vocab_size=500, algorithm="wordpiece")


def changed(tok: Tokenizer, **changes: Any) -> Tokenizer:
    from dataclasses import replace

    vocabulary: Vocabulary = tok.engine.vocabulary
    return Tokenizer(ByteLevelEngine(replace(vocabulary, **changes)))


def test_byte_level_goes_everywhere_and_back(tok: Tokenizer, tmp_path: Path, mixed: str) -> None:
    convert(tok, tmp_path / "a.tiktoken")
    ranks = Tokenizer.load(tmp_path / "a.tiktoken", pattern="cl100k", special_tokens=tok.special_tokens)
    convert(ranks, tmp_path / "b" / "vocab.json")
    pair = Tokenizer.load(tmp_path / "b", pattern="cl100k")
    assert convert(pair, tmp_path / "c" / "tokenizer.json") == []
    last = Tokenizer.load(tmp_path / "c")
    assert tok.encode(mixed) == ranks.encode(mixed) == pair.encode(mixed) == last.encode(mixed)


def test_each_thing_that_is_lost_is_named(tok: Tokenizer, tmp_path: Path) -> None:
    rich = changed(tok, nfc=True, prefix=(tok.special_tokens["<|im_start|>"],))
    rich.chat_template = "{{ messages }}"
    lines = "\n".join(convert(rich, tmp_path / "x.tiktoken"))
    for word in ("pattern='cl100k'", "special_tokens=", "NFC", "around a text", "chat template"):
        assert word in lines
    lines = "\n".join(convert(rich, tmp_path / "vocab.json"))
    for word in ("pattern='cl100k'", "<|endoftext|>", "NFC", "around a text", "chat template"):
        assert word in lines


@pytest.mark.parametrize("name", ["x.tiktoken", "vocab.json"])
def test_two_patterns_have_no_name(name: str, tok: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="digits and then gpt2"):
        convert(changed(tok, stages=("digits", "gpt2")), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_wordpiece_and_its_vocab_txt(bert_like: Tokenizer, tmp_path: Path, mixed: str) -> None:
    assert convert(bert_like, tmp_path / "vocab.txt") == []
    again = Tokenizer.load(tmp_path)
    assert again.encode(mixed, add_special_tokens=True) == bert_like.encode(mixed, add_special_tokens=True)
    assert convert(again, tmp_path / "out") == []
    assert Tokenizer.load(tmp_path / "out").encode(mixed) == bert_like.encode(mixed)


def test_a_vocab_txt_that_would_be_read_otherwise_is_not_written(bert_like: Tokenizer, tmp_path: Path) -> None:
    from dataclasses import replace

    from tinylm.tokenizer._engines.wordpiece import WordPieceEngine

    other = Tokenizer(WordPieceEngine(replace(bert_like.engine.pieces, longest=20)))
    with pytest.raises(TokenizerError, match="longest of this tokenizer: 20 would be read as 100"):
        convert(other, tmp_path / "vocab.txt")
    assert list(tmp_path.iterdir()) == []


def test_a_sentencepiece_model_and_back(vocabulary: Callable[[str], Path], tmp_path: Path, mixed: str) -> None:
    tok = Tokenizer.load(vocabulary("botchan-bpe"))
    lines = convert(tok, tmp_path / "x.model")
    assert all("around" not in line for line in lines)
    assert Tokenizer.load(tmp_path / "x.model").encode(mixed) == tok.encode(mixed)


@pytest.mark.parametrize(
    ("name", "message"),
    [("x.model", "SentencePiece"), ("vocab.txt", "WordPiece only"), ("x.gguf", "read here, not written")],
)
def test_what_cannot_hold_byte_level_bpe(name: str, message: str, tok: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=message):
        convert(tok, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x.tiktoken", "vocab.json", "x.model"])
def test_what_cannot_hold_wordpiece(name: str, bert_like: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="wordpiece"):
        convert(bert_like, tmp_path / name)
