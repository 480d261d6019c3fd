"""convert: from format to format with the same ids, and words for what a format has no place for."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tinylm.tokenizer import Tokenizer, TokenizerError, sentencepiece_bpe_training
from tinylm.tokenizer._engines.byte_level import ByteLevelEngine, byte_level_engine
from tinylm.tokenizer._engines.sentencepiece import SentencePieceEngine
from tinylm.tokenizer._engines.vocabulary import Vocabulary
from tinylm.tokenizer._formats.convert import convert
from tinylm.tokenizer._trainers.sentencepiece_corpus import Options
from tinylm.tokenizer.kernels.sentencepiece_training import train_bpe
from tinylm.tokenizer.ladder import made_text


@pytest.fixture(scope="session")
def bert_like(mixed: str) -> Tokenizer:
    return Tokenizer.train([made_text(20_000), mixed], vocab_size=500, algorithm="wordpiece")


def changed(tok: Tokenizer, **changes: Any) -> Tokenizer:
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


def test_what_sentencepiece_does_otherwise_is_said(tmp_path: Path) -> None:
    options = Options(400, dummy_prefix=True, user_defined=("[X]",))
    tok = Tokenizer(SentencePieceEngine(sentencepiece_bpe_training.train([made_text(5_000)], options)))
    assert "user-defined symbols" in convert(tok, tmp_path / "a")[0]
    assert convert(tok, tmp_path / "a.model") == []
    tok = Tokenizer.train([made_text(5_000)], vocab_size=400, algorithm="unigram")
    assert convert(tok, tmp_path / "b") == []
    assert "float32" in convert(tok, tmp_path / "b.model")[-1]
    assert convert(Tokenizer.load(tmp_path / "b.model"), tmp_path / "c.model") == []


@pytest.mark.parametrize("name", ["my.json", "my-vocab.json", "merges.txt", "readme.txt"])
def test_a_file_of_no_format_does_not_become_a_directory(name: str, tok: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="wanted a directory, or a file called"):
        convert(tok, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def of_merges(tok: Tokenizer, merges: list[tuple[bytes, bytes]], others: list[bytes], whole: bool) -> Tokenizer:
    """Byte-level BPE with what these merges make, and other tokens."""
    tokens = {id: token for id, token in tok.engine.vocabulary.tokens.items() if id < 256}
    tokens |= dict(enumerate([*(left + right for left, right in merges), *others], 256))
    ids = {token: id for id, token in tokens.items()}
    rows = [(ids[left], ids[right], ids[left + right]) for left, right in merges]
    return changed(tok, tokens=tokens, merges=rows, whole_piece_first=whole, special_tokens={})


@pytest.mark.parametrize(
    ("merges", "others", "whole", "refused"),
    [
        ([(b"a", b"b")], [b"abc"], True, ("x.tiktoken", "vocab.json")),  # only a whole piece is abc
        ([(b"a", b"b")], [b"abc"], False, ("x.tiktoken",)),  # nothing is abc
        ([(b"b", b"c"), (b"a", b"b"), (b"ab", b"c")], [], False, ("x.tiktoken",)),  # nor here: bc is made first
        ([(b"b", b"c"), (b"a", b"b"), (b"ab", b"c"), (b"a", b"bc")], [], True, ()),  # as in a rank file
        ([(b"a", b"b"), (b"ab", b"c")], [], False, ()),
    ],
)
def test_a_format_that_would_make_other_tokens_is_not_written(
    merges: list[tuple[bytes, bytes]],
    others: list[bytes],
    whole: bool,
    refused: tuple[str, ...],
    tok: Tokenizer,
    tmp_path: Path,
) -> None:
    made = of_merges(tok, [pair for pair in merges if pair != (b"a", b"bc")], others, whole)
    if (b"a", b"bc") in merges:
        ids = {token: id for id, token in made.engine.vocabulary.tokens.items()}
        made = changed(made, merges=[*made.engine.vocabulary.merges, (ids[b"a"], ids[b"bc"], ids[b"abc"])])
    for name in ("x.tiktoken", "vocab.json"):
        if name in refused:
            with pytest.raises(TokenizerError, match="'abc' for one"):
                convert(made, tmp_path / name)
            assert not (tmp_path / name).exists()
            continue
        convert(made, tmp_path / name)
        again = Tokenizer.load(tmp_path / name, pattern="cl100k")
        for text in ("abc", "xabc", " abcab bc", "abcbcab"):
            assert again.encode(text) == made.encode(text)


@pytest.mark.parametrize("name", ["<|a b|>", "\u65e5", "a"])
def test_a_special_token_that_vocab_json_cannot_hold(name: str, tmp_path: Path) -> None:
    tok = Tokenizer.train([made_text(1000)], vocab_size=300, special_tokens=["<x>"])
    with pytest.raises(TokenizerError, match="no place for the special token"):
        convert(changed(tok, special_tokens={name: 299}), tmp_path / "vocab.json")
    assert list(tmp_path.iterdir()) == []


def test_what_a_tokenizer_json_does_otherwise_is_said(vocabulary: Callable[[str], Path], tmp_path: Path) -> None:
    lines = "\n".join(convert(Tokenizer.load(vocabulary("botchan-unigram")), tmp_path))
    assert "grapheme clusters" in lines
    assert "before each part" in lines
    options = Options(300, dummy_prefix=True, user_defined=("▁▁", "a▁b", "<x>"))
    tok = Tokenizer(SentencePieceEngine(train_bpe(["a b"] * 9, options)))
    lines = convert(tok, tmp_path / "json")
    assert len(lines) == 2
    assert lines[1].endswith("'a▁b'")
    plain = Tokenizer(SentencePieceEngine(train_bpe(["a b"] * 9, Options(300, dummy_prefix=True))))
    assert len(convert(plain, tmp_path / "plain")) == 1
    assert "not before each part" in "\n".join(convert(Tokenizer.load(tmp_path / "plain"), tmp_path / "x.model"))


def test_symbols_of_spaces_in_a_tokenizer_json(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    options = Options(310, user_defined=tuple("▁" * size for size in range(2, 12)))
    tok = Tokenizer(SentencePieceEngine(train_bpe(["a  b   c    d", "a b"] * 9, options)))
    assert convert(tok, tmp_path) == []
    reference = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for size in range(40):
        text = f"a{' ' * size}b"
        assert tok.encode(text) == Tokenizer.load(tmp_path).encode(text) == reference.encode(text).ids[1:], size


def test_save_says_what_convert_says(tmp_path: Path) -> None:
    options = Options(300, dummy_prefix=True, user_defined=("a▁b",))
    tok = Tokenizer(SentencePieceEngine(train_bpe(["a b"] * 9, options)))
    lines = convert(tok, tmp_path)
    with pytest.warns(UserWarning, match="not quite the same") as said:
        tok.save(tmp_path)
    assert len(lines) == len(said)
    assert all(str(warning.message).endswith(line) for warning, line in zip(said, lines, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Tokenizer.load(tmp_path).save(tmp_path / "again")  # what is written back is the same


def test_a_vocabulary_without_some_bytes_goes_into_vocab_json(tok: Tokenizer, tmp_path: Path, mixed: str) -> None:
    vocabulary = tok.engine.vocabulary
    tokens = {id: token for id, token in vocabulary.tokens.items() if token not in (b"\x01", b"\xc0")}
    specials = {"<|endoftext|>": tok.special_tokens["<|endoftext|>"]}
    lacking = replace(vocabulary, tokens=tokens, special_tokens=specials, whole_piece_first=True)
    convert(Tokenizer(byte_level_engine(lacking)), tmp_path / "vocab.json")
    assert Tokenizer.load(tmp_path, pattern="cl100k").encode(mixed) == tok.encode(mixed)
    lost = Tokenizer(byte_level_engine(replace(lacking, tokens={**tokens, 900: b"a\x01"})))
    with pytest.raises(TokenizerError, match="1 tokens of this tokenizer"):
        convert(lost, tmp_path / "vocab.json")
