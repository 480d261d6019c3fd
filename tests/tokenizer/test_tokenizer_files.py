"""Formats: what can be read and written, and that everything else is refused in words."""

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylm.tokenizer import Tokenizer, TokenizerError
from tinylm.tokenizer._engines.byte_level import ByteLevelEngine, byte_level_engine
from tinylm.tokenizer._formats import tiktoken_format
from tinylm.tokenizer._formats.convert import convert

Write = Callable[[bytes], Path]


@pytest.fixture(scope="session")
def saved(tok: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    directory = tmp_path_factory.mktemp("saved")
    tok.save(directory)
    return (directory / "tokenizer.json").read_bytes()


def test_saving_is_deterministic(tok: Tokenizer, saved: bytes, tmp_path: Path, mixed: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(saved)
    for path in (tmp_path, tmp_path / "tokenizer.json", str(tmp_path)):
        loaded = Tokenizer.load(path)
        assert loaded.encode(mixed) == tok.encode(mixed)
        assert loaded.engine.vocabulary == tok.engine.vocabulary
    Tokenizer(ByteLevelEngine(loaded.engine.vocabulary)).save(tmp_path / "rewritten")
    assert (tmp_path / "rewritten" / "tokenizer.json").read_bytes() == saved


def test_failed_save_leaves_the_old_file(tok: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tok.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(TokenizerError, match="No space left"):
        tok.save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(TokenizerError, match="cannot write"):
        tok.save(tmp_path / "file")


def changed(saved: bytes, change: Callable[[Any], None]) -> bytes:
    content = json.loads(saved)
    change(content)
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["model"].update(type="Unigram"), "schema of Hugging Face"),
        (lambda c: c["model"].update(dropout=0.1), "dropout is 0.1"),
        (lambda c: c["model"].update(end_of_word_suffix="</w>"), "end_of_word_suffix"),
        (lambda c: c.update(normalizer={"type": "Lowercase"}), 'normalizer is "Lowercase"'),
        (lambda c: c.update(truncation={"max_length": 5}), "truncation"),
        (lambda c: c.update(encoder={"type": "Strange"}), "the part 'encoder' is not known"),
        (lambda c: c.update(version="2.0"), "version is '2.0'"),
        (lambda c: c.update(version=None), "version is None"),
        (lambda c: c.update(decoder={"type": "WordPiece"}), 'decoder is "WordPiece"'),
        (lambda c: c.update(pre_tokenizer={"type": "Whitespace"}), "not supported"),
        (lambda c: c.update(pre_tokenizer=None), "not supported"),
        (lambda c: c["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex="(a+)+b"), "known pattern"),
        (lambda c: c["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True), "add_prefix_space"),
        (lambda c: c.update(post_processor={"type": "Strange"}), 'post-processor is "Strange"'),
        (lambda c: c["added_tokens"][0].update(lstrip=1), "wanted true or false"),
        (lambda c: c["added_tokens"][0].update(content="a"), "the added token 'a' .* is 64 in the vocabulary"),
        (lambda c: c["added_tokens"][0].update(id=3), "the id 3 is there twice"),
        (lambda c: c["added_tokens"][0].update(id=c["added_tokens"][1]["id"]), "there twice"),
        (lambda c: c["model"]["vocab"].update({"ab!?": 5}), "the id 5 is there twice"),
        (lambda c: c["model"]["vocab"].update({"ab!?": -5}), "wanted an id"),
        (lambda c: c["model"]["vocab"].update({"ab!?": 2**40}), "wanted an id"),
        (lambda c: c["model"]["vocab"].update({"日本": 9999}), "byte-level characters"),
        (lambda c: c["model"]["vocab"].pop("a"), "1 bytes missing"),
        (lambda c: c["model"]["merges"].append(["zz", "qq"]), "merge 441 is"),
        (lambda c: c["model"]["merges"].append("nonsense"), "merge 441 is"),
        (lambda c: c.pop("model"), "something else"),
        (lambda c: c["model"].update(merges=3), "something else"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(
    change: Callable[[Any], None], message: str, saved: bytes, write_json: Write
) -> None:
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.load(write_json(changed(saved, change)))


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"model": {"type": "BPE"}}']
)
def test_broken_files_are_refused(data: bytes, write_json: Write) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        Tokenizer.load(write_json(data))


def test_truncated_files_are_refused(saved: bytes, write_json: Write) -> None:
    for size in range(0, len(saved.rstrip()), 997):
        with pytest.raises(TokenizerError, match="broken JSON"):
            Tokenizer.load(write_json(saved[:size]))


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=4,
)


@given(data=st.data())
@settings(deadline=None, max_examples=300)
def test_mutated_files_load_and_work_or_are_refused(
    data: st.DataObject, saved: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One part of the tree is replaced or removed, or a byte is changed: TokenizerError, or a tokenizer that works."""
    if data.draw(st.booleans()):
        raw = bytearray(saved)
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    else:
        content = json.loads(saved)
        place = content
        while True:
            keys = list(place) if isinstance(place, dict) else range(len(place))
            key = data.draw(st.sampled_from(keys))
            if not isinstance(place[key], (dict, list)) or not place[key] or data.draw(st.integers(0, 3)) == 0:
                break
            place = place[key]
        if data.draw(st.booleans()):
            del place[key]
        else:
            place[key] = data.draw(json_values)
        raw = bytearray(json.dumps(content).encode())
    path = tmp_path_factory.mktemp("fuzz") / "tokenizer.json"
    path.write_bytes(raw)
    try:
        tokenizer = Tokenizer.load(path)
    except TokenizerError:
        return
    text = "Hello, world! <|im_start|> é 日本 123"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode(text, allowed_special="all", add_special_tokens=True)) is not None


def test_missing_and_foreign_paths(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="No such file"):
        Tokenizer.load(tmp_path / "nowhere")
    with pytest.raises(TokenizerError, match="got nothing"):
        Tokenizer.load(tmp_path)
    (tmp_path / "merge_rules.txt").write_text("a b\n")
    with pytest.raises(TokenizerError, match="No such file"):
        Tokenizer.load(tmp_path)
    (tmp_path / "x.model").write_bytes(b"\x0a")
    with pytest.raises(TokenizerError, match="wanted a SentencePiece model"):
        Tokenizer.load(tmp_path / "x.model")


def test_tiktoken_file_and_back(trained: dict[str, Tokenizer], tmp_path: Path, mixed: str) -> None:
    tokenizer = trained["gpt2"]
    lines = convert(tokenizer, tmp_path / "mine.tiktoken")
    assert any("no pattern" in line for line in lines)
    with pytest.raises(TokenizerError, match="which pattern"):
        Tokenizer.load(tmp_path / "mine.tiktoken")
    loaded = Tokenizer.load(tmp_path, pattern="gpt2", special_tokens=tokenizer.special_tokens)
    assert loaded.encode(mixed, allowed_special="all") == tokenizer.encode(mixed, allowed_special="all")
    loaded.save(tmp_path / "json")
    again = Tokenizer.load(tmp_path / "json")
    assert again.encode(mixed) == tokenizer.encode(mixed)


def test_known_rank_files_bring_pattern_and_special_tokens(
    trained: dict[str, Tokenizer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import hashlib

    convert(trained["gpt2"], tmp_path / "r50k.tiktoken")
    digest = hashlib.sha256((tmp_path / "r50k.tiktoken").read_bytes()).hexdigest()
    monkeypatch.setitem(tiktoken_format.KNOWN, digest, ("gpt2", {"<|endoftext|>": 50256}))
    loaded = Tokenizer.load(tmp_path / "r50k.tiktoken")
    assert loaded.eos_id == 50256
    assert loaded.engine.vocabulary.stages == ("gpt2",)


@pytest.mark.parametrize(
    "line", [b"nonsense", b"YWJj x", b"!!! 5", b"YWJjZGVmZw== -1", b"YWJjZGVmZw== 5", b"YQ== 9999", b"YWJj"]
)
def test_broken_rank_files_are_refused(line: bytes, trained: dict[str, Tokenizer], tmp_path: Path) -> None:
    data = tiktoken_format.write(trained["gpt2"].engine.vocabulary)
    path = tmp_path / "x.tiktoken"
    path.write_bytes(data + line + b"\n")
    with pytest.raises(TokenizerError, match=r"x\.tiktoken"):
        Tokenizer.load(path, pattern="gpt2")
    path.write_bytes(base64.b64encode(b"a") + b" 0\n")
    with pytest.raises(TokenizerError, match="255 bytes missing"):
        Tokenizer.load(path, pattern="gpt2")


def test_gpt2_pair_of_files_and_back(trained: dict[str, Tokenizer], tmp_path: Path, mixed: str) -> None:
    tokenizer = trained["gpt2"]
    convert(tokenizer, tmp_path / "vocab.json")
    loaded = Tokenizer.load(tmp_path)
    assert loaded.encode(mixed) == tokenizer.encode(mixed)
    assert loaded.eos_id == tokenizer.eos_id
    convert(trained["qwen2"], tmp_path / "vocab.json")
    assert Tokenizer.load(tmp_path, pattern="qwen2").encode(mixed) == trained["qwen2"].encode(mixed)
    (tmp_path / "merges.txt").write_text("a b c\n")
    with pytest.raises(TokenizerError, match="merge 0"):
        Tokenizer.load(tmp_path)


def test_options_that_a_format_does_not_use_are_refused(saved: bytes, write_json: Write) -> None:
    path = write_json(saved)
    with pytest.raises(TokenizerError, match="has its own"):
        Tokenizer.load(path, pattern="gpt2")
    with pytest.raises(TokenizerError, match="has its own"):
        Tokenizer.load(path, special_tokens={"<x>": 1})
    with pytest.raises(TokenizerError, match="unknown pattern"):
        Tokenizer.load(path, pattern="nope")


def test_corpus_files(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\r\ntwo\r\n" * 50)
    tokenizer = Tokenizer.train([path], vocab_size=262)
    assert b"\r\n" in tokenizer.engine.vocabulary.tokens.values()
    assert Tokenizer.train(str(path), vocab_size=262).engine.vocabulary == tokenizer.engine.vocabulary
    assert Tokenizer.train(["one\r\ntwo\r\n" * 50], vocab_size=262).engine.vocabulary == tokenizer.engine.vocabulary
    with pytest.raises(TokenizerError, match="No such file"):
        Tokenizer.train(["missing.txt"], vocab_size=300)
    for data, message in [(b"", "empty"), (b"abc\xff", "offset 3"), (b"ab\x00", "zero byte at offset 2")]:
        path.write_bytes(data)
        with pytest.raises(TokenizerError, match=message):
            Tokenizer.train([path], vocab_size=300)
    with pytest.raises(TokenizerError, match="directory"):
        Tokenizer.train([tmp_path], vocab_size=300)


def test_a_vocabulary_may_lack_bytes_that_text_hardly_has(tok: Tokenizer, tmp_path: Path, mixed: str) -> None:
    """SmolLM2's has no token for some control characters and for bytes that UTF-8 never has."""
    lacking = {b"\x04", b"\xc0", b"\xff"}
    vocabulary = tok.engine.vocabulary
    fewer = replace(vocabulary, tokens={id: token for id, token in vocabulary.tokens.items() if token not in lacking})
    Tokenizer(byte_level_engine(fewer)).save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.encode(mixed) == tok.encode(mixed)
    assert loaded.vocab_size == tok.vocab_size
    with pytest.raises(TokenizerError, match=r"U\+0004 \(at character 1\)"):
        loaded.encode("a\x04")
    with pytest.raises(TokenizerError, match="wanted an id"):
        loaded.decode([tok.vocab_size])
    with pytest.raises(TokenizerError, match="all 256 bytes"):
        convert(loaded, tmp_path / "x.tiktoken")
    convert(loaded, tmp_path / "vocab.json")
    assert Tokenizer.load(tmp_path / "vocab.json", pattern="cl100k").encode(mixed) == tok.encode(mixed)
    tokenizers = pytest.importorskip("tokenizers")
    reference = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert reference.encode(mixed, add_special_tokens=False).ids == tok.encode(mixed)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"<a>": -1}, "from 0 to"),
        ({"<a>": 2**40}, "from 0 to"),
        ({"<a>": "5"}, "from 0 to"),
        ({"<a>": True}, "from 0 to"),
        ({"<a>": 900, "<b>": 900}, "'<b>' cannot have the id 900: that is '<a>'"),
        ({"<a>": 5}, "cannot have the id 5"),
        ({"": 900}, "are text"),
        ({5: 900}, "are text"),
        ({"\ud800": 900}, "are text"),
    ],
)
def test_special_tokens_of_a_rank_file(
    named: dict[str, int], message: str, trained: dict[str, Tokenizer], tmp_path: Path
) -> None:
    convert(trained["gpt2"], tmp_path / "mine.tiktoken")
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.load(tmp_path / "mine.tiktoken", pattern="gpt2", special_tokens=named)


def test_where_nothing_can_be_written_is_said(tok: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "a\0b", tmp_path / "file"):
        with pytest.raises(TokenizerError, match="cannot write"):
            tok.save(path)
    with pytest.raises(TokenizerError, match="cannot write"):
        convert(tok, tmp_path / "file" / "x.tiktoken")
    other = Tokenizer(tok.engine, chat_template="\ud800")
    with pytest.raises(TokenizerError, match="cannot write"):
        other.save(tmp_path / "directory")
