"""WordPiece files: tokenizer.json both ways, vocab.txt, bad files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinylm.tokenizer import Tokenizer, TokenizerError, kernels, wordpiece
from tinylm.tokenizer.ladder import made_text

tokenizers = pytest.importorskip("tokenizers")


@pytest.fixture(scope="session")
def small() -> Tokenizer:
    return Tokenizer.train([made_text(30_000), "Größe 你好 don't!"], vocab_size=400, algorithm="wordpiece")


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


VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "paris", "Paris", "e", "é", "日", "##本", "日本", "x"]


@pytest.mark.parametrize(
    "settings",
    [
        {"do_lower_case": True},
        {"do_lower_case": False},
        {"do_lower_case": True, "strip_accents": False},
        {"do_lower_case": False, "strip_accents": True},
        {"tokenize_chinese_chars": False},
        {"do_lower_case": False, "strip_accents": None, "tokenize_chinese_chars": True},
    ],
)
@pytest.mark.parametrize("kernel", [True, False])
def test_settings_beside_a_vocab_txt(
    settings: dict[str, Any], kernel: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    if not kernel:
        monkeypatch.setattr(kernels, "_compiled", lambda: None)
    lines = "\r\n".join(f"{token} " if token == "x" else token for token in VOCAB)  # with white space at an end
    (tmp_path / "vocab.txt").write_bytes(lines.encode())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer, theirs = Tokenizer.load(tmp_path), transformers.BertTokenizerFast.from_pretrained(tmp_path)
    for text in ("paris Paris PARIS", "e é É e\u0301", "日本 x日", "[MASK] x"):
        assert tokenizer.encode(text, allowed_special="all", add_special_tokens=True) == theirs(text)["input_ids"], text


def test_a_byte_order_mark_and_settings_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\ufeff[PAD]\n[UNK]\n[CLS]\n[SEP]\nparis\n", encoding="utf-8")
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode("PARIS") == [4]
    assert tokenizer.special_tokens["[PAD]"] == 0
    for settings in ("[]", "{", '{"do_lower_case": 0}'):
        (tmp_path / "tokenizer_config.json").write_text(settings)
        with pytest.raises(TokenizerError, match=r"tokenizer_config\.json"):
            Tokenizer.load(tmp_path)


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
    (["added_tokens", 0, "lstrip"], "no", "wanted true or false"),
    (["truncation"], {"max_length": 5}, "truncation"),
    (["post_processor", "type"], "StrangeProcessing", "post-processor"),
    (["post_processor"], {"type": "BertProcessing", "sep": ["x", None], "cls": ["[CLS]", 2]}, "wanted an id"),
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
