"""Hard inputs: each ends in the documented result or in one TokenizerError, whatever the algorithm."""

import contextlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylm.tokenizer import Tokenizer, TokenizerError
from tinylm.tokenizer._trainers import choose
from tinylm.tokenizer.ladder import made_text

Find = Callable[[str], Path]
EXACT = ("bpe", "sentencepiece-bpe", "unigram")  # these lose nothing but what their normaliser changes


@pytest.fixture(scope="module", params=choose.ALGORITHMS)
def any_tok(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer.train([made_text(20_000)], vocab_size=700, algorithm=request.param)


def test_empty_text_is_no_ids(any_tok: Tokenizer) -> None:
    assert any_tok.encode("") == []
    assert any_tok.encode_array("").tolist() == []
    assert any_tok.encode_batch([]) == []
    assert any_tok.encode_batch(["", ""], threads=2) == [[], []]
    assert list(any_tok.encode_stream([])) == list(any_tok.encode_stream(["", ""])) == []
    assert any_tok.decode([]) == ""
    assert any_tok.count("") == 0
    assert any_tok.truncate("", 5) == any_tok.truncate("and", 0) == ""
    assert any_tok.offsets("") == []


@pytest.mark.parametrize("text", ["\ud800", "ab\udfffcd", "x" * 100_000 + "\udc00"])
def test_a_lone_surrogate_is_named_with_its_place(any_tok: Tokenizer, text: str) -> None:
    place = next(number for number, character in enumerate(text) if "\ud800" <= character <= "\udfff")
    with pytest.raises(TokenizerError, match=rf"surrogate U\+{ord(text[place]):04X} at character {place}"):
        any_tok.encode(text)
    with pytest.raises(TokenizerError, match="surrogate"):
        any_tok.encode_batch(["fine", text], threads=2)
    with pytest.raises(TokenizerError, match="surrogate"):
        list(any_tok.encode_stream([text]))


def test_truncating_a_long_text_looks_at_its_beginning_only(
    any_tok: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = made_text(20_000) * 20
    spans, sizes = any_tok.engine.spans, []

    def seen(text: str, first: bool = True) -> list[tuple[int, int]]:
        sizes.append(len(text))
        return spans(text, first)

    monkeypatch.setattr(any_tok.engine, "spans", seen)
    for n in (1, 50, 300):
        assert any_tok.encode(any_tok.truncate(text, n)) == any_tok.encode(text)[:n]
    assert max(sizes) < 10_000
    with pytest.raises(TokenizerError, match="surrogate"):
        any_tok.truncate(text + "\ud800", 1)


def test_samples_are_seeded_and_decode_to_the_text(any_tok: Tokenizer) -> None:
    text = "and the information\n of the nation"
    if any_tok.algorithm == "wordpiece":
        with pytest.raises(TokenizerError, match="to sample from, got wordpiece"):
            any_tok.sample(text, 0.1, 0)
        return
    drawn = [tuple(any_tok.sample(text, 0.3, seed)) for seed in range(20)]
    assert len(set(drawn)) > (2 if any_tok.algorithm == "unigram" else 10)
    assert drawn == [tuple(any_tok.sample(text, 0.3, seed)) for seed in range(20)]
    assert {any_tok.decode(ids) for ids in drawn} == {text}
    if any_tok.algorithm != "unigram":
        assert any_tok.sample(text, 0, 1) == any_tok.encode(text)
        assert len(any_tok.sample(text, 1.0, 1)) == len(text)
    for wrong in (-0.1, float("nan"), float("inf")):
        with pytest.raises(TokenizerError, match="wanted an alpha"):
            any_tok.sample(text, wrong, 0)
    with pytest.raises(TokenizerError, match="surrogate U\\+D800 at character 2"):
        any_tok.sample("a \ud800", 0.1, 0)


def test_ids_may_be_numbers_of_numpy(any_tok: Tokenizer) -> None:
    ids = any_tok.encode_array("an and to")
    text = any_tok.decode(ids)
    for kind in (np.uint32, np.int64, np.uint16):
        assert any_tok.decode(list(ids.astype(kind))) == text
        assert any_tok.decode_bytes(tuple(ids.astype(kind))) == text.encode()
    for wrong in ([np.int64(-1)], np.array([0.5]), [np.uint32(2**32 - 1)]):
        with pytest.raises(TokenizerError, match="wanted an id"):
            any_tok.decode(wrong)  # type: ignore[arg-type]
    for nothing in (5, None, np.array(3)):
        with pytest.raises(TokenizerError, match="wanted ids, got"):
            any_tok.decode(nothing)  # type: ignore[arg-type]


def test_one_string_is_no_batch_and_a_number_no_chunk(any_tok: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="wanted a list of texts"):
        any_tok.encode_batch("abc")
    with pytest.raises(TokenizerError, match="wanted chunks of text, got bytes"):
        list(any_tok.encode_parts([b"abc"]))  # type: ignore[list-item]


@pytest.mark.parametrize("algorithm", choose.ALGORITHMS)
def test_special_tokens_are_a_list_of_texts(algorithm: str) -> None:
    for wrong, message in ((5, "are text"), ([5], "are text"), (["a\ud800"], "are text"), ("<s>", "into a list")):
        with pytest.raises(TokenizerError, match=message):
            Tokenizer.train(["ab"], vocab_size=600, algorithm=algorithm, special_tokens=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["the", "##ing"])
def test_a_special_token_of_wordpiece_is_no_piece(name: str) -> None:
    with pytest.raises(TokenizerError, match="can be a piece"):
        Tokenizer.train([made_text(20_000)], vocab_size=700, algorithm="wordpiece", special_tokens=[name])


def test_added_tokens_that_begin_one_another(tmp_path: Path) -> None:
    tok = Tokenizer.train([made_text(1000)], vocab_size=300)
    content = json.loads(tok.engine.files()["tokenizer.json"])
    content["added_tokens"] += [
        {"id": 300 + size, "content": "<" + "a" * size, "special": False} for size in range(1, 1500)
    ]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    tok = Tokenizer.load(tmp_path)
    assert tok.encode("<aaa<" + "a" * 1499) == [303, 1799]
    assert tok.encode("<") == Tokenizer.train([made_text(1000)], vocab_size=300).encode("<")


@pytest.mark.parametrize("path", ["a" * 5000, "a\0b", "a/" * 3000])
def test_a_path_that_cannot_be(path: str) -> None:
    with pytest.raises(TokenizerError, match="wanted a tokenizer, got"):
        Tokenizer.load(path)
    with pytest.raises(TokenizerError, match="No such file"):
        Tokenizer.load("there-is-none", pattern="gpt2")


@pytest.mark.parametrize("wrong", [b"bytes", b"\xff\xfe", None, 5, ["a"], bytearray(b"a")])
def test_what_is_no_string_is_refused(any_tok: Tokenizer, wrong: object) -> None:
    with pytest.raises(TokenizerError, match="wanted a string"):
        any_tok.encode(wrong)  # type: ignore[arg-type]
    with pytest.raises(TokenizerError, match="wanted a string"):
        any_tok.encode_array(wrong)  # type: ignore[arg-type]
    with pytest.raises(TokenizerError):
        list(any_tok.encode_stream([wrong]))  # type: ignore[list-item]


def test_nul_is_a_character_like_others(tok: Tokenizer) -> None:
    assert tok.decode(tok.encode("a\0b\0")) == "a\0b\0"
    assert len(tok.encode("\0")) == 1


@pytest.mark.parametrize("wrong", [-1, 700, 10**6, 2**32, 2**70, "1", None, 1.5])
def test_ids_out_of_range_are_named(any_tok: Tokenizer, wrong: object) -> None:
    for decode in (any_tok.decode, any_tok.decode_bytes):
        with pytest.raises(TokenizerError, match=re.escape(repr(wrong))):
            decode([5, wrong])  # type: ignore[list-item]
    with pytest.raises(TokenizerError):
        any_tok.id_to_bytes(wrong)  # type: ignore[arg-type]


def test_invalid_utf8_from_ids_is_decoded_as_asked(tok: Tokenizer) -> None:
    half = (
        tok.encode("é")[:1]
        if len(tok.encode("é")) > 1
        else [next(i for i in range(256) if tok.id_to_bytes(i) == b"\xc3")]
    )
    assert tok.decode(half) == "\ufffd"
    assert tok.decode(half, errors="ignore") == ""
    with pytest.raises(UnicodeDecodeError):
        tok.decode(half, errors="strict")


@pytest.mark.parametrize("line", ["a", "ab ", " ", "\n", "é", "\u0301", "🎉", "1", "'", "x" * 500 + " "])
def test_one_long_line_comes_back(any_tok: Tokenizer, line: str) -> None:
    text = (line * 50_000)[:50_000]
    ids = any_tok.encode(text)
    assert any_tok.count(text) == len(ids)
    if any_tok.engine.algorithm == "bpe":
        assert any_tok.decode(ids) == text


def test_time_grows_with_the_text_and_not_with_its_square(tok: Tokenizer) -> None:
    """Texts on which a backtracking pattern or a careless merge loop would take hours; no time is asserted."""
    chance = Random(0)
    for text in (
        "a" * 2_000_000,
        " " * 2_000_000,
        "".join(chance.choices("abcdefghij", k=1_000_000)),
        "'" * 1_000_000,
        "e" + "\u0301" * 500_000,
        "\n \n" * 300_000,
    ):
        assert tok.decode(tok.encode(text)) == text


def test_ten_megabytes_on_one_line_in_a_stream(tok: Tokenizer) -> None:
    text = made_text(100_000).replace("\n", " ")
    whole = tok.count(text * 100)
    assert sum(1 for _ in tok.encode_stream(text for _ in range(100))) == whole


# --- files -----------------------------------------------------------------------------------------------------------

BROKEN = [
    ("duplicate ids", lambda d: d["model"]["vocab"].update({"a": 5, "b": 5})),
    ("a missing id", lambda d: d["model"]["vocab"].pop(next(iter(d["model"]["vocab"])))),
    ("a negative id", lambda d: d["model"]["vocab"].update({"zz": -1})),
    ("an id that is text", lambda d: d["model"]["vocab"].update({"zz": "7"})),
    ("a merge of nothing known", lambda d: d["model"]["merges"].append(["no", "such"])),
    ("a merge of three", lambda d: d["model"]["merges"].append(["a", "b", "c"])),
    ("a merge whose result is unknown", lambda d: d["model"]["merges"].append(["Ā", "Ā"])),
    ("an unknown model", lambda d: d["model"].update({"type": "Mystery"})),
    ("an unknown pre-tokenizer", lambda d: d.update({"pre_tokenizer": {"type": "Mystery"}})),
    ("an unknown normalizer", lambda d: d.update({"normalizer": {"type": "Mystery"}})),
    ("an unknown decoder", lambda d: d.update({"decoder": {"type": "Mystery"}})),
    ("an unknown post-processor", lambda d: d.update({"post_processor": {"type": "Mystery"}})),
    (
        "a pattern that backtracks forever",
        lambda d: d.update(
            {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated"}}
        ),
    ),
    ("an added token at an id that is taken", lambda d: d["added_tokens"].append({"id": 5, "content": "<x>"})),
    ("no model", lambda d: d.pop("model")),
    ("no vocabulary", lambda d: d["model"].pop("vocab")),
    ("a vocabulary that is a list", lambda d: d["model"].update({"vocab": ["a"]})),
]


@pytest.mark.parametrize(("what", "breaks"), BROKEN, ids=[what for what, _ in BROKEN])
def test_a_tokenizer_json_that_cannot_be_right(
    what: str,
    breaks: Callable[[dict[str, object]], object],
    tok: Tokenizer,
    tmp_path: Path,
    write_json: Callable[[bytes], Path],
) -> None:
    tok.save(tmp_path)
    document = json.loads((tmp_path / "tokenizer.json").read_bytes())
    breaks(document)
    with pytest.raises(TokenizerError):
        Tokenizer.load(write_json(json.dumps(document).encode()))


@pytest.mark.parametrize(
    "name", ["cl100k", "gpt2", "bert", "botchan-bpe", "botchan-unigram", "mistral-v3", "llama3", "smollm2"]
)
def test_a_truncated_file_is_an_error_or_a_smaller_tokenizer(name: str, vocabulary: Find, tmp_path: Path) -> None:
    path = vocabulary(name)
    data = path.read_bytes()[:4_000_000]
    for other in path.parent.glob("merges.txt"):
        (tmp_path / other.name).write_bytes(other.read_bytes())
    for size in (0, 1, 7, 100, len(data) // 3, len(data) // 2 + 1, len(data) - 1):
        (tmp_path / path.name).write_bytes(data[:size])
        with contextlib.suppress(TokenizerError):
            Tokenizer.load(tmp_path / path.name).encode("Hello there")


@pytest.mark.parametrize("name", ["botchan-bpe", "botchan-unigram", "mistral-v1"])
def test_bytes_changed_in_a_model(name: str, vocabulary: Find, tmp_path: Path) -> None:
    data = vocabulary(name).read_bytes()
    chance = Random(1)
    for number in range(40):
        changed = bytearray(data)
        for _ in range(chance.choice([1, 3, 30])):
            changed[chance.randrange(min(len(data), 20_000))] = chance.randrange(256)
        path = tmp_path / f"{number}.model"
        path.write_bytes(changed)
        with contextlib.suppress(TokenizerError):
            tok = Tokenizer.load(path)
            tok.decode(tok.encode("Hello wörld 日本 <unk>"))


@given(st.text(max_size=60))
@settings(max_examples=150, deadline=None)
def test_byte_level_gives_any_text_back(tok: Tokenizer, text: str) -> None:
    ids = tok.encode(text)
    assert tok.decode(ids) == text
    assert tok.encode_array(text).tolist() == ids
    assert list(tok.encode_stream(text)) == ids
    decoder = tok.stream_decoder()
    assert "".join(map(decoder.push, ids)) + decoder.finish() == text


@given(st.binary(max_size=400))
@settings(max_examples=100, deadline=None)
@pytest.mark.parametrize("suffix", ["json", "tiktoken", "model", "gguf", "txt", ""])
def test_any_bytes_in_any_format_are_one_message(
    suffix: str, tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / f"any.{suffix}"
    path.write_bytes(data)
    with pytest.raises(TokenizerError):
        Tokenizer.load(path)


def test_paths_that_are_no_tokenizer(tmp_path: Path) -> None:
    for path in (
        tmp_path,
        tmp_path / "missing",
        tmp_path / "missing.model",
        tmp_path / "missing.gguf",
        Path(os.devnull),
    ):
        with pytest.raises(TokenizerError):
            Tokenizer.load(path)
